"""Sentences on the smallest loss that the test set can detect."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

    from slmc.evaluation.gates import Gate
    from slmc.evaluation.results import Evaluation
    from slmc.pipeline import RunResult
    from slmc.report.tables import Row


def detectable(
    result: "RunResult",
    teacher: str | None,
    rows: "Sequence[Row]",
) -> list[str]:
    """The smallest loss that the test set of a run can detect, and the changes that it cannot show.

    Args:
        result: The run.
        teacher: Id of the teacher's step, the baseline of the changes; None if there is none.
        rows: The main table.
    """
    if teacher is None:
        return []
    from slmc.errors import UndecidedError
    from slmc.report.tables import user_tables

    # With several seeds, the first stands for all.
    users = user_tables(result, teacher)[0]
    last = next((r.step for r in reversed(rows) if _is_candidate(r, teacher)), None)
    candidate = user_tables(result, last)[0] if last is not None else None
    sentences = []
    for metric in result.recipe.evaluate.metrics:
        try:
            sentences.append(
                power_line(metric, users, result.protocol, candidate=candidate, name=last or "")
            )
        except UndecidedError:
            continue
    same = [r.step for r in rows if r.change is not None and r.change.low <= 0 <= r.change.high]
    if same:
        sentences.append(
            f"with {users.height:,} users there is no significant difference to {teacher} for: "
            f"{', '.join(same)}"
        )
    return sentences


def _is_candidate(row: "Row", teacher: str) -> bool:
    return row.kind in ("model", "engine") and row.step != teacher


def power_lines(
    gates: "Sequence[Gate]", candidate: "Evaluation", baseline: "Evaluation"
) -> list[str]:
    """For each metric with a ``max_drop`` gate, the smallest loss that these users can detect.

    Args:
        gates: The gates.
        candidate: The candidate, for the correlation with the baseline.
        baseline: The baseline, for the variance over users.
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
    """The smallest loss that these users can detect, with its assumptions, in a sentence.

    Args:
        metric: Name of the metric.
        per_user: Table of the baseline.
        protocol: Protocol of the tables.
        candidate: Table of a candidate with the same users, for the correlation with the baseline.
            Without one the correlation is assumed.
        name: Name of the candidate.
        confidence: One-sided confidence of a gate.
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
        return f"{metric}: {ours.size:,} users cannot detect any relative loss ({basis})"
    return (
        f"{metric}: {ours.size:,} users can detect a loss of {100 * drop:.1f} % or more ({basis})"
    )
