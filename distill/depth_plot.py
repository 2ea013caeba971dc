"""The plot of a depth report: metric by depth, influence of each layer, CKA of all pairs."""

from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from slmc.config import parse_budget
from slmc.evaluation.metrics import LOWER_IS_BETTER
from slmc.evaluation.plot import TEXT, axis

WIDTH, CURVE, LOWER = 860.0, 380.0, 300.0
"""Width of the picture, height of the curve and of the panels below it."""
LEFT, RIGHT, TOP, BOTTOM = 70.0, 110.0, 34.0, 46.0
MOST_LABELS = 16
"""Largest number of depths or layers with a label each."""
COLOURS = {
    "first": "#1f5fbf",
    "influence": "#c2571a",
    "angular": "#2e8b57",
    "interval": "#8a5fbf",
    "trained": "#333333",
}
STYLE = f"{TEXT}.grid{{stroke:#ddd}}.budget{{stroke:#b00;stroke-dasharray:5 3}}.bar{{fill:#7a8fb0}}"


def picture(numbers: Mapping[str, Any]) -> str:
    """Return the SVG of a report.

    Args:
        numbers: Its ``metrics.json``.
    """
    height = CURVE + LOWER
    body = _curves(numbers) + _influence(numbers["redundancy"]) + _cka(numbers["redundancy"])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:.0f} {height:.0f}" '
        f'role="img" aria-label="{escape(numbers["metric"])} by number of layers">'
        f'<style>{STYLE}</style><rect width="{WIDTH:.0f}" height="{height:.0f}" fill="#fff"/>'
        f"{body}</svg>\n"
    )


def _curves(numbers: Mapping[str, Any]) -> str:
    """The metric of each way by depth, with the interval of its change, and the budget."""
    teacher, metric = numbers["teacher"], numbers["metric"]
    lines = {way: _ends(one["depths"], numbers) for way, one in numbers["ways"].items()}
    floor = _floor(numbers)
    every = [value for line in lines.values() for _, *ends in line for value in ends]
    x = axis(1, teacher["layers"], LEFT, WIDTH - RIGHT)
    low, high = min([floor, *every]), max([floor, teacher["value"], *every])
    y = axis(low, high, CURVE - BOTTOM, TOP)
    parts = [_text(LEFT, 20, f"{metric.upper()} by number of layers, without training", title=True)]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        value = low + share * (high - low)
        parts.append(_line(LEFT, y(value), WIDTH - RIGHT, y(value), "grid"))
        parts.append(_text(LEFT - 8, y(value) + 4, f"{value:.3f}", anchor="end"))
    for layers in _labelled(teacher["layers"] + 1, first=1):
        parts.append(_text(x(layers), CURVE - BOTTOM + 18, str(layers), anchor="middle"))
    parts.append(_line(LEFT, y(floor), WIDTH - RIGHT, y(floor), "budget"))
    parts.append(_text(WIDTH - RIGHT + 6, y(floor) + 4, f"-{numbers['max_drop']}"))
    for number, (way, line) in enumerate(lines.items()):
        parts.append(_curve(line, (teacher["layers"], teacher["value"]), x, y, COLOURS[way]))
        at = TOP + 16 * number
        parts.append(_line(WIDTH - RIGHT + 6, at, WIDTH - RIGHT + 24, at, colour=COLOURS[way]))
        parts.append(_text(WIDTH - RIGHT + 30, at + 4, way))
    return "".join(parts)


def _ends(
    depths: Sequence[Mapping[str, Any]], numbers: Mapping[str, Any]
) -> list[tuple[int, float, float, float]]:
    """Depth, value, and the teacher's value plus each bound of the change, by rising depth."""
    sign = -1 if numbers["metric"] in LOWER_IS_BETTER else 1
    base = numbers["teacher"]["value"]
    return sorted(
        (
            one["depth"],
            one["value"],
            base + sign * one["change"]["low"],
            base + sign * one["change"]["high"],
        )
        for one in depths
    )


