"""The rows of the report's tables: models and engines, controls, times."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from slmc.artefact import Artefact
from slmc.bootstrap import Bounds, Interval
from slmc.errors import UndecidedError

if TYPE_CHECKING:
    from slmc.pipeline import RunResult

CONFIDENCE = 0.975
"""One-sided, of each bound: together a two-sided interval of 95 %."""
Z = 1.96
"""Half of a 95 % interval in standard errors."""
NAMES = ("popularity", "markov", "sasrec")
LATENCY_BATCH, THROUGHPUT_BATCH = 1, 32

Kind = Literal["baseline", "model", "control", "engine"]


@dataclass(frozen=True)
class Timing:
    """Times of an engine or a model at one batch size."""

    who: str
    batch: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    per_s: float
    """Histories a second."""
    calls: int
    """Timed calls that the numbers are of."""
    mean_length: float
    """Mean length of the histories that were answered."""
    sessions: str
    """Sessions times threads, for latency and for throughput; empty for a model."""


@dataclass(frozen=True)
class Row:
    """A line of the main table."""

    step: str
    kind: Kind
    parameters: int | None
    size_mb: float | None
    value: float | None
    half: float | None
    """Half of the value's 95 % interval."""
    change: Bounds | None
    """Relative, against the teacher; None for the teacher, and where it cannot be told."""
    p50_ms: float | None
    p99_ms: float | None
    per_s: float | None
    gate: str
    """``pass`` if every gate on it passed, ``fail`` if one did not, else empty."""


@dataclass(frozen=True)
class Comparison:
    """A student against its control, in one metric."""

    student: str
    control: str
    metric: str
    student_value: float
    control_value: float
    change: Bounds
    """Absolute, student less control."""
    n: int


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
        teacher: Id of the step that the changes are against.
        timed: Id of a bench step -> its times.
    """
    made = result.artefacts()
    against = _per_user(result.evaluations[teacher]) if teacher else None
    rows = [
        _baseline_row(name, table, metric, against, result)
        for name, table in _baseline_tables(result).items()
    ]
    for step_id, report in result.evaluations.items():
        artefact = made[step_id]
        table = _per_user(report)
        time = {t.batch: t for times in timed.values() for t in times if t.who == step_id}
        first, many = time.get(LATENCY_BATCH), time.get(THROUGHPUT_BATCH)
        value, half = _mean(_values(table, metric, result))
        metrics = artefact.manifest.metrics
        kind: Kind = "engine" if artefact.manifest.kind == "engine" else "model"
        rows.append(
            Row(
                step=step_id,
                kind="control" if step_id.endswith(".control") else kind,
                parameters=metrics.get("parameters"),
                size_mb=metrics.get("size_mb"),
                value=value,
                half=half,
                change=None if step_id == teacher else _relative(table, against, metric, result),
                p50_ms=first.p50_ms if first else None,
                p99_ms=first.p99_ms if first else None,
                per_s=many.per_s if many else None,
                gate=_gate(step_id, result),
            )
        )
    return rows


def compare_controls(result: "RunResult") -> list[Comparison]:
    """Every student beside the same student without its teacher, in each metric, paired."""
    found = []
    for control, report in result.evaluations.items():
        student = control.removesuffix(".control")
        if student == control or student not in result.evaluations:
            continue
        ours, theirs = (_per_user(r) for r in (result.evaluations[student], report))
        for metric in result.recipe.evaluate.metrics:
            mine, others = (_values(table, metric, result) for table in (ours, theirs))
            interval = _change(ours, theirs, metric, result)
            if mine is None or others is None or interval is None:
                continue
            found.append(
                Comparison(
                    student=student,
                    control=control,
                    metric=metric,
                    student_value=float(mine.mean()),
                    control_value=float(others.mean()),
                    change=interval.absolute,
                    n=mine.size,
                )
            )
    return found


def timings(bench: Artefact, names: Mapping[str, str]) -> list[Timing]:
    """What a bench report has timed, the engine and, where there was one, its baseline.

    Args:
        bench: The report.
        names: Role (``engine``, ``baseline``) -> id of the step in it.
    """
    batches = json.loads(bench.file("metrics.json").read_bytes())["batches"]
    return [
        Timing(
            who=names[role],
            batch=int(batch),
            p50_ms=found[role]["latency_ms"]["p50"],
            p95_ms=found[role]["latency_ms"]["p95"],
            p99_ms=found[role]["latency_ms"]["p99"],
            per_s=found[role]["throughput"],
            calls=found["calls"],
            mean_length=found["mean_length"],
            sessions=" / ".join(found["sessions"].values()) if role == "engine" else "",
        )
        for batch, found in batches.items()
        for role in ("engine", "baseline")
        if role in found and role in names
    ]


def _baseline_tables(result: "RunResult") -> dict[str, Artefact]:
    report = next((s.artefact for s in result.steps if s.stage == "baselines"), None)
    return {name: report for name in NAMES} if report is not None else {}


def _baseline_row(
    name: str,
    report: Artefact,
    metric: str,
    against: pl.DataFrame | None,
    result: "RunResult",
) -> Row:
    table = pl.read_parquet(report.file(f"{name}/{result.recipe.evaluate.split}.parquet"))
    value, half = _mean(_values(table, metric, result))
    made = next((s.artefact for s in result.steps if s.stage == name), None)
    metrics: dict[str, Any] = made.manifest.metrics if made is not None else {}
    return Row(
        step=name,
        kind="baseline",
        parameters=metrics.get("parameters"),
        size_mb=metrics.get("size_mb"),
        value=value,
        half=half,
        change=_relative(table, against, metric, result),
        p50_ms=None,
        p99_ms=None,
        per_s=None,
        gate="",
    )


def _per_user(report: Artefact) -> pl.DataFrame:
    return pl.read_parquet(report.file("per_user.parquet"))


def _values(table: pl.DataFrame, metric: str, result: "RunResult") -> NDArray[np.float64] | None:
    """The metric of each user; None where it was not measured in this way."""
    from slmc.measured import protocol, values

    try:
        return values(table, metric, protocol(result.recipe.evaluate))
    except UndecidedError:
        return None


def _mean(mine: NDArray[np.float64] | None) -> tuple[float | None, float | None]:
    if mine is None or mine.size == 0:
        return None, None
    half = Z * float(mine.std(ddof=1)) / mine.size**0.5 if mine.size > 1 else None
    return float(mine.mean()), half


def _relative(
    table: pl.DataFrame, against: pl.DataFrame | None, metric: str, result: "RunResult"
) -> Bounds | None:
    interval = _change(table, against, metric, result) if against is not None else None
    return interval.relative if interval is not None else None


def _change(
    table: pl.DataFrame, against: pl.DataFrame, metric: str, result: "RunResult"
) -> Interval | None:
    """The change between two tables; None where it was not measured, or of other users."""
    from slmc.measured import protocol
    from slmc.verdict import paired_change

    if table.height != against.height or table.height == 0:
        return None
    asked, seed = protocol(result.recipe.evaluate), result.recipe.seed
    try:
        return paired_change(table, against, metric, asked, seed=seed, confidence=CONFIDENCE)
    except UndecidedError:
        return None


def _gate(step_id: str, result: "RunResult") -> str:
    on_it = [
        verdict.failed
        for i, verdict in enumerate(result.verdicts)
        if verdict.on == step_id and i not in result.advisory
    ]
    return "" if not on_it else "fail" if any(on_it) else "pass"
