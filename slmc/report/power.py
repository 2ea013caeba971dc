"""What so many users can and cannot show, in sentences."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

    from slmc.evaluation.gates import Gate
    from slmc.evaluation.results import Evaluation
    from slmc.pipeline import RunResult
    from slmc.report.tables import Row


def seen(
    result: "RunResult",
    teacher: str | None,
    rows: "Sequence[Row]",
) -> list[str]:
    """What the test set of a run can see, and which differences it does not show.

    Args:
        result: The run.
        teacher: Id of the step that the changes are against; None if there is none.
        rows: The main table.
    """
    if teacher is None:
        return []
    import polars as pl

    from slmc.errors import UndecidedError

    users = pl.read_parquet(result.evaluations[teacher].file("per_user.parquet"))
    last = next((r.step for r in reversed(rows) if _is_candidate(r, teacher)), None)
    measured = result.evaluations[last] if last is not None else None
    candidate = pl.read_parquet(measured.file("per_user.parquet")) if measured else None
    said = []
    for metric in result.recipe.evaluate.metrics:
        try:
            said.append(
                power_line(metric, users, result.protocol, candidate=candidate, name=last or "")
            )
        except UndecidedError:
            continue
    same = [r.step for r in rows if r.change is not None and r.change.low <= 0 <= r.change.high]
    if same:
        said.append(
            f"no difference to {teacher} is shown by {users.height:,} users for: {', '.join(same)}"
        )
    return said


def _is_candidate(row: "Row", teacher: str) -> bool:
    return row.kind in ("model", "engine") and row.step != teacher


def power_lines(
    gates: "Sequence[Gate]", candidate: "Evaluation", baseline: "Evaluation"
) -> list[str]:
    """For each metric that is gated by a drop, what this many users can see.

    Args:
        gates: The gates.
        candidate: What is judged: how much its values and the baseline's correlate.
        baseline: Whose values tell how much users differ.
    """
    chosen = {(g.metric, g.confidence): None for g in gates if g.max_drop is not None}
    return [
        power_line(
            metric,
            baseline.per_user,
            baseline.protocol,
            candidate=candidate.per_user,
            confidence=confidence,
        )
        for metric, confidence in chosen
    ]


def power_line(
    metric: str,
    per_user: "pl.DataFrame",
    protocol: Mapping[str, Any],
    *,
    candidate: "pl.DataFrame | None" = None,
    name: str = "",
    confidence: float = 0.95,
) -> str:
    """The smallest loss that these users can see, with its assumptions, in a sentence.

    Args:
        metric: Metric that would fall.
        per_user: Table of the baseline.
        protocol: Of the tables.
        candidate: Table of a candidate, the same users: its correlation with the baseline is
            measured. Without one it is assumed.
        name: What the candidate is called.
        confidence: One-sided, of a gate.
    """
    from slmc.evaluation.power import ASSUMED_CORRELATION, POWER, correlation_of, detectable_drop
    from slmc.evaluation.results import values

    ours = values(per_user, metric, protocol)
    if candidate is None:
        correlation, how = ASSUMED_CORRELATION, "assumed"
    else:
        correlation, how = correlation_of(values(candidate, metric, protocol), ours), "measured"
    drop = detectable_drop(ours, confidence=confidence, correlation=correlation)
    basis = (
        f"one-sided {100 * confidence:g} %, power {100 * POWER:g} %, correlation between "
        f"baseline and {name or 'candidate'} {correlation:.3g}, {how}"
    )
    if drop == float("inf"):
        return f"{metric}: {ours.size:,} users cannot see any relative loss ({basis})"
    return f"{metric}: {ours.size:,} users can see a loss of {100 * drop:.1f} % or more ({basis})"
