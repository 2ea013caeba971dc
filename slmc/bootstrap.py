"""The paired bootstrap over users, and what a number of users can see. No torch here.

Letters: ``n`` users, ``R`` resamples.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 2000
DISTINCT = 4096
"""Up to so many distinct pairs of values, users are resampled by counts of them."""
BLOCK = 2048
"""Users of a block otherwise: its values stay in the processor's cache, its draws are 35 MB."""


@dataclass(frozen=True)
class Bounds:
    """A change, positive where the candidate's mean is larger, and its one-sided bounds."""

    change: float
    low: float
    high: float


@dataclass(frozen=True)
class Interval:
    """The change of a mean between two measurements of the same users."""

    absolute: Bounds
    relative: Bounds | None
    """Divided by the baseline's mean; none where that is 0, or is in too many resamples."""

    @property
    def change(self) -> float:
        """The absolute change."""
        return self.absolute.change

    @property
    def low(self) -> float:
        """Its one-sided lower bound."""
        return self.absolute.low

    @property
    def high(self) -> float:
        """Its one-sided upper bound."""
        return self.absolute.high


def paired_bootstrap(
    candidate: Floats,
    baseline: Floats,
    *,
    seed: int,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """Bounds of the change of the mean, users resampled with both their values (Efron 1979).

    The relative change is the ratio of the resampled means, less 1. Bounds are percentiles,
    taken outwards; each holds with ``confidence`` by itself.

    Args:
        candidate: ``[n]`` metric of each user.
        baseline: ``[n]`` of the same users.
        seed: Of the draws.
        confidence: One-sided.
        resamples: R.

    Raises:
        ValueError: No user, or different numbers of them.
    """
    if candidate.shape != baseline.shape or candidate.size == 0:
        raise ValueError(f"{candidate.shape} values against {baseline.shape}")
    change = candidate - baseline
    pairs = np.stack([change, baseline], axis=1)
    means = resampled_means(pairs, resamples=resamples, seed=seed)
    absolute = _bounds(float(change.mean()), means[:, 0], confidence)
    return Interval(absolute, _relative(change, baseline, means, confidence))


def resampled_means(values: Floats, *, resamples: int, seed: int) -> Floats:
    """Means of ``[n, m]`` values over n users drawn with replacement: ``[R, m]``.

    Users with the same values are alike, so where there are few distinct ones (hits and ranks
    up to k) the draw is one of their counts, whose cost does not grow with n.
    """
    rng = np.random.default_rng(seed)
    n = len(values)
    distinct, counts = np.unique(values, axis=0, return_counts=True)
    if len(distinct) <= DISTINCT:
        drawn = rng.multinomial(n, counts / n, size=resamples)
        means: Floats = (drawn @ distinct) / n
        return means
    return _resampled_in_blocks(values, rng, resamples) / n


def detectable_drop(
    values: Floats, *, confidence: float = 0.95, power: float = 0.8, correlation: float = 0.9
) -> float:
    """Smallest relative ``max_drop`` that an unchanged candidate passes with ``power``.

    A smaller budget is below what so many users can see. It follows from the spread of a cheap
    baseline's values: a candidate's are assumed to spread as much, and to correlate with its
    own baseline's by ``correlation``.

    Args:
        values: ``[n]`` metric of each user, of a baseline at hand.
        confidence: One-sided, of the gate.
        power: Chance to pass.
        correlation: Between candidate and baseline over users; .9 is cautious for an engine
            against its model (about 1) and fair for a student against its teacher.

    Returns:
        A share of the mean; infinite where the mean is 0 or there are under 2 users.
    """
    quantiles = NormalDist().inv_cdf(confidence) + NormalDist().inv_cdf(power)
    return quantiles * _relative_error(values, correlation)


def pass_chance(
    max_drop: float,
    values: Floats,
    *,
    relative: bool = True,
    confidence: float = 0.95,
    correlation: float = 0.9,
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
    error = _relative_error(values, correlation)
    if math.isinf(error):
        return 0.0
    if error == 0:
        return 1.0
    return NormalDist().cdf(max_drop / error - NormalDist().inv_cdf(confidence))


def _resampled_in_blocks(values: Floats, rng: np.random.Generator, resamples: int) -> Floats:
    """Sums of resampled users ``[R, m]``: how many fall into each block, then which.

    That is the same as drawing among all, without reading all over the memory.
    """
    blocks = np.array_split(values, math.ceil(len(values) / BLOCK))
    shares = np.array([len(block) for block in blocks]) / len(values)
    drawn = rng.multinomial(len(values), shares, size=resamples)
    sums = np.zeros((resamples, values.shape[1]))
    for block, counts in zip(blocks, drawn.T, strict=True):
        chosen = rng.integers(0, len(block), size=counts.sum(), dtype=np.uint16)
        # Blocks hold a thousand users at least, so that no resample leaves one out.
        starts = np.cumsum(counts) - counts
        for column in range(values.shape[1]):
            sums[:, column] += np.add.reduceat(block[:, column].take(chosen), starts)
    return sums


def _relative_error(values: Floats, correlation: float) -> float:
    """Standard error of the relative change: of n differences, each of variance 2 (1 - r) s2."""
    mean = abs(float(values.mean())) if values.size else 0.0
    if values.size < 2 or mean == 0:
        return math.inf
    spread = float(values.std(ddof=1)) * math.sqrt(2 * (1 - correlation))
    return spread / math.sqrt(values.size) / mean


def _relative(change: Floats, baseline: Floats, means: Floats, confidence: float) -> Bounds | None:
    if not change.any():
        return Bounds(0.0, 0.0, 0.0)  # whatever the baseline's mean, 0 included
    mean = float(baseline.mean())
    if mean == 0:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = means[:, 0] / means[:, 1]
    ratios[means[:, 0] == 0] = 0.0
    bounds = _bounds(float(change.mean()) / mean, ratios, confidence)
    return bounds if math.isfinite(bounds.low) and math.isfinite(bounds.high) else None


def _bounds(change: float, resampled: Floats, confidence: float) -> Bounds:
    low = np.quantile(resampled, 1 - confidence, method="lower")
    high = np.quantile(resampled, confidence, method="higher")
    return Bounds(change, float(low), float(high))
