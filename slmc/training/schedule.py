"""The learning rate of a run whose length nobody has to guess.

Warm-up, a constant rate for as long as ranking improves, then a linear decay to 0 from the best
weights (warmup-stable-decay: Hu et al. 2024, arXiv 2404.06395, section 4; linear decay: Hägele et
al. 2024, arXiv 2405.18392). An upper bound of the run starts the decay earlier, so that the rate
has always decayed when a run ends.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

DECAY = 0.3
"""Share of a run in which the rate decays."""
NOISE = 3.0
"""Standard deviations by which validations of equally good weights may differ."""
LARGEST_NOISE = 0.05
"""Share of the metric above which a difference is never taken for noise."""


@dataclass(frozen=True)
class Decay:
    """Where the decay begins, and for how many optimizer steps it lasts."""

    start: int
    steps: int

    @property
    def end(self) -> int:
        """The step at which the run is over."""
        return self.start + self.steps


def rate(step: int, warmup: int, decay: Decay | None) -> float:
    """Share of the peak learning rate at an optimizer step, counted from 0."""
    if decay is not None and step >= decay.start:
        return max(0.0, 1 - (step - decay.start) / decay.steps)
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def after(start: int, useful: int, *, least: int, most: int) -> Decay:
    """The decay that follows a constant phase.

    Args:
        start: Step at which it begins.
        useful: Steps of the constant phase that led to the best weights.
        least: Steps of the decay, at least.
        most: Steps that are left until the bound of the run.
    """
    steps = round(useful * DECAY / (1 - DECAY))
    return Decay(start, max(1, min(max(steps, least), most)))


def plateau(curve: Sequence[float], patience: int) -> bool:
    """Whether the last ``patience`` validations are on average no better than those before them.

    Means, since the best of many validations is one that chance favoured: waiting for a better
    one ends runs too early.
    """
    if len(curve) < 2 * patience:
        return False
    return sum(curve[-patience:]) <= sum(curve[-2 * patience : -patience])


def improving(curve: Sequence[float], patience: int) -> bool:
    """Whether a constant phase that a bound has cut short was still improving.

    As :func:`plateau` judges it, over fewer validations where there are few; with one alone
    nothing speaks against it.
    """
    window = min(patience, len(curve) // 2)
    return window == 0 or not plateau(curve, window)


def noise(curve: Sequence[float]) -> float:
    """How much better a validation may be by chance, from those near a plateau in their order.

    Weights jitter at a constant rate. Its size is that of the steps between neighbours, whose
    variance is twice that of one validation.
    """
    if len(curve) < 2:
        return 0.0
    steps = [after - before for before, after in pairwise(curve)]
    deviation = math.sqrt(sum(step**2 for step in steps) / len(steps) / 2)
    return min(NOISE * deviation, LARGEST_NOISE * max(abs(value) for value in curve))


def validations(steps: int, parts: int) -> list[int]:
    """Steps of an epoch after which the ranking is measured, ``parts`` of them, the last included.

    Args:
        steps: Optimizer steps of an epoch.
        parts: Validations of an epoch; fewer if it has fewer steps.
    """
    return sorted({max(1, round(part * steps / parts)) for part in range(1, parts + 1)})


def latest_start(total: int, marks: list[int]) -> int:
    """The step at which a run of ``total`` steps has to begin its decay.

    The validation nearest to it (of ``marks``, ascending), or the step itself where there is none
    between the ends of the run.
    """
    exact = max(1, round(total * (1 - DECAY)))
    between = [mark for mark in marks if mark < total]
    return min(between, key=lambda mark: abs(mark - exact), default=exact)
