"""Statistical power: minimum detectable effect, and users needed to decide. No torch here."""

import math
from statistics import NormalDist

import numpy as np

from slmc.evaluation.bootstrap import Floats

POWER = 0.8
"""Probability with which a gate should pass a candidate that is as good as its baseline."""
ASSUMED_CORRELATION = 0.9
"""Assumed correlation of candidate and baseline over users, before both are evaluated: realistic
for a student and its teacher, cautious for an engine and its model (about 1)."""


def detectable_drop(
    values: Floats,
    *,
    confidence: float = 0.95,
    power: float = POWER,
    correlation: float = ASSUMED_CORRELATION,
) -> float:
    """Return the minimum detectable effect: the smallest ``max_drop`` of sufficient power.

    A candidate as good as its baseline passes it with probability ``power``. The standard error
    is estimated from a baseline: a candidate is assumed to have the same variance, and the given
    correlation with it. The part of the bound due to the additional user (:func:`least_drop`) is
    added as an independent error.

    Args:
        values: ``[n]`` metric of each user, of an evaluated baseline.
        confidence: One-sided, of the gate.
        power: Probability to pass.
        correlation: Of candidate and baseline over users.

    Returns:
        A share of the mean; infinite if the mean is 0 or there are fewer than 2 users.
    """
    quantiles = NormalDist().inv_cdf(confidence) + NormalDist().inv_cdf(power)
    spread = quantiles * _relative_error(values, correlation)
    return math.hypot(spread, least_drop(values, confidence=confidence))


def least_drop(values: Floats, *, confidence: float = 0.95) -> float:
    """Return the relative loss that is possible although no user of the sample has a loss.

    For a metric in [0, 1] whose values sum to ``s``, this is ``-log(1 - confidence) / s`` (the
    rule of three). Only identical rankings pass a smaller ``max_drop``.

    Returns:
        A share of the mean; 0 for values above 1 (cross-entropy), infinite if the mean is 0.
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
) -> float:
    """Return the probability that a candidate as good as its baseline passes ``max_drop``.

    Args:
        max_drop: Budget; a share of the mean, or absolute.
        values: As in :func:`detectable_drop`; :data:`ASSUMED_CORRELATION` applies.
        relative: Whether ``max_drop`` is a share.
        confidence: One-sided, of the gate.
    """
    mean = abs(float(values.mean())) if values.size else 0.0
    if not relative:
        max_drop = max_drop / mean if mean else 0.0
    error = _relative_error(values, ASSUMED_CORRELATION)
    least = least_drop(values, confidence=confidence)
    if math.isinf(error) or max_drop < least:
        return 0.0
    if error == 0:
        return 1.0
    room = math.sqrt(max_drop**2 - least**2)
    return NormalDist().cdf(room / error - NormalDist().inv_cdf(confidence))


def correlation_of(candidate: Floats, baseline: Floats) -> float:
    """Return the correlation of ``[n]`` paired values over users; 1 if they are equal.

    If either is constant the correlation is undefined, and :data:`ASSUMED_CORRELATION` is returned.
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
) -> int:
    """Estimate the users needed to decide with power :data:`POWER`, if the change stays the same.

    The distance ``reach`` between estimate and bound has two parts: the standard error shrinks
    with the square root of n, the part of the additional user with n.

    Args:
        n: Users of the evaluation.
        room: Distance of the estimate from the limit, above 0.
        reach: Distance of the estimate from the bound on the other side of the limit.
        error: Standard error of the estimate.
        confidence: One-sided, of the bound.
    """
    z = NormalDist().inv_cdf(confidence)
    spread = error * (z + NormalDist().inv_cdf(POWER))
    rest = max(0.0, reach - z * error)
    # room = spread * x + rest * x^2 with x = sqrt(n / N)
    x = 2 * room / (spread + math.sqrt(spread**2 + 4 * rest * room))
    return max(n + 1, math.ceil(n / x**2))


def _relative_error(values: Floats, correlation: float) -> float:
    """Return the standard error of the relative change of n pairs of variance 2 (1 - r) s2."""
    mean = abs(float(values.mean())) if values.size else 0.0
    if values.size < 2 or mean == 0:
        return math.inf
    spread = float(values.std(ddof=1)) * math.sqrt(max(0.0, 2 * (1 - correlation)))
    return spread / math.sqrt(values.size) / mean
