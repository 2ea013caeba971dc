"""What so many users can and cannot show, in sentences."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

    from slmc.gates import Gate
    from slmc.measured import Measured
    from slmc.pipeline import RunResult
    from slmc.report.tables import Row

POWER, CORRELATION = 0.8, 0.9


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
    said = []
    for metric in result.recipe.evaluate.metrics:
        try:
            said.append(power_line(metric, users, result.protocol))
        except UndecidedError:
            continue
    same = [r.step for r in rows if r.change is not None and r.change.low <= 0 <= r.change.high]
    if same:
        said.append(
            f"no difference to {teacher} is shown by {users.height:,} users for: {', '.join(same)}"
        )
    return said


def power_lines(gates: "Sequence[Gate]", baseline: "Measured") -> list[str]:
    """For each metric that is gated by a drop, what this many users can see.

    Args:
        gates: The gates.
        baseline: Whose values tell how much users differ.
    """
    chosen = {(g.metric, g.confidence): None for g in gates if g.max_drop is not None}
    return [
        power_line(metric, baseline.per_user, baseline.protocol, confidence=confidence)
        for metric, confidence in chosen
    ]


def power_line(
    metric: str,
    per_user: "pl.DataFrame",
    protocol: Mapping[str, Any],
    *,
    confidence: float = 0.95,
) -> str:
    """The smallest loss that these users can see, with its assumptions, in a sentence."""
    from slmc.bootstrap import detectable_drop
    from slmc.measured import values

    found = values(per_user, metric, protocol)
    drop = detectable_drop(found, confidence=confidence, power=POWER, correlation=CORRELATION)
    basis = (
        f"one-sided {100 * confidence:g} %, power {100 * POWER:g} %, correlation between "
        f"baseline and candidate {CORRELATION:g}"
    )
    if drop == float("inf"):
        return f"{metric}: {found.size:,} users cannot see any relative loss ({basis})"
    return f"{metric}: {found.size:,} users can see a loss of {100 * drop:.1f} % or more ({basis})"
