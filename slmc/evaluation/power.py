"""What a number of users can see: detectable losses and users needed. No torch here."""

import math
from statistics import NormalDist

import numpy as np

from slmc.evaluation.bootstrap import Floats

POWER = 0.8
"""Chance to pass that a gate should leave to a candidate as good as its baseline."""
ASSUMED_CORRELATION = 0.9
"""Between the values of candidate and baseline, before both are measured: fair for a student
against its teacher, cautious for an engine against its model (about 1)."""


def detectable_drop(
    values: Floats,
    *,
    confidence: float = 0.95,
    power: float = POWER,
    correlation: float = ASSUMED_CORRELATION,
) -> float:
    """Smallest relative ``max_drop`` that an unchanged candidate passes with ``power``.

    A smaller budget is below what so many users can see. It follows from the spread of a
    baseline's values: a candidate's are assumed to spread as much, and to correlate with its
    own baseline's by ``correlation``. The bound's part for users who were not drawn
    (:func:`least_drop`) is added as an independent error.

    Args:
        values: ``[n]`` metric of each user, of a baseline at hand.
        confidence: One-sided, of the gate.
        power: Chance to pass.
        correlation: Between candidate and baseline over users.

    Returns:
        A share of the mean; infinite where the mean is 0 or there are under 2 users.
    """
    quantiles = NormalDist().inv_cdf(confidence) + NormalDist().inv_cdf(power)
    spread = quantiles * _relative_error(values, correlation)
    return math.hypot(spread, least_drop(values, confidence=confidence))


def least_drop(values: Floats, *, confidence: float = 0.95) -> float:
    """The relative loss that users who were not drawn could have, though none differs here.

    For a metric in [0, 1]: of users whose baseline values sum to ``s``, none lost; one of each
    ``s / -log(1 - confidence)`` others could still lose all (the rule of three). A smaller
    ``max_drop`` is passed by identical rankings alone.

    Returns:
        A share of the mean, 0 for values above 1 (cross-entropy); infinite where the mean is 0.
    """
    if values.size == 0 or values.max() > 1:
        return 0.0
    total = float(values.sum())
    return -math.log(1 - confidence) / total if total > 0 else math.inf


def pass_chance(
    max_drop: float,
    values: Floats,
    *,
    relative: bool = True,
    confidence: float = 0.95,
    correlation: float = ASSUMED_CORRELATION,
) -> float:
    """Chance that a candidate as good as its baseline passes ``max_drop``, in [0, 1].

    Args:
        max_drop: Budget; a share of the mean, or absolute.
        values: As in :func:`detectable_drop`, with the same assumption.
        relative: Whether ``max_drop`` is a share.
        confidence: One-sided, of the gate.
        correlation: As in :func:`detectable_drop`.
    """
    mean = abs(float(values.mean())) if values.size else 0.0
    if not relative:
        max_drop = max_drop / mean if mean else 0.0
    error, least = _relative_error(values, correlation), least_drop(values, confidence=confidence)
    if math.isinf(error) or max_drop < least:
        return 0.0
    if error == 0:
        return 1.0
    room = math.sqrt(max_drop**2 - least**2)
    return NormalDist().cdf(room / error - NormalDist().inv_cdf(confidence))


def correlation_of(candidate: Floats, baseline: Floats) -> float:
    """Correlation of ``[n]`` paired values over users; 1 where they are equal.

    Where either does not vary there is none, and :data:`ASSUMED_CORRELATION` is returned.
    """
    if np.array_equal(candidate, baseline):
        return 1.0
    if candidate.size < 2 or candidate.std() == 0 or baseline.std() == 0:
        return ASSUMED_CORRELATION
    return float(np.corrcoef(candidate, baseline)[0, 1])


def users_needed(
    n: int,
    *,
    room: float,
    reach: float,
    error: float,
    confidence: float,
    power: float = POWER,
) -> int:
    """About how many users would decide with ``power``, if the change stays what it is.

    Of the distance ``reach`` between estimate and bound, the part of the spread shrinks with the
    square root of the users; the rest, for users who were not drawn, shrinks with their number.

    Args:
        n: Users at hand.
        room: Distance of the estimate from the limit, above 0.
        reach: Distance of the estimate from the bound that has not cleared the limit.
        error: Standard error of the estimate.
        confidence: One-sided, of the bound.
        power: Chance that the bound clears the limit.
    """
    z = NormalDist().inv_cdf(confidence)
    spread = error * (z + NormalDist().inv_cdf(power))
    rest = max(0.0, reach - z * error)
    # room = spread * x + rest * x^2 with x = sqrt(n / N)
    x = 2 * room / (spread + math.sqrt(spread**2 + 4 * rest * room))
    return max(n + 1, math.ceil(n / x**2))


def _relative_error(values: Floats, correlation: float) -> float:
    """Standard error of the relative change: of n differences, each of variance 2 (1 - r) s2."""
    mean = abs(float(values.mean())) if values.size else 0.0
    if values.size < 2 or mean == 0:
        return math.inf
    spread = float(values.std(ddof=1)) * math.sqrt(max(0.0, 2 * (1 - correlation)))
    return spread / math.sqrt(values.size) / mean
