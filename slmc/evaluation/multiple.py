"""Multiple testing: paired comparisons with several baselines, corrected by Holm. No torch here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from slmc.evaluation.bootstrap import Bounds, Floats, paired_bootstrap
from slmc.evaluation.comparison import better_is_positive


@dataclass(frozen=True)
class Decision:
    """The comparison of a candidate with one of several baselines."""

    outcome: Literal["better", "not worse", "worse"]
    """better and worse are significant after the correction; not worse means neither."""
    bounds: Bounds
    """Absolute change, positive if the candidate is better, with bounds at ``confidence``."""
    confidence: float
    """One-sided level after the correction, at which ``outcome`` was decided."""


def compare_all(
    pairs: Sequence[tuple[Floats, Floats]],
    metric: str,
    *,
    seed: int,
    confidence: float = 0.95,
) -> list[Decision]:
    """Compare a candidate with several baselines, with a family-wise confidence.

    "Better" and "worse" are two families of one-sided tests, with one test per baseline. In each
    family the probability of any false claim is at most ``1 - confidence`` (see :func:`holm`).

    Args:
        pairs: For each baseline, the values ``[n]`` of the candidate and of the baseline, for the
            same users.
        metric: Of the values; for ``ce`` lower is better.
        seed: Of the bootstrap.
        confidence: One-sided, of a whole family.

    Returns:
        One decision per pair, in the same order.

    Raises:
        ValueError: A pair has no user, or arrays of different lengths.
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
    """The result of Holm's procedure for one hypothesis."""

    rejected: bool
    confidence: float
    """Confidence at which it was rejected, or last tested."""


def holm(count: int, rejects: Callable[[int, float], bool], confidence: float = 0.95) -> list[Step]:
    """Run Holm's step-down procedure (1979), which bounds the probability of any false rejection.

    With ``r`` hypotheses left, those rejected at ``1 - (1 - confidence) / r`` are removed; this
    repeats until none is rejected. It equals the usual procedure on sorted p-values, but only
    needs a test at a given level.

    Args:
        count: Number of hypotheses.
        rejects: Whether hypothesis ``i`` is rejected at a confidence; must be monotone: a
            hypothesis rejected at one confidence is rejected at every lower one.
        confidence: Smallest confidence of the whole family.
    """
    steps: dict[int, Step] = {}
    while left := [i for i in range(count) if i not in steps]:
        level = 1 - (1 - confidence) / len(left)
        rejected = {i: Step(True, level) for i in left if rejects(i, level)}
        steps |= rejected or {i: Step(False, level) for i in left}
    return [steps[i] for i in range(count)]
