"""The rows of the report's tables: models and engines, controls, times."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from slmc.artefact import Artefact
from slmc.errors import UndecidedError
from slmc.evaluation.bootstrap import Bounds, Interval
from slmc.evaluation.metrics import LOWER_IS_BETTER
from slmc.report.training import still_improving

if TYPE_CHECKING:
    from slmc.pipeline import RunResult
    from slmc.recipe import Recipe

CONFIDENCE = 0.975
"""One-sided confidence of each bound: together a two-sided 95 % interval."""
Z = 1.96
"""Half width of a 95 % interval in standard errors."""
NAMES = ("popularity", "markov", "sasrec")
LACKS = {"teach": "pretraining", "distill": "distilling"}
"""Stage -> what its control lacks."""
LATENCY_BATCH, THROUGHPUT_BATCH = 1, 32

Kind = Literal["baseline", "model", "control", "engine"]


@dataclass(frozen=True)
class Timing:
    """Latency and throughput of an engine or a model at one batch size."""

    who: str
    batch: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    per_s: float
    """Throughput: histories per second."""
    calls: int
    """Number of timed calls."""
    mean_length: float
    """Mean length of the histories."""
    sessions: str
    """Sessions x threads, for latency and for throughput; empty for a model."""
    per_million: float | None = None
    """Cost of a million histories at this throughput; None if no price is known."""


@dataclass(frozen=True)
class Row:
    """A row of the main table."""

    step: str
    kind: Kind
    parameters: int | None
    size_mb: float | None
    value: float | None
    half: float | None
    """Half width of the value's 95 % interval."""
    change: Bounds | None
    """Relative change against the teacher; None for the teacher, and if it is not defined."""
    p50_ms: float | None
    p99_ms: float | None
    per_s: float | None
    gate: str
    """``pass`` if every gate on it passed, ``fail`` if one failed, empty without gates."""
    still_improving: bool = False
    """Whether its training ended at a limit while ranking still improved."""


@dataclass(frozen=True)
class Comparison:
    """A step against its control, in one metric, paired over users."""

    step: str
    control: str
    brings: str
    """The effect that the difference measures, in words."""
    metric: str
    value: float
    control_value: float
    change: Bounds
    """Absolute: step minus control."""
    relative: Bounds | None
    """Relative to the control's value; None for ce, and if that value is 0."""
    n: int

    @property
    def outcome(self) -> str:
        """``better``, ``worse`` or ``no significant difference``, by the 95 % interval."""
        if self.change.low <= 0 <= self.change.high:
            return "no significant difference"
        gained = (self.change.low > 0) != (self.metric in LOWER_IS_BETTER)
        return "better" if gained else "worse"


def rows_of(
    result: "RunResult",
    *,
    metric: str,
    teacher: str | None,
    timed: Mapping[str, list[Timing]],
) -> list[Row]:
    """The main table: baselines, then models and engines in the order of the run.

    Args:
        result: The run.
        metric: Metric of the value and of the change.
        teacher: Id of the step that the changes are relative to.
        timed: Id of a bench step -> its timings.
    """
    against = user_table(result, teacher) if teacher else None
    reader = _RowReader(result, metric, teacher, against, timed)
    made_by = {step.stage: step.id for step in result.steps}
    rows = [
        reader.row(name, "baseline", _baseline_table(name, report, result), made_by.get(name))
        for name, report in _baseline_tables(result).items()
    ]
    for step_id, report in result.evaluations.items():
        step = result.recipe.step(step_id)
        if step.stage == "sasrec" and rows:
            continue  # it has a row in the baselines
        kind: Kind = "engine" if step.gives == "engine" else "model"
        kind = "control" if step.is_control else kind
        rows.append(reader.row(step_id, kind, _per_user(report), step_id))
    return rows


@dataclass(frozen=True)
class _RowReader:
    """Reads the rows of the main table; the fields are the arguments of :func:`rows_of`."""

    result: "RunResult"
    metric: str
    teacher: str | None
    against: pl.DataFrame | None
    """Per-user table of the teacher's evaluation."""
    timed: Mapping[str, list[Timing]]

    def row(self, name: str, kind: Kind, table: pl.DataFrame, step_id: str | None) -> Row:
        """The row of a step's artefact, or of a baseline without a step (``step_id`` None)."""
        artefact = self.result.artefacts().get(step_id or "")
        metrics: dict[str, Any] = artefact.manifest.metrics if artefact is not None else {}
        value, half = _mean(_values(table, self.metric, self.result))
        times = {t.batch: t for some in self.timed.values() for t in some if t.who == step_id}
        first, many = times.get(LATENCY_BATCH), times.get(THROUGHPUT_BATCH)
        is_teacher = self.teacher is not None and step_id == self.teacher
        return Row(
            step=name,
            kind=kind,
            parameters=metrics.get("parameters"),
            size_mb=metrics.get("size_mb"),
            value=value,
            half=half,
            change=None if is_teacher else self._change(table),
            p50_ms=first.p50_ms if first else None,
            p99_ms=first.p99_ms if first else None,
            per_s=many.per_s if many else None,
            gate=_gate(step_id, self.result),
            still_improving=artefact is not None and still_improving(artefact),
        )

    def _change(self, table: pl.DataFrame) -> Bounds | None:
        if self.against is None:
            return None
        interval = change_between(table, self.against, self.metric, self.result)
        return interval.relative if interval is not None else None


