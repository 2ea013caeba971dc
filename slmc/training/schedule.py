"""The learning-rate schedule, and early stopping, so that nobody has to guess the epochs.

Warm-up, a constant rate while ranking improves, then a linear decay to 0 from the best weights
(warmup-stable-decay: Hu et al. 2024, arXiv 2404.06395, section 4; linear decay: Hägele et al.
2024, arXiv 2405.18392). A limit on epochs or minutes starts the decay early enough that the rate
has decayed to 0 when the run ends.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

DECAY = 0.3
"""Share of a run that the decay takes."""
NOISE = 3.0
"""Validations that differ by at most this many standard deviations count as equally good."""
LARGEST_NOISE = 0.05
"""A difference above this share of the metric is never taken for noise."""


@dataclass(frozen=True)
class Decay:
    """First optimizer step and length of the learning-rate decay."""

    start: int
    steps: int

    @property
    def end(self) -> int:
        """Step at which the run ends."""
        return self.start + self.steps


def rate(step: int, warmup: int, decay: Decay | None) -> float:
    """Return the learning rate at a step, counted from 0, as a share of its peak."""
    if decay is not None and step >= decay.start:
        return max(0.0, 1 - (step - decay.start) / decay.steps)
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def after(start: int, useful: int, *, least: int, most: int) -> Decay:
    """Return the decay that follows a constant phase.

    Args:
        start: Step at which the decay begins.
        useful: Steps that led to the best weights.
        least: Fewest steps of the decay.
        most: Steps left until the limit of the run.
    """
    steps = round(useful * DECAY / (1 - DECAY))
    return Decay(start, max(1, min(max(steps, least), most)))


def plateau(curve: Sequence[float], patience: int) -> bool:
    """Return whether the last ``patience`` validations are on average no better than the previous.

    Means are compared because the best of many validations is partly luck: waiting for a single
    better one would end runs too early.
    """
    if len(curve) < 2 * patience:
        return False
    return sum(curve[-patience:]) <= sum(curve[-2 * patience : -patience])


def improving(curve: Sequence[float], patience: int) -> bool:
    """Return whether ranking still improved when a limit ended the constant phase.

    Uses :func:`plateau`, with a shorter window if there are few validations; a single validation
    counts as improving.
    """
    window = min(patience, len(curve) // 2)
    return window == 0 or not plateau(curve, window)


def noise(curve: Sequence[float]) -> float:
    """Return how much better a validation can be by chance, given those near a plateau in order.

    The weights fluctuate at a constant learning rate. The difference of two neighbouring
    validations has twice the variance of one.
    """
    if len(curve) < 2:
        return 0.0
    changes = [after - before for before, after in pairwise(curve)]
    deviation = math.sqrt(sum(change**2 for change in changes) / len(changes) / 2)
    return min(NOISE * deviation, LARGEST_NOISE * max(abs(value) for value in curve))


def validations(steps: int, parts: int) -> list[int]:
    """Return the steps of an epoch after which to validate: ``parts`` steps, including the last.

    Args:
        steps: Optimizer steps of an epoch.
        parts: Validations per epoch; fewer if the epoch has fewer steps.
    """
    return sorted({max(1, round(part * steps / parts)) for part in range(1, parts + 1)})


def latest_start(total: int, marks: list[int]) -> int:
    """Return the step at which a run of ``total`` steps must begin its decay.

    This is the validation (of ``marks``, ascending) nearest to the exact step, or the exact step
    if there is no validation before the end.
    """
    exact = max(1, round(total * (1 - DECAY)))
    between = [mark for mark in marks if mark < total]
    return min(between, key=lambda mark: abs(mark - exact), default=exact)
