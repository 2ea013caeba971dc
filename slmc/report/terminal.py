"""Tables for the terminal."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from slmc.recipe.sweep import NUMBERED
from slmc.report import numbers

if TYPE_CHECKING:
    from slmc.evaluation.gates import Gate
    from slmc.evaluation.verdict import Verdict
    from slmc.pipeline.points import Against, PointResult
    from slmc.report.tables import Comparison, Row, Timing
    from slmc.report.targets import TargetTable
    from slmc.report.view import View

COLOURS = {"pass": "green", "fail": "red", "regression": "red", "inconclusive": "yellow"}


def headings(view: "View") -> list[str]:
    """Columns of the main table."""
    return [
        "step",
        "parameters",
        "MB",
        view.metric.upper(),
        f"change against {view.teacher}" if view.teacher else "change",
        "p50 / p99 ms, batch 1",
        "per s, batch 32",
        "gate",
    ]


def cells(row: "Row") -> list[str]:
    """A row of the main table as text."""
    time = numbers.NONE
    if row.p50_ms is not None:
        time = f"{numbers.milliseconds(row.p50_ms)} / {numbers.milliseconds(row.p99_ms)}"
    return [
        row.step + " *" * row.still_improving,
        numbers.parameters(row.parameters),
        numbers.megabytes(row.size_mb),
        numbers.value(row.value, row.half),
        numbers.change(row.change),
        time,
        numbers.rate(row.per_s),
        row.gate or numbers.NONE,
    ]


def run_table(view: "View") -> RenderableType:
    """Advice, main table, controls, gates and notes of a run."""
    table = Table(title=None, pad_edge=False)
    for i, heading in enumerate(headings(view)):
        table.add_column(heading, justify="left" if i in (0, 7) else "right")
    before = None
    for row in view.rows:
        if before == "baseline" and row.kind != "baseline":
            table.add_section()
        before = row.kind
        shown = cells(row)
        table.add_row(*shown[:-1], Text(shown[-1], style=COLOURS.get(row.gate, "")))
    lines: list[RenderableType] = [Text(line, style="bold yellow") for line in view.advice]
    lines += [table, Text(view.caption, style="dim")]
    if view.tied is not None:
        tied = Table(pad_edge=False)
        for i, heading in enumerate(view.tied.headings):
            tied.add_column(heading, justify="right" if i else "left")
        for cells_ in view.tied.cells:
            tied.add_row(*cells_)
        lines += [tied, Text(view.tied.caption, style="dim")]
    if view.points:
        lines += [
            points_table(view.points, view.select_by),
            Text(points_caption(view), style="dim"),
        ]
    if view.targets is not None:
        lines += [_targets(view.targets), *(Text(one) for one in view.targets.sentences)]
    lines += [Text(f"control {sentence_of(one)}") for one in view.comparisons]
    lines += [Text(f"{one.step} {one.sentence}") for one in view.depths]
    for one in view.judged:
        colour = COLOURS[one.verdict.outcome]
        mark = Text("gate ", style=colour)
        lines.append(mark.append(one.verdict.sentence, style="default"))
        if not one.binding:
            lines.append(Text("  not binding in this run", style="dim"))
    lines += [Text(f"note {note}", style="dim") for note in [*view.detectable, *view.notes]]
    return Group(*lines)


def points_table(points: "Sequence[PointResult]", select_by: str) -> Table:
    """The table of repeated steps."""
    table = Table(pad_edge=False)
    for i, heading in enumerate(point_headings(points, select_by)):
        table.add_column(heading, justify="left" if i == 0 else "right")
    for point in points:
        table.add_row(*point_cells(point))
    return table


def point_headings(points: "Sequence[PointResult]", select_by: str) -> list[str]:
    """Columns of the table of repeated steps; none without such steps."""
    if not points:
        return []
    return [
        "step",
        "seeds",
        f"validation {select_by.upper()}",
        points[0].metric.upper(),
        "spread",
        "each seed",
        "against its control",
        "against teacher or SASRec",
    ]


def point_cells(point: "PointResult") -> list[str]:
    """A repeated step at one point, as text."""
    interval = point.interval
    return [
        point.step + " (best)" * point.best,
        ", ".join(str(seed) for seed in point.seeds) or numbers.NONE,
        numbers.value(point.valid),
        f"{numbers.value(point.mean)} [{interval.low:.4f}, {interval.high:.4f}]",
        numbers.value(point.spread),
        ", ".join(numbers.value(value) for value in point.values) if point.seeds else numbers.NONE,
        against_of(point.control),
        against_of(point.baseline, named=True),
    ]


def against_of(one: "Against | None", *, named: bool = False) -> str:
    """A change with its interval, and the name of the step that it is relative to."""
    if one is None:
        return numbers.NONE
    change = numbers.change(one.relative or one.change, relative=one.relative is not None)
    return f"{one.step}: {change}" if named else change


def points_caption(view: "View") -> str:
    """Explains the table of repeated steps."""
    seeded = any(point.seeds for point in view.points)
    seeds = (
        " Spread is the standard deviation over the seeds; users and seeds are resampled, and each "
        "seed is compared with the same seed of the other step."
    )
    numbered = {
        point.step: point.settings
        for point in view.points
        if any(not _is_named(value, point.step) for value in point.settings.values())
    }
    settings = "; ".join(
        f"{name}: {', '.join(f'{key} {numbers.plain(value)}' for key, value in some.items())}"
        for name, some in numbered.items()
    )
    best = any(point.best for point in view.points)
    taken = {name: copy for name, copy in view.chosen.items() if name.endswith("@best")}
    chosen = ", ".join(f"{name} is {copy}" for name, copy in taken.items())
    return (
        f"{view.metric.upper()} with its two-sided 95 % interval; changes are paired over users."
        + seeds * seeded
        + f" (best): the best point on validation by {view.select_by}." * best
        + f" Chosen on validation for later steps: {chosen}." * bool(chosen)
        + f" Settings: {settings}." * bool(settings)
    )


def _is_named(value: object, step: str) -> bool:
    """Whether the id of a step shows a value of its settings, not only the value's number."""
    parts = re.split("[=,@]", step)
    if parts[1].startswith(NUMBERED):
        return False
    return not isinstance(value, str | list | dict) or value in parts


