"""Several opponents at once: Holm's correction of paired comparisons. No torch here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from slmc.evaluation.bootstrap import Bounds, Floats, paired_bootstrap
from slmc.evaluation.verdict import better_is_positive


@dataclass(frozen=True)
class Decision:
    """A candidate against one of several opponents."""

    outcome: Literal["better", "not worse", "worse"]
    """better and worse are significant after the correction; not worse is neither."""
    bounds: Bounds
    """Absolute change, positive where the candidate is better, with bounds at ``confidence``."""
    confidence: float
    """One-sided, after the correction: the level at which ``outcome`` was decided."""


def compare_all(
    pairs: Sequence[tuple[Floats, Floats]],
    metric: str,
    *,
    seed: int,
    confidence: float = 0.95,
) -> list[Decision]:
    """Compare a candidate with every opponent, at a confidence that holds for all together.

    "Better" and "worse" are two families of one-sided tests, with one test for each opponent.
    In each family the chance of any false claim is at most ``1 - confidence`` (see :func:`holm`).

    Args:
        pairs: For each opponent, the candidate's values and the opponent's, ``[n]`` each, of the
            same users.
        metric: What the values are; for ``ce`` a lower value is better.
        seed: Of the bootstrap.
        confidence: One-sided, of a whole family.

    Returns:
        One decision for each pair, in their order.

    Raises:
        ValueError: A pair has no user, or different numbers of them.
    """

    def bounds(i: int, level: float) -> Bounds:
        change = paired_bootstrap(*pairs[i], seed=seed, confidence=level).absolute
        return better_is_positive(change, metric)

    better = holm(len(pairs), lambda i, level: bounds(i, level).low > 0, confidence)
    worse = holm(len(pairs), lambda i, level: bounds(i, level).high < 0, confidence)
    decisions = []
    for i, (above, below) in enumerate(zip(better, worse, strict=True)):
        if above.rejected or below.rejected:
            level = above.confidence if above.rejected else below.confidence
            outcome: Literal["better", "worse"] = "better" if above.rejected else "worse"
            decisions.append(Decision(outcome, bounds(i, level), level))
        else:
            level = max(above.confidence, below.confidence)
            decisions.append(Decision("not worse", bounds(i, level), level))
    return decisions


@dataclass(frozen=True)
class Step:
    """What Holm's procedure says of one hypothesis."""

    rejected: bool
    confidence: float
    """The level at which it was rejected, or was last tested."""


def holm(count: int, rejects: Callable[[int, float], bool], confidence: float = 0.95) -> list[Step]:
    """Holm's step-down procedure (1979): the chance of any false rejection is bounded.

    While ``r`` hypotheses are left, those that are rejected at ``1 - (1 - confidence) / r`` leave,
    until none is. This decides as the order of p-values does, and needs only a test at a level.

    Args:
        count: Number of hypotheses.
        rejects: Whether hypothesis ``i`` is rejected at a confidence; one that is rejected at a
            confidence is rejected at every lower one.
        confidence: Of the whole family, at least.
    """
    steps: dict[int, Step] = {}
    while left := [i for i in range(count) if i not in steps]:
        level = 1 - (1 - confidence) / len(left)
        rejected = {i: Step(True, level) for i in left if rejects(i, level)}
        steps |= rejected or {i: Step(False, level) for i in left}
    return [steps[i] for i in range(count)]
