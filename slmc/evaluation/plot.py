"""What the SVG plots of reports and of stages share."""

from collections.abc import Callable

SPARE = 0.06
"""Free share of an axis at each end."""
TEXT = "text{font:12px system-ui,sans-serif;fill:#333}.t{font-weight:600;font-size:14px}"
"""Style of labels and titles."""


def axis(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Return the function from a value to its place on an axis.

    Args:
        low: Smallest value.
        high: Largest value; equal ones are given a width.
        start: Place of the axis' beginning, in pixels; beyond it is the free share.
        end: Place of its end.
    """
    width = (high - low) or 1.0
    low, width = low - SPARE * width, width * (1 + 2 * SPARE)
    return lambda value: start + (end - start) * (value - low) / width