def _targets(targets: "TargetTable") -> Table:
    table = Table(pad_edge=False)
    for i, heading in enumerate(targets.headings):
        table.add_column(heading, justify="right" if i else "left")
    for row in targets.rows:
        table.add_row(row.step, *row.values)
    return table


def difference_of(one: "Comparison") -> str:
    """The change from control to step, with the 95 % interval: relative, but absolute for ce."""
    return numbers.change(one.relative or one.change, relative=one.relative is not None)


def sentence_of(one: "Comparison") -> str:
    """A step against its control, in a sentence."""
    seeds = f", mean over {one.seeds} seeds" if one.seeds > 1 else ""
    return (
        f"{one.metric} of {one.step} against {one.control}, {one.brings}: "
        f"{numbers.value(one.value)} against {numbers.value(one.control_value)}, "
        f"{difference_of(one)}, n = {one.n:,}{seeds}: {one.outcome}"
    )


def verdict_table(verdicts: "Sequence[Verdict]") -> Table:
    """A table with a row for each verdict."""
    table = Table(pad_edge=False)
    for heading in ("gate", "value", "baseline", "change", "n", "verdict"):
        table.add_column(heading, justify="left" if heading in ("gate", "verdict") else "right")
    for verdict in verdicts:
        outcome = verdict.outcome + (", anomalous" if verdict.anomalous else "")
        size = verdict.gate.metric == "size_mb"
        table.add_row(
            gate_text(verdict.gate),
            numbers.megabytes(verdict.value) if size else numbers.value(verdict.value),
            numbers.value(verdict.baseline_value),
            change_of(verdict),
            numbers.count(verdict.n) if verdict.n else numbers.NONE,
            Text(outcome, style=COLOURS[verdict.outcome]),
        )
    return table


def timing_table(timings: "Sequence[Timing]") -> Table:
    """A table with a row for each engine or model and batch size."""
    heads = ("what", "batch", "p50 ms", "p95 ms", "p99 ms", "histories per second", "calls")
    priced = any(one.per_million is not None for one in timings)
    table = Table(pad_edge=False)
    for heading in (*heads, "sessions x threads", *["cost of a million"] * priced):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for one in timings:
        latency = (numbers.milliseconds(ms) for ms in (one.p50_ms, one.p95_ms, one.p99_ms))
        table.add_row(
            one.who,
            str(one.batch),
            *latency,
            numbers.rate(one.per_s),
            numbers.count(one.calls),
            one.sessions or numbers.NONE,
            *[numbers.cost(one.per_million)] * priced,
        )
    return table


def metric_table(
    summaries: "Mapping[str, Mapping[str, Any]]", names: Sequence[str], valid_repeats: float | None
) -> RenderableType:
    """A table with the metrics of models and engines.

    Args:
        summaries: Name -> summary of its evaluation.
        names: The metrics, in order.
        valid_repeats: Share of repeats among validation targets; None if not known.
    """
    from slmc.evaluation.results import summary_text
    from slmc.report.tables import Z

    protocols = dict.fromkeys(
        f"{summary_text(one, valid_repeats)}, n = {one['n']:,}" for one in summaries.values()
    )
    table = Table(pad_edge=False)
    for heading in ("", *names):
        table.add_column(heading, justify="right" if heading else "left")
    for who, summary in summaries.items():
        metrics = [summary["metrics"].get(name, {}) for name in names]
        shown = [(one.get("value"), one.get("se")) for one in metrics]
        table.add_row(Text(who), *(numbers.value(value, se and Z * se) for value, se in shown))
    return Group(table, Text("; ".join(protocols), style="dim"))


def gate_text(gate: "Gate") -> str:
    """The condition of a gate: ``ndcg@10 max_drop 3%``."""
    bound = next(k for k in ("max_drop", "min", "max") if getattr(gate, k) is not None)
    segment = "" if gate.segment == "all" else f" ({gate.segment})"
    return f"{gate.metric}{segment} {bound} {getattr(gate, bound)}"


def change_of(verdict: "Verdict") -> str:
    """The change of a verdict with its one-sided bounds."""
    from slmc.evaluation.bootstrap import Bounds

    if verdict.change is None or verdict.low is None or verdict.high is None:
        return numbers.NONE
    bounds = Bounds(verdict.change, verdict.low, verdict.high)
    return numbers.change(bounds, relative=verdict.relative)
