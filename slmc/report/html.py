"""``report.html``: one self-contained file, also for phones and dark mode."""

import math
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from slmc.config import parse_budget
from slmc.evaluation.bootstrap import Bounds
from slmc.report import numbers, tradeoff
from slmc.report.curves import Curves
from slmc.report.markdown import CONTROLS, TARGETS
from slmc.report.terminal import (
    cells,
    change_of,
    difference_of,
    gate_text,
    headings,
    point_cells,
    point_headings,
    points_caption,
)
from slmc.report.view import Judged, View

WIDTH, HEIGHT = 600.0, 180.0


@dataclass(frozen=True)
class Plot:
    """An interval on a line; positions in percent of the width."""

    low: float
    mid: float
    high: float
    zero: float
    limit: float | None
    """Limit of the gate's budget."""


@dataclass(frozen=True)
class Line:
    """A curve in a picture of :data:`WIDTH` x :data:`HEIGHT`."""

    term: str
    points: str
    first: str
    last: str


def page(view: View) -> str:
    """The report of a run as one HTML file; every text is escaped."""
    environment = Environment(
        loader=PackageLoader("slmc.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        view=view,
        headings=headings(view),
        rows=[(row, cells(row)) for row in view.rows],
        gates=[
            (one, gate_text(one.verdict.gate), change_of(one.verdict), plot(one))
            for one in view.judged
        ],
        changes=[(row, interval(row.change)) for row in view.rows if row.change is not None],
        point_headings=point_headings(view.points, view.select_by),
        points=[point_cells(point) for point in view.points],
        points_caption=points_caption(view),
        controls=[(one, difference_of(one)) for one in view.comparisons],
        controls_text=CONTROLS,
        targets_title=TARGETS,
        curves=[(one, lines(one)) for one in view.curves],
        # Our own SVGs with escaped texts, so they are markup.
        depths=[(one, Markup(one.plot)) for one in view.depths],
        tradeoff=Markup(tradeoff.picture(view.rows, view.metric) or ""),
        numbers=numbers,
        width=WIDTH,
        height=HEIGHT,
    )


def plot(one: Judged) -> Plot | None:
    """The change of a gate with its bounds and its budget; None without a comparison."""
    verdict = one.verdict
    if verdict.change is None or verdict.low is None or verdict.high is None:
        return None
    limit = -parse_budget(verdict.gate.max_drop)[0] if verdict.gate.max_drop is not None else None
    return interval(Bounds(verdict.change, verdict.low, verdict.high), limit)


def interval(bounds: Bounds | None, limit: float | None = None) -> Plot | None:
    """Bounds on a line whose centre is 0."""
    if bounds is None:
        return None
    shown = [bounds.low, bounds.high, bounds.change, limit or 0.0]
    reach = 1.1 * max(abs(x) for x in shown) or 1.0

    def at(x: float) -> float:
        return round(50 + 50 * x / reach, 2)

    ends = at(bounds.low), at(bounds.change), at(bounds.high)
    return Plot(*ends, at(0.0), at(limit) if limit is not None else None)


def lines(curves: Curves) -> list[Line]:
    """The curve of each term, on its own scale."""
    drawn = []
    for term, points in curves.terms.items():
        finite = [(x, y) for x, y in points if math.isfinite(y)]
        if len(finite) < 2:
            continue
        (left, right), low, high = (finite[0][0], finite[-1][0]), *_range([y for _, y in finite])
        path = " ".join(
            f"{WIDTH * (x - left) / ((right - left) or 1):.1f},"
            f"{HEIGHT - HEIGHT * (y - low) / (high - low):.1f}"
            for x, y in finite
        )
        drawn.append(Line(term, path, f"{finite[0][1]:.4g}", f"{finite[-1][1]:.4g}"))
    return drawn


def _range(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
