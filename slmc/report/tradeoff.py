"""SVG plots of ranking against size and latency of every engine, with the Pareto frontier."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from slmc.evaluation.plot import TEXT, axis
from slmc.report.tables import Row

WIDTH, HEIGHT = 860.0, 330.0
"""Size of one panel."""
LEFT, RIGHT, TOP, BOTTOM = 70.0, 150.0, 34.0, 46.0
FEWEST = 3
"""Smallest number of points for a plot."""
GAP = 13.0
"""Smallest distance of two labels."""
STYLE = (
    f"{TEXT}"
    ".g{stroke:#ddd}.e{stroke:#7a8fb0;stroke-width:1.4}.p{fill:#1f5fbf}.o{fill:#9aa7ba}"
    ".f{fill:none;stroke:#1f5fbf;stroke-width:1.6;stroke-dasharray:5 3}"
)


@dataclass(frozen=True)
class Point:
    """The cost (size or latency) and the ranking of an engine."""

    name: str
    cost: float
    value: float
    half: float


def picture(rows: Sequence[Row], metric: str) -> str | None:
    """Two panels, size and latency, for the engines of a run; None if there are too few.

    Args:
        rows: The main table.
        metric: Name of the metric in the rows.
    """
    engines = [row for row in rows if row.kind == "engine"]
    panels = [
        (f"{metric.upper()} and size, MB", _points(engines, lambda row: row.size_mb)),
        (f"{metric.upper()} and latency, ms at batch 1", _points(engines, lambda row: row.p50_ms)),
    ]
    drawn = [(title, points) for title, points in panels if len(points) >= FEWEST]
    if not drawn:
        return None
    height = HEIGHT * len(drawn)
    body = "".join(_panel(title, points, HEIGHT * i) for i, (title, points) in enumerate(drawn))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:.0f} {height:.0f}" '
        f'role="img" aria-label="{escape(metric)} of every engine against its cost">'
        f"<style>{STYLE}</style>"
        f'<rect width="{WIDTH:.0f}" height="{height:.0f}" fill="#fff"/>{body}</svg>'
    )


def frontier(points: Sequence[Point]) -> list[Point]:
    """The Pareto frontier: points that no cheaper point beats, cheapest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, -p.value)):
        if not best or point.value > best[-1].value:
            best.append(point)
    return best


def _points(rows: Sequence[Row], cost: Callable[[Row], float | None]) -> list[Point]:
    return [
        Point(row.step, value, row.value, row.half or 0.0)
        for row in rows
        if (value := cost(row)) is not None and row.value is not None
    ]


def _panel(title: str, points: Sequence[Point], top: float) -> str:
    costs = [math.log10(point.cost) for point in points]
    x = axis(min(costs), max(costs), LEFT, WIDTH - RIGHT)
    low = min(point.value - point.half for point in points)
    high = max(point.value + point.half for point in points)
    y = axis(low, high, top + HEIGHT - BOTTOM, top + TOP)
    parts = [f'<text class="t" x="{LEFT:.0f}" y="{top + 20:.0f}">{escape(title)}</text>']
    for cost in _ticks(min(p.cost for p in points), max(p.cost for p in points)):
        at = x(math.log10(cost))
        parts.append(
            f'<line class="g" x1="{at:.1f}" x2="{at:.1f}" y1="{top + TOP:.1f}" '
            f'y2="{top + HEIGHT - BOTTOM:.1f}"/><text text-anchor="middle" x="{at:.1f}" '
            f'y="{top + HEIGHT - BOTTOM + 18:.1f}">{cost:g}</text>'
        )
    for share in (0.0, 0.5, 1.0):
        value = low + share * (high - low)
        parts.append(
            f'<line class="g" x1="{LEFT:.0f}" x2="{WIDTH - RIGHT:.0f}" y1="{y(value):.1f}" '
            f'y2="{y(value):.1f}"/><text text-anchor="end" x="{LEFT - 8:.0f}" '
            f'y="{y(value) + 4:.1f}">{value:.3f}</text>'
        )
    best = frontier(points)
    line = " ".join(f"{x(math.log10(p.cost)):.1f},{y(p.value):.1f}" for p in best)
    parts.append(f'<polyline class="f" points="{line}"/>')
    parts += [_mark(p, x(math.log10(p.cost)), y, p in best) for p in points]
    return "".join(parts) + _labels(points, x, y)


def _mark(point: Point, at: float, y: Callable[[float], float], best: bool) -> str:
    return (
        f'<line class="e" x1="{at:.1f}" x2="{at:.1f}" y1="{y(point.value - point.half):.1f}" '
        f'y2="{y(point.value + point.half):.1f}"/>'
        f'<circle class="{"p" if best else "o"}" cx="{at:.1f}" cy="{y(point.value):.1f}" r="4"/>'
    )


def _labels(
    points: Sequence[Point], x: Callable[[float], float], y: Callable[[float], float]
) -> str:
    """Names to the right of their points, moved down if they would overlap."""
    placed: list[tuple[float, float]] = []
    parts = []
    for point in sorted(points, key=lambda p: y(p.value)):
        across, down = x(math.log10(point.cost)) + 8, y(point.value) + 4
        while any(abs(across - a) < 110 and abs(down - d) < GAP for a, d in placed):
            down += GAP
        placed.append((across, down))
        parts.append(f'<text x="{across:.1f}" y="{down:.1f}">{escape(point.name)}</text>')
    return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers (1, 2 and 5 times a power of ten) between ``low`` and ``high``."""
    round_numbers = [
        step * 10.0**power
        for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for step in (1, 2, 5)
    ]
    inside = [value for value in round_numbers if low * 0.95 <= value <= high * 1.05]
    return inside or [low, high]
