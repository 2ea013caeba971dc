"""The result of a depth step: its table, and whether a depth is within the budget."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from slmc.artefact import Artefact
from slmc.errors import VerdictError
from slmc.evaluation.bootstrap import Bounds
from slmc.evaluation.results import protocol_text
from slmc.report import numbers

PLOT = "depth.svg"
NAMESPACE = "http://www.w3.org/2000/svg"


@dataclass(frozen=True)
class DepthResult:
    """A depth step in the report of a run."""

    step: str
    sentence: str
    plot: str
    """SVG."""


def result(step: str, report: Artefact) -> DepthResult:
    """What the report of a run shows of a depth step."""
    # A page that holds an SVG needs no namespace, and names no address.
    svg = plot(report).replace(f' xmlns="{NAMESPACE}"', "")
    return DepthResult(step, report.manifest.metrics["sentence"], svg)


def read(report: Artefact) -> dict[str, Any]:
    """The numbers of a depth report."""
    content: dict[str, Any] = json.loads(report.file("metrics.json").read_bytes())
    return content


def plot(report: Artefact) -> str:
    """The plot of a depth report as SVG."""
    return report.file(PLOT).read_text(encoding="utf-8")


def table(content: Mapping[str, Any]) -> RenderableType:
    """A row for each number of layers, a column for each way of choosing them."""
    ways, teacher = content["ways"], content["teacher"]
    rows = Table(pad_edge=False)
    for heading in ("layers", "parameters", *ways):
        rows.add_column(heading, justify="right")
    depths = sorted({one["depth"] for way in ways.values() for one in way["depths"]}, reverse=True)
    value = numbers.value(teacher["value"])
    rows.add_row(
        str(teacher["layers"]), numbers.parameters(teacher["parameters"]), *[value] * len(ways)
    )
    for depth in depths:
        points = [_at(way, depth) for way in ways.values()]
        parameters = next(one["parameters"] for one in points if one is not None)
        cells = [Text(_cell(one), style=_style(one)) for one in points]
        rows.add_row(str(depth), numbers.parameters(parameters), *cells)
    caption = (
        f"{content['metric'].upper()} and its change against all layers: {content['n']:,} "
        f"validation users, {protocol_text(content['protocol'])}; one-sided "
        f"{100 * content['confidence']:g} % bounds, not corrected for the number of choices. "
        f"Green: within {content['max_drop']}."
    )
    redundancy = content["redundancy"]
    influence = ", ".join(f"{i} {x:.3f}" for i, x in enumerate(redundancy["influence"]))
    return Group(rows, Text(caption, style="dim"), Text(f"influence by layer: {influence}"))


def check(content: Mapping[str, Any]) -> None:
    """Raise ``VerdictError`` if no depth is within the budget."""
    if content["choice"] is not None:
        return
    trained = "trained" in content["ways"]
    fit = "train them longer (--fit.epochs)" if trained else "fit students with --train"
    remedy = f"Allow a larger --max-drop, or {fit}."
    if (least := content["detectable"]) is not None:
        users = f"{content['n']:,} users can detect a loss of about {100 * least:.2g} %"
        remedy = f"{remedy} {users}; --users ranks more."
    raise VerdictError(f"depth: {content['sentence']}.", remedy)


def _at(way: Mapping[str, Any], depth: int) -> Mapping[str, Any] | None:
    return next((one for one in way["depths"] if one["depth"] == depth), None)


def _cell(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return numbers.NONE
    relative = one["relative"]
    bounds = Bounds(**(relative or one["change"]))
    return f"{one['value']:.4f} {numbers.change(bounds, relative=relative is not None)}"


def _style(one: Mapping[str, Any] | None) -> str:
    return "green" if one is not None and one["within"] else ""
