"""Confidence bounds of a mean and of a paired change, users resampled. No torch here.

Resampling alone does not hold where few users differ: a sample in which nobody lost says nothing
of the users who were not drawn, and its bootstrap bounds lie at 0. So each bound counts one more
user, of the largest loss (or gain) that a user can have, and gives all users, this one included,
random weights of mean 1 (the Bayesian bootstrap, Rubin 1981):

    bound of the mean = quantile of (sum of w_u x_u + w_0 worst) / (sum of w_u + w_0)

That is Gaffke's bound (2005; Learned-Miller & Thomas 2019, "A new confidence interval for the
mean of a bounded random variable"). For values of 0 and 1 it is Clopper and Pearson's exact
bound, hence the rule of three where nothing was seen, and for many users it is the bootstrap's.
No case in which it fails is known, and a proof for all cases is not known either;
``tests/evaluation/test_verdict_simulation.py`` shows how often it holds. Where enough users differ
the additional user has half a weight (as in Jeffreys' interval): the bound is then as wide as it
says, and not wider.

Letters: ``n`` users, ``R`` resamples, ``S`` training seeds.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Term = tuple[float, float]
"""What one user adds to the numerator and to the denominator of a ratio."""

RESAMPLES = 2000
BLOCK = 2048
"""Users whose weights are drawn at once: 16 MB."""
GAMMA_COST = 8
"""Exponential draws in the time of one gamma draw, about."""
ENOUGH = 20.0
"""From so many users on, counted by :func:`effective_users`, the additional user has half a weight.

Where losses are as different as NDCG@10's, that is about 50 users whose values differ."""


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
    """Divided by the baseline's mean; none where that is 0."""

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


UNCHANGED = Interval(Bounds(0.0, 0.0, 0.0), Bounds(0.0, 0.0, 0.0))
"""Of two measurements that are known to be the same for users who were not drawn as well."""


