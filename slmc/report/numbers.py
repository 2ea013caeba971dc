"""Format numbers, the same in every report."""

import json
import math
from typing import Any

from slmc.evaluation.bootstrap import Bounds

NONE = "-"


def value(number: float | None, half: float | None = None) -> str:
    """A metric, with half of its interval: ``0.0662 ±0.0150``."""
    if number is None or not math.isfinite(number):
        return NONE
    return f"{number:.4f}" + (f" ±{half:.4f}" if half is not None else "")


def change(bounds: Bounds | None, *, relative: bool = True) -> str:
    """A change with its interval: ``-1.2 % [-3.4, +0.9]``."""
    if bounds is None:
        return NONE
    if relative:
        mean, low, high = (f"{100 * x:+.1f}" for x in (bounds.change, bounds.low, bounds.high))
        return f"{mean} % [{low}, {high}]"
    mean, low, high = (f"{x:+.4f}" for x in (bounds.change, bounds.low, bounds.high))
    return f"{mean} [{low}, {high}]"


def count(number: int | None) -> str:
    """A whole number: ``134,515,008``."""
    return NONE if number is None else f"{number:,}"


def parameters(number: int | None) -> str:
    """Parameters in millions: ``35.1 M``; below one, in thousands: ``42 k``."""
    if number is None:
        return NONE
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number / 1e3:.0f} k"


def megabytes(number: float | None) -> str:
    """Size in 10^6 bytes: ``141.2``."""
    return NONE if number is None else f"{number:.1f}"


def milliseconds(number: float | None) -> str:
    """A latency to three digits: ``4.27``."""
    if number is None:
        return NONE
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def rate(number: float | None) -> str:
    """Histories per second: ``1,240``."""
    return NONE if number is None else f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def cost(number: float | None) -> str:
    """An amount of money to three digits: ``0.0123``, ``1,240``."""
    if number is None:
        return NONE
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"


def plain(value: Any) -> str:
    """A value of a manifest as text."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