def _floor(numbers: Mapping[str, Any]) -> float:
    """The value that the budget allows."""
    budget, is_share = parse_budget(numbers["max_drop"])
    base: float = numbers["teacher"]["value"]
    if numbers["metric"] in LOWER_IS_BETTER:
        return base + budget
    return base * (1 - budget) if is_share else base - budget


def _curve(
    line: Sequence[tuple[int, float, float, float]],
    whole: tuple[int, float],
    x: Any,
    y: Any,
    colour: str,
) -> str:
    points = [(depth, value) for depth, value, _, _ in line] + [whole]
    path = " ".join(f"{x(depth):.1f},{y(value):.1f}" for depth, value in points)
    parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>']
    for depth, value, low, high in line:
        parts.append(_line(x(depth), y(low), x(depth), y(high), colour=colour))
        parts.append(f'<circle cx="{x(depth):.1f}" cy="{y(value):.1f}" r="3.5" fill="{colour}"/>')
    return "".join(parts)


def _influence(compared: Mapping[str, Any]) -> str:
    """Bars with the block influence of each layer."""
    influence: Sequence[float] = compared["influence"]
    right, bottom = WIDTH / 2 - 20, CURVE + LOWER - BOTTOM
    x = axis(0, len(influence) - 1, LEFT, right)
    y = axis(0.0, max(*influence, 1e-9), bottom, CURVE + TOP)
    width = max(2.0, 0.7 * (right - LEFT) / (len(influence) + 1))
    parts = [_text(LEFT, CURVE + 20, "Influence of each layer (1 - cosine)", title=True)]
    for value in (0.0, max(influence)):
        parts.append(_line(LEFT, y(value), right, y(value), "grid"))
        parts.append(_text(LEFT - 8, y(value) + 4, f"{value:.3f}", anchor="end"))
    for layer, value in enumerate(influence):
        top = min(y(value), y(0.0))
        parts.append(
            f'<rect class="bar" x="{x(layer) - width / 2:.1f}" y="{top:.1f}" width="{width:.1f}" '
            f'height="{abs(y(0.0) - y(value)):.1f}"/>'
        )
    for layer in _labelled(len(influence)):
        parts.append(_text(x(layer), bottom + 18, str(layer), anchor="middle"))
    return "".join(parts)


def _cka(compared: Mapping[str, Any]) -> str:
    """A square for each pair of states: the darker, the more alike."""
    rows: Sequence[Sequence[float]] = compared["cka"]
    left, top = WIDTH / 2 + 60, CURVE + TOP
    size = (LOWER - TOP - BOTTOM) / len(rows)
    parts = [_text(left, CURVE + 20, "CKA of the states after each number of layers", title=True)]
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            shade = round(255 - 190 * min(1.0, max(0.0, value)))
            parts.append(
                f"<g><title>{i}, {j}: {value:.3f}</title>"
                f'<rect x="{left + j * size:.1f}" y="{top + i * size:.1f}" width="{size:.1f}" '
                f'height="{size:.1f}" fill="rgb({shade},{shade},255)"/></g>'
            )
    for i in _labelled(len(rows)):
        middle = (i + 0.5) * size
        parts.append(_text(left - 6, top + middle + 4, str(i), anchor="end"))
        parts.append(_text(left + middle, top + size * len(rows) + 16, str(i), anchor="middle"))
    return "".join(parts)


def _labelled(count: int, first: int = 0) -> range:
    """The numbers from ``first`` below ``count`` that get a label."""
    return range(first, count, 1 + (count - first - 1) // MOST_LABELS)


def _text(x: float, y: float, text: str, *, anchor: str = "start", title: bool = False) -> str:
    kind = ' class="t"' if title else f' text-anchor="{anchor}"'
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, name: str = "", *, colour: str = "") -> str:
    kind = f'class="{name}"' if name else f'stroke="{colour}" stroke-width="1.4"'
    return f'<line {kind} x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