def paired_bootstrap(
    candidate: Floats,
    baseline: Floats,
    *,
    seed: int,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """Bounds of the change of the mean, users resampled with both their values.

    The relative change is the ratio of the means, less 1. A metric in [0, 1] can fall by 1 or
    rise by 1 for a user who was not drawn. For another (cross-entropy, which has no largest
    value) the largest fall and rise that were seen stand in for that, and the bounds are those
    of a bootstrap, not exact ones. Equal values are not a change of 0 for every user: see
    :data:`UNCHANGED`.

    Args:
        candidate: ``[n]`` metric of each user.
        baseline: ``[n]`` of the same users.
        seed: Of the draws.
        confidence: One-sided, of each bound by itself.
        resamples: R.

    Raises:
        ValueError: No user, or different numbers of them.
    """
    if candidate.shape != baseline.shape or candidate.size == 0:
        raise ValueError(f"{candidate.shape} values against {baseline.shape}")
    return _interval(candidate, baseline, np.random.default_rng(seed), confidence, resamples)


def paired_over_seeds(
    candidate: Floats,
    baseline: Floats,
    *,
    seed: int,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """Bounds of the change of the mean over training seeds: other users and other seeds.

    Users are resampled as in :func:`paired_bootstrap`, with their means over the seeds. The error
    of having so few seeds is added to each resample: it is drawn from Student's t with S - 1
    degrees of freedom, scaled by the part of the spread between seeds that users do not explain
    (:func:`seed_error`). Drawing the S seeds themselves anew gives intervals that are too short:
    with three seeds that differ more than users do, 87 % of those of 95 % hold, and 97 % of these
    (``tests/evaluation/test_verdict_simulation.py``). Limits: the seeds' effects are taken as
    normal, which three of them cannot show, and with two seeds the intervals are too wide to be of
    use.

    Args:
        candidate: ``[S, n]`` metric of each user, for each seed.
        baseline: ``[S, n]`` of the same users, trained with the same seeds; or ``[n]`` of a
            baseline that all seeds share.
        seed: Of the draws.
        confidence: One-sided, of each bound by itself.
        resamples: R.

    Raises:
        ValueError: Fewer than two seeds, no user, or arrays that do not pair.
    """
    seeds = len(candidate)
    if (
        candidate.ndim != 2
        or candidate.shape[-baseline.ndim :] != baseline.shape
        or candidate.size == 0
        or seeds < 2
    ):
        raise ValueError(f"{candidate.shape} values [S, n] against {baseline.shape}")
    baseline = np.broadcast_to(baseline, candidate.shape)
    change, mean = candidate - baseline, float(baseline.mean())
    ratio = float(change.mean()) / mean if mean else 0.0
    rng = np.random.default_rng(seed)
    drawn = rng.standard_t(seeds - 1, size=resamples)
    absolute = drawn * seed_error(change)
    relative = drawn * (seed_error(change - ratio * baseline) / mean if mean else 0.0)
    return _interval(
        candidate.mean(axis=0), baseline.mean(axis=0), rng, confidence, resamples,
        absolute_error=absolute, relative_error=relative,
    )  # fmt: skip


def seed_error(changes: Floats) -> float:
    """Standard error of a mean over seeds that is due to the seeds, of changes ``[S, n]``.

    The variance between the seeds' means, less that of what users and seeds do together (the
    residual of a two-way layout): resampling the users covers the latter already.
    """
    seeds, n = changes.shape
    means = changes.mean(axis=1)
    residual = changes - means[:, None] - changes.mean(axis=0) + changes.mean()
    together = float((residual**2).sum()) / ((seeds - 1) * max(1, n - 1))
    return math.sqrt(max(0.0, float(means.var(ddof=1)) - together / n) / seeds)


def mean_bounds(
    values: Floats, *, seed: int, confidence: float = 0.95, resamples: int = RESAMPLES
) -> Bounds:
    """The mean of ``[n]`` values of users and its one-sided bounds, as :func:`paired_bootstrap`.

    Raises:
        ValueError: No user.
    """
    if values.size == 0:
        raise ValueError("no values")
    rng = np.random.default_rng(seed)
    sums, _, weights = resampled_sums(values, np.zeros_like(values), resamples=resamples, rng=rng)
    ends = (0.0, 1.0) if _within_unit(values) else (float(values.min()), float(values.max()))
    return _bounds(
        sums, weights, (ends[0], 1.0), (ends[1], 1.0), float(values.mean()),
        effective_users(values - values.mean()), confidence, rng,
    )  # fmt: skip


def resampled_sums(
    first: Floats, second: Floats, *, resamples: int, rng: np.random.Generator
) -> Floats:
    """Sums over n users with random weights, exponential of mean 1: ``[3, R]``.

    They are those of ``first``, of ``second`` and of the weights themselves. Users with the same
    values are alike, so where many are (hits and ranks up to k) one gamma draw is the weight of
    them all.

    Args:
        first: ``[n]``.
        second: ``[n]``.
        resamples: R.
        rng: Of the weights.
    """
    pairs, counts = np.unique(first + 1j * second, return_counts=True)
    if pairs.size * GAMMA_COST < first.size:
        weights = rng.standard_gamma(counts.astype(np.float64), size=(resamples, pairs.size))
        sums: Floats = weights @ np.stack([pairs.real, pairs.imag, np.ones(pairs.size)], axis=1)
        return sums.T
    columns = np.stack([first, second, np.ones(first.size)], axis=1).astype(np.float32)
    sums = np.zeros((resamples, 3))
    for start in range(0, first.size, BLOCK):
        block = columns[start : start + BLOCK]
        sums += rng.standard_exponential((resamples, len(block)), dtype=np.float32) @ block
    return sums.T


def effective_users(deviations: Floats) -> float:
    """How many users a spread rests on: n divided by the kurtosis, of ``[n]`` deviations.

    It is the number of users whose deviation is not 0, where these are equally large; 0 where
    there are none.
    """
    squares = deviations**2
    fourth = float((squares**2).sum())
    return float(squares.sum()) ** 2 / fourth if fourth > 0 else 0.0


def _within_unit(*arrays: Floats) -> bool:
    return all(float(a.min()) >= 0 and float(a.max()) <= 1 for a in arrays)


def _interval(
    candidate: Floats,
    baseline: Floats,
    rng: np.random.Generator,
    confidence: float,
    resamples: int,
    *,
    absolute_error: Floats | float = 0.0,
    relative_error: Floats | float = 0.0,
) -> Interval:
    """Both changes of ``[n]`` pairs; errors ``[R]`` of another source are added to resamples."""
    change, mean = candidate - baseline, float(baseline.mean())
    changes, bases, weights = resampled_sums(change, baseline, resamples=resamples, rng=rng)
    fall, rise = (-1.0, 1.0), (1.0, 0.0)  # change and baseline of the additional user
    if not _within_unit(candidate, baseline):
        fall, rise = (
            (float(change[i]), float(baseline[i])) for i in (change.argmin(), change.argmax())
        )
    absolute = _bounds(
        changes, weights, (fall[0], 1.0), (rise[0], 1.0), float(change.mean()),
        effective_users(change - change.mean()), confidence, rng, absolute_error,
    )  # fmt: skip
    if mean == 0:
        return Interval(absolute, None)
    ratio = float(change.mean()) / mean
    relative = _bounds(
        changes, bases, fall, rise, ratio,
        effective_users(change - ratio * baseline), confidence, rng, relative_error,
    )  # fmt: skip
    return Interval(absolute, relative)


def _bounds(
    numerators: Floats,
    denominators: Floats,
    fall: Term,
    rise: Term,
    estimate: float,
    effective: float,
    confidence: float,
    rng: np.random.Generator,
    error: Floats | float = 0.0,
) -> Bounds:
    """Bounds of a ratio from its resampled sums ``[R]`` and the terms of the additional user.

    ``error`` ``[R]``, of another source, is added to each resampled ratio.
    """
    shape = 0.5 if effective >= ENOUGH else 1.0
    weight = rng.standard_gamma(shape, size=numerators.size)
    falls, rises = (
        (numerators + weight * term[0]) / (denominators + weight * term[1]) + error
        for term in (fall, rise)
    )
    low = float(np.quantile(falls, 1 - confidence, method="lower"))
    high = float(np.quantile(rises, confidence, method="higher"))
    return Bounds(estimate, min(low, estimate), max(high, estimate))