def compare_controls(result: "RunResult") -> list[Comparison]:
    """Every step that has a control, in each metric."""
    steps = [result.recipe.step(step_id) for step_id in result.evaluations]
    comparisons = [
        _compare(result, step.control_of, step.id, metric)
        for step in steps
        if step.control_of is not None
        for metric in result.recipe.evaluate.metrics
    ]
    return [one for one in comparisons if one is not None]


def _compare(result: "RunResult", step: str, control: str, metric: str) -> Comparison | None:
    ours, theirs = (user_table(result, name) for name in (step, control))
    if ours is None or theirs is None:
        return None
    value, other = (mean_of(table, metric, result) for table in (ours, theirs))
    interval = change_between(ours, theirs, metric, result)
    if interval is None or value is None or other is None:
        return None
    return Comparison(
        step=step,
        control=control,
        brings=f"what {LACKS.get(result.recipe.step(step).stage, step)} brings",
        metric=metric,
        value=value,
        control_value=other,
        change=interval.absolute,
        relative=None if metric in LOWER_IS_BETTER else interval.relative,
        n=ours.height,
    )


def ranking_metric(recipe: "Recipe") -> str | None:
    """The first ranking metric of a recipe, not a cross-entropy; None if it has none."""
    return next((name for name in recipe.evaluate.metrics if name not in LOWER_IS_BETTER), None)


def teacher_of(result: "RunResult") -> str | None:
    """Id of the last teacher; None if it was not measured."""
    steps = (s for s in reversed(result.recipe.steps) if s.stage == "teach" and not s.is_control)
    return next((step.id for step in steps if step.id in result.evaluations), None)


def user_table(result: "RunResult", name: str) -> pl.DataFrame | None:
    """Per-user table of a model, an engine or a baseline; None if it was not measured."""
    if name in result.evaluations:
        return _per_user(result.evaluations[name])
    report = _baseline_tables(result).get(name)
    return None if report is None else _baseline_table(name, report, result)


def mean_of(table: pl.DataFrame, metric: str, result: "RunResult") -> float | None:
    """Mean of a metric over the users; None if it was not measured."""
    return _mean(_values(table, metric, result))[0]


def change_between(
    table: pl.DataFrame,
    against: pl.DataFrame,
    metric: str,
    result: "RunResult",
) -> Interval | None:
    """The change between two evaluations; None if not measured or if the users differ.

    Args:
        table: Per-user table of the candidate.
        against: Per-user table of the baseline.
        metric: Name of the metric.
        result: The run, for its protocol and seed.
    """
    from slmc.evaluation.comparison import paired_change

    if table.height != against.height or table.height == 0:
        return None
    seed = result.recipe.seed
    try:
        return paired_change(
            table, against, metric, result.protocol, seed=seed, confidence=CONFIDENCE
        )
    except UndecidedError:
        return None


def cost_per_million(price_per_hour: float, per_s: float) -> float:
    """Cost of a million histories on cores that are busy all the time.

    Args:
        price_per_hour: Of all cores that reach the throughput.
        per_s: Throughput, histories per second.
    """
    return price_per_hour / 3600 / per_s * 1e6


def timings(
    bench: Artefact, names: Mapping[str, str], price_per_hour: float | None = None
) -> list[Timing]:
    """The timings of a bench report: of the engine, and of the baseline if there is one.

    Args:
        bench: The report.
        names: Role (``engine``, ``baseline``) -> id of its step.
        price_per_hour: For the cost of a million histories.
    """
    batches = json.loads(bench.file("metrics.json").read_bytes())["batches"]
    return [
        Timing(
            who=names[role],
            batch=int(batch),
            p50_ms=timed[role]["latency_ms"]["p50"],
            p95_ms=timed[role]["latency_ms"]["p95"],
            p99_ms=timed[role]["latency_ms"]["p99"],
            per_s=timed[role]["throughput"],
            calls=timed["calls"],
            mean_length=timed["mean_length"],
            sessions=" / ".join(timed["sessions"].values()) if role == "engine" else "",
            per_million=None
            if price_per_hour is None
            else cost_per_million(price_per_hour, timed[role]["throughput"]),
        )
        for batch, timed in batches.items()
        for role in ("engine", "baseline")
        if role in timed and role in names
    ]


def _baseline_tables(result: "RunResult") -> dict[str, Artefact]:
    report = next((s.artefact for s in result.steps if s.stage == "baselines"), None)
    return {name: report for name in NAMES} if report is not None else {}


def _baseline_table(name: str, report: Artefact, result: "RunResult") -> pl.DataFrame:
    return pl.read_parquet(report.file(f"{name}/{result.recipe.evaluate.split}.parquet"))


def _per_user(report: Artefact) -> pl.DataFrame:
    return pl.read_parquet(report.file("per_user.parquet"))


def _values(table: pl.DataFrame, metric: str, result: "RunResult") -> NDArray[np.float64] | None:
    """The metric of each user; None if it was not measured under this protocol."""
    from slmc.evaluation.results import values

    try:
        return values(table, metric, result.protocol)
    except UndecidedError:
        return None


def _mean(values: NDArray[np.float64] | None) -> tuple[float | None, float | None]:
    """Mean and half width of its 95 % interval."""
    if values is None or values.size == 0:
        return None, None
    half = Z * float(values.std(ddof=1)) / values.size**0.5 if values.size > 1 else None
    return float(values.mean()), half


def _gate(step_id: str | None, result: "RunResult") -> str:
    on_it = [
        verdict.failed
        for i, verdict in enumerate(result.verdicts)
        if verdict.on == step_id and i not in result.advisory
    ]
    return "" if not on_it else "fail" if any(on_it) else "pass"
