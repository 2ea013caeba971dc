"""The rows of the report's tables: models and engines, controls, times."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from slmc.artefact import Artefact
from slmc.errors import UndecidedError
from slmc.evaluation.bootstrap import Bounds, Interval
from slmc.evaluation.metrics import LOWER_IS_BETTER
from slmc.pipeline.points import CONFIDENCE
from slmc.recipe.steps import COPY, Step
from slmc.report.training import still_improving

if TYPE_CHECKING:
    from slmc.pipeline import RunResult

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
    seeds: int = 1
    """Training seeds over whose mean the two are compared."""

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

    A step that is repeated has a row for each point, with the mean over the seeds.

    Args:
        result: The run.
        metric: Metric of the value and of the change.
        teacher: The step that the changes are relative to, as :func:`teacher_of` returns it.
        timed: Id of a bench step -> its timings.
    """
    reader = _RowReader(result, metric, teacher, timed)
    rows = []
    if _baselines(result) is not None:
        rows = [reader.baseline(name) for name in baseline_names(result)]
    for label, steps in measured_steps(result).items():
        if steps[0].stage == "sasrec" and rows:
            continue  # it has a row in the baselines
        kind: Kind = "engine" if steps[0].gives == "engine" else "model"
        rows.append(reader.row(label, "control" if steps[0].is_control else kind, steps))
    return rows


def baseline_names(result: "RunResult") -> list[str]:
    """The baselines: popularity, Markov-1, the SASRec among them, then the other SASRecs."""
    own = result.recipe.baseline_sasrec
    labels = [
        step.label
        for step in sorted(result.recipe.steps, key=lambda step: step.written != own)
        if step.stage == "sasrec"
    ]
    return list(dict.fromkeys(("popularity", "markov", *labels)))


@dataclass(frozen=True)
class _RowReader:
    """Reads the rows of the main table; the fields are the arguments of :func:`rows_of`."""

    result: "RunResult"
    metric: str
    teacher: str | None
    timed: Mapping[str, list[Timing]]

    def baseline(self, name: str) -> Row:
        """The row of popularity, Markov-1 or SASRec."""
        steps = [s for s in self.result.recipe.steps if s.stage == "sasrec" and s.label == name]
        done = self.result.artefacts()
        return self.row(name, "baseline", [step for step in steps if step.id in done])

    def row(self, name: str, kind: Kind, steps: Sequence[Step]) -> Row:
        """The row of all seeds of a point, or of a baseline without a step."""
        ids = [step.id for step in steps]
        done = self.result.artefacts()
        artefacts = [done[step_id] for step_id in ids]
        metrics: dict[str, Any] = artefacts[0].manifest.metrics if artefacts else {}
        tables = user_tables(self.result, name)
        value, half = mean_and_half(tables, self.metric, self.result)
        times = {t.batch: t for some in self.timed.values() for t in some if t.who in ids}
        first, many = times.get(LATENCY_BATCH), times.get(THROUGHPUT_BATCH)
        return Row(
            step=name,
            kind=kind,
            parameters=metrics.get("parameters"),
            size_mb=metrics.get("size_mb"),
            value=value,
            half=half,
            change=self._change(tables, steps),
            p50_ms=first.p50_ms if first else None,
            p99_ms=first.p99_ms if first else None,
            per_s=many.per_s if many else None,
            gate=_gate([name, *ids], self.result),
            still_improving=any(still_improving(artefact) for artefact in artefacts),
        )

    def _change(self, tables: Sequence[pl.DataFrame], steps: Sequence[Step]) -> Bounds | None:
        """The change against the teacher, or that of its copies from which a model is made."""
        if self.teacher is None or any(step.label == self.teacher for step in steps):
            return None
        written = self.teacher.partition(COPY)[0]
        chooser = self.result.chooser
        if any(step.written == written for step in steps) or not steps:
            others = chooser.copies(self.teacher)
        else:
            others = chooser.counterparts(steps, written) or chooser.copies(self.teacher)
        against = self.result.tables.of_all(others)
        interval = change_between(tables, against, self.metric, self.result)
        return interval.relative if interval is not None else None


def compare_controls(result: "RunResult") -> list[Comparison]:
    """Every step that has a control, in each metric, over all seeds."""
    comparisons = [
        _compare(result, label, steps, metric)
        for label, steps in measured_steps(result).items()
        for metric in result.recipe.evaluate.metrics
        if steps[0].is_control
    ]
    return [one for one in comparisons if one is not None]


def _compare(
    result: "RunResult", control: str, steps: Sequence[Step], metric: str
) -> Comparison | None:
    trained = [result.recipe.step(step.control_of) for step in steps if step.control_of is not None]
    ours, theirs = (result.tables.of_all(some) for some in (trained, steps))
    interval = change_between(ours, theirs, metric, result)
    value, other = (mean_of(tables, metric, result) for tables in (ours, theirs))
    if interval is None or value is None or other is None:
        return None
    return Comparison(
        step=trained[0].label,
        control=control,
        brings=f"what {LACKS.get(trained[0].stage, trained[0].label)} brings",
        metric=metric,
        value=value,
        control_value=other,
        change=interval.absolute,
        relative=None if metric in LOWER_IS_BETTER else interval.relative,
        n=ours[0].height,
        seeds=len(ours),
    )


def measured_steps(result: "RunResult") -> dict[str, list[Step]]:
    """The models and engines that were measured: a point -> the copies of its seeds."""
    by_label: dict[str, list[Step]] = {}
    for step_id in result.evaluations:
        step = result.recipe.step(step_id)
        by_label.setdefault(step.label, []).append(step)
    return by_label


def teacher_of(result: "RunResult") -> str | None:
    """The last teacher, of several points the best on validation; None if it was not measured."""
    steps = (s for s in reversed(result.recipe.steps) if s.stage == "teach" and not s.is_control)
    teacher = next((step.written for step in steps if step.id in result.evaluations), None)
    return teacher and best_label(result, teacher)


def best_label(result: "RunResult", written: str) -> str:
    """The measured point of a step that is the best on validation; if not known, the first."""
    labels = [label for label, some in measured_steps(result).items() if some[0].written == written]
    best = result.chooser.best_point(labels) if len(labels) > 1 else None
    return best or labels[0]


def user_tables(result: "RunResult", name: str) -> list[pl.DataFrame]:
    """Per-user tables of a model, an engine or a baseline, one for each seed; none if unmeasured.

    Args:
        result: The run.
        name: Id of a step, with or without its seed, or name of a baseline.
    """
    steps = [step for step in result.recipe.steps if name in (step.id, step.label)]
    if steps and steps[0].can_rank:
        return result.tables.of_all(steps)
    report = _baselines(result) if name in NAMES else None
    split = result.recipe.evaluate.split
    return [] if report is None else [pl.read_parquet(report.file(f"{name}/{split}.parquet"))]


def mean_of(tables: Sequence[pl.DataFrame], metric: str, result: "RunResult") -> float | None:
    """Mean of a metric over the users and seeds; None if it was not measured."""
    return mean_and_half(tables, metric, result)[0]


def mean_and_half(
    tables: Sequence[pl.DataFrame], metric: str, result: "RunResult"
) -> tuple[float | None, float | None]:
    """Mean of a metric over the users and seeds, and half of its 95 % interval.

    None if it was not measured; the half is None for a single user.
    """
    return _mean(_values(tables, metric, result), result.recipe.seed)


def change_between(
    tables: Sequence[pl.DataFrame],
    against: Sequence[pl.DataFrame],
    metric: str,
    result: "RunResult",
) -> Interval | None:
    """The change between two evaluations; None if not measured or if users or seeds differ.

    Args:
        tables: Per-user tables of the candidate, one for each seed.
        against: Per-user tables of the baseline, for the same seeds, or one.
        metric: Name of the metric.
        result: The run, for its protocol and seed.
    """
    from slmc.evaluation.comparison import change_over_seeds

    heights = {table.height for table in (*tables, *against)}
    if not tables or not against or len(heights) > 1 or heights == {0}:
        return None
    if {len(tables), len(against)} - {1, max(len(tables), len(against))}:
        return None
    seed = result.recipe.seed
    try:
        return change_over_seeds(
            tables, against, metric, result.protocol, seed=seed, confidence=CONFIDENCE
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


def _baselines(result: "RunResult") -> Artefact | None:
    """The report of the baselines; popularity and Markov-1 are the same in all its copies."""
    return next((s.artefact for s in result.steps if s.stage == "baselines"), None)


def _values(
    tables: Sequence[pl.DataFrame], metric: str, result: "RunResult"
) -> NDArray[np.float64] | None:
    """The metric ``[S, n]`` of each seed and user; None if not measured under this protocol."""
    from slmc.evaluation.results import values

    try:
        by_seed = [values(table, metric, result.protocol) for table in tables]
    except UndecidedError:
        return None
    return np.stack(by_seed) if by_seed else None


def _mean(values: NDArray[np.float64] | None, seed: int) -> tuple[float | None, float | None]:
    """Mean and half width of its 95 % interval."""
    from slmc.evaluation.bootstrap import mean_over_seeds

    if values is None or values.size == 0:
        return None, None
    if len(values) > 1:
        bounds = mean_over_seeds(values, seed=seed, confidence=CONFIDENCE)
        return bounds.change, (bounds.high - bounds.low) / 2
    (users,) = values
    half = Z * float(users.std(ddof=1)) / users.size**0.5 if users.size > 1 else None
    return float(users.mean()), half


def _gate(names: Sequence[str], result: "RunResult") -> str:
    on_it = [
        verdict.failed
        for i, verdict in enumerate(result.verdicts)
        if verdict.on in names and i not in result.advisory
    ]
    return "" if not on_it else "fail" if any(on_it) else "pass"
