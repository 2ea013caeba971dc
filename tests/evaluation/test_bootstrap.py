import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmc.evaluation.bootstrap import (
    BLOCK,
    ENOUGH,
    GAMMA_COST,
    UNCHANGED,
    effective_users,
    mean_bounds,
    paired_bootstrap,
    paired_over_seeds,
    resampled_sums,
    seed_error,
)


def normal(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(6.0, 2.0, n)


def hits(n: int, share: float, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(n) < share).astype(float)


def exact(losses: int, n: int, confidence: float = 0.95) -> float:
    """Clopper and Pearson's upper bound of a share, by bisection on the binomial tail."""
    low, high = losses / n, 1.0
    for _ in range(60):
        share = (low + high) / 2
        tail = sum(math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(losses + 1))
        low, high = (share, high) if tail > 1 - confidence else (low, share)
    return low


@pytest.mark.parametrize(("losses", "n"), [(0, 1), (0, 40), (1, 40), (3, 200), (0, 1000)])
def test_the_bound_of_few_losses_is_exact(losses: int, n: int) -> None:
    """All users have a hit in the baseline, some lose it: the number of losses is binomial."""
    candidate = np.r_[np.zeros(losses), np.ones(n - losses)]
    interval = paired_bootstrap(candidate, np.ones(n), seed=1, resamples=200_000)
    assert -interval.low == pytest.approx(exact(losses, n), rel=0.02)
    assert interval.relative is not None
    assert -interval.relative.low == pytest.approx(exact(losses, n), rel=0.02)
    assert 1 - mean_bounds(candidate, seed=1, resamples=200_000).low == pytest.approx(
        exact(losses, n), rel=0.02
    )


def test_equal_values_give_the_rule_of_three() -> None:
    baseline = hits(5000, 0.04)
    interval = paired_bootstrap(baseline, baseline, seed=1, resamples=100_000)
    assert interval.change == 0.0
    assert interval.low == pytest.approx(-3 / 5000, rel=0.02)
    assert interval.high == pytest.approx(3 / 5000, rel=0.02)
    assert interval.relative is not None
    assert interval.relative.low == pytest.approx(-3 / (3 + baseline.sum()), rel=0.02)


def test_equal_unbounded_values_give_an_interval_of_zero() -> None:
    baseline = normal(50)
    interval = paired_bootstrap(baseline, baseline, seed=1)
    assert (interval.absolute, interval.relative) == (UNCHANGED.absolute, UNCHANGED.relative)


@pytest.mark.parametrize("n", [1000, 20_000])  # one block of weights, and several
def test_bounds_are_normal_for_normal_values(n: int) -> None:
    assert (n <= BLOCK) == (n == 1000)
    baseline, noise = normal(n), np.random.default_rng(1).normal(0.1, 0.5, n)
    interval = paired_bootstrap(baseline + noise, baseline, seed=2)
    error = noise.std() / math.sqrt(n)
    assert interval.change == pytest.approx(noise.mean(), abs=1e-12)
    assert interval.low == pytest.approx(noise.mean() - 1.645 * error, abs=0.15 * error)
    assert interval.high == pytest.approx(noise.mean() + 1.645 * error, abs=0.15 * error)
    assert interval.relative is not None
    assert interval.relative.change == pytest.approx(noise.mean() / baseline.mean())
    assert interval.relative.low == pytest.approx(interval.low / 6, rel=0.05)


def test_agrees_with_a_loop_over_resamples() -> None:
    candidate, baseline = hits(200, 0.3, seed=1), hits(200, 0.35)
    rng = np.random.default_rng(9)
    changes, ratios = [], []
    for _ in range(20_000):
        users = rng.integers(0, 200, 200)
        changes.append(candidate[users].mean() - baseline[users].mean())
        ratios.append(candidate[users].mean() / baseline[users].mean() - 1)
    interval = paired_bootstrap(candidate, baseline, seed=3, resamples=20_000)
    assert interval.relative is not None
    for bounds, loop in ((interval.absolute, changes), (interval.relative, ratios)):
        # A percentile of 20,000 resamples has an error of .015 standard deviations; the
        # additional half user widens a bound by up to a fifth of one.
        spread = float(np.std(loop))
        assert -0.25 < (bounds.low - np.quantile(loop, 0.05)) / spread < 0.06
        assert -0.06 < (bounds.high - np.quantile(loop, 0.95)) / spread < 0.25


def test_the_lower_bound_has_its_nominal_coverage() -> None:
    rng, covered = np.random.default_rng(5), 0
    for trial in range(400):
        baseline = rng.random(300) < 0.3
        flipped = rng.random(300) < 0.1
        candidate = np.where(flipped, rng.random(300) < 0.3, baseline)
        interval = paired_bootstrap(
            candidate.astype(float), baseline.astype(float), seed=trial, resamples=500
        )
        covered += interval.low <= 0.0
    assert 0.92 < covered / 400 < 0.985  # 95 % +- 2 standard errors; counts are discrete


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 60), st.integers(0, 1000), st.sampled_from([0.8, 0.95]))
def test_wider_with_confidence_and_around_the_change(n: int, seed: int, confidence: float) -> None:
    rng = np.random.default_rng(seed)
    candidate, baseline = rng.random(n), rng.random(n)
    interval = paired_bootstrap(
        candidate, baseline, seed=seed, confidence=confidence, resamples=200
    )
    wider = paired_bootstrap(candidate, baseline, seed=seed, confidence=0.99, resamples=200)
    assert wider.low <= interval.low <= interval.high <= wider.high
    swapped = paired_bootstrap(baseline, candidate, seed=seed, confidence=confidence)
    assert swapped.change == pytest.approx(-interval.change)


def test_the_same_seed_gives_the_same_bounds() -> None:
    candidate, baseline = normal(9000, 1), normal(9000, 2)
    one = paired_bootstrap(candidate, baseline, seed=4)
    assert one == paired_bootstrap(candidate, baseline, seed=4)
    assert one != paired_bootstrap(candidate, baseline, seed=5)


@pytest.mark.parametrize("repeated", [1, 3 * GAMMA_COST])  # one weight per user, and a shared one
def test_all_users_have_equal_weight(repeated: int) -> None:
    first = np.repeat(np.arange(9000 // repeated, dtype=float), repeated)
    n, rng = first.size, np.random.default_rng(0)
    sums = resampled_sums(first, first % 2, resamples=2000, rng=rng)
    assert sums.shape == (3, 2000)
    for drawn, values in zip(sums, (first, first % 2, np.ones(n)), strict=True):
        error = math.sqrt((values**2).sum())  # of a sum with weights of variance 1
        assert drawn.mean() == pytest.approx(values.sum(), abs=4 * error / math.sqrt(2000))
        assert drawn.std() == pytest.approx(error, rel=0.07)


def test_effective_users_hand_worked() -> None:
    assert effective_users(np.r_[np.zeros(90), np.ones(7), -np.ones(3)]) == 10.0
    assert effective_users(np.zeros(5)) == 0.0
    assert effective_users(np.array([1.0, 2.0])) == pytest.approx(25 / 17)
    assert effective_users(normal(100_000) - 6) == pytest.approx(100_000 / 3, rel=0.05)


def test_the_additional_user_has_half_the_weight_if_enough_users_differ() -> None:
    def low(differing: int) -> float:
        candidate = np.full(100_000, 0.5)
        candidate[:differing] += np.tile([0.001, -0.001], differing // 2)  # hardly any spread
        baseline = np.full(100_000, 0.5)
        return paired_bootstrap(candidate, baseline, seed=0, resamples=50_000).low

    few, enough = int(ENOUGH) - 2, int(ENOUGH) + 2
    # 95 % points of an exponential and of a gamma of shape 1/2
    assert low(few) == pytest.approx(-2.996e-5, rel=0.03)
    assert low(enough) == pytest.approx(-1.921e-5, rel=0.03)


def test_no_relative_change_from_a_baseline_at_zero() -> None:
    interval = paired_bootstrap(np.array([1.0, 0.0, 0.0]), np.zeros(3), seed=0)
    assert interval.relative is None
    assert interval.change == pytest.approx(1 / 3)
    one = np.zeros(40)
    one[0] = 1.0
    relative = paired_bootstrap(np.ones(40), one, seed=0).relative
    assert relative is not None and relative.change == 39 and relative.high > 300


def test_the_mean_of_no_user() -> None:
    with pytest.raises(ValueError, match="no values"):
        mean_bounds(np.zeros(0), seed=0)


@pytest.mark.parametrize("n", [(0, 0), (3, 4)])
def test_users_that_do_not_pair(n: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"\({n[0]},\) values against \({n[1]},\)"):
        paired_bootstrap(np.zeros(n[0]), np.zeros(n[1]), seed=0)


def trained(seeds: int, n: int, seed: int, *, interaction: float, between: float) -> np.ndarray:
    """Changes ``[S, n]`` of mean 0: effects of users, of seeds, and of their interaction."""
    rng = np.random.default_rng(seed)
    users, mixed = rng.normal(0, 1, n), rng.normal(0, interaction, (seeds, n))
    return users + mixed + rng.normal(0, between, (seeds, 1))


def test_the_error_of_seeds_is_what_users_do_not_explain() -> None:
    changes = np.array([[0.0, 2.0], [4.0, 6.0]])  # means 1 and 5, no interaction
    assert seed_error(changes) == pytest.approx(math.sqrt(8 / 2))
    # The means are 1 and 1, so their variance is 0, although each user's changes differ.
    assert seed_error(np.array([[0.0, 2.0], [2.0, 0.0]])) == 0.0
    many = [seed_error(trained(40, 300, s, interaction=1.0, between=0.5)) ** 2 for s in range(100)]
    assert np.mean(many) == pytest.approx(0.25 / 40, rel=0.1)


def test_equal_seeds_give_the_interval_of_their_mean() -> None:
    baseline = normal(400)
    candidate = np.tile(baseline + np.random.default_rng(1).normal(0.1, 0.5, 400), (3, 1))
    interval = paired_over_seeds(candidate, np.tile(baseline, (3, 1)), seed=2, resamples=20_000)
    one = paired_bootstrap(candidate[0], baseline, seed=2, resamples=20_000)
    for ours, theirs in ((interval.absolute, one.absolute), (interval.relative, one.relative)):
        assert ours is not None and theirs is not None
        assert ours.change == pytest.approx(theirs.change)
        width = theirs.high - theirs.low
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.03 * width)


def test_seeds_that_differ_widen_the_interval_by_students_t() -> None:
    baseline = np.full(5000, 6.0)
    candidate = 6.0 + np.array([[0.0], [0.1], [0.2]]) + np.zeros(5000)
    interval = paired_over_seeds(candidate, baseline, seed=2, confidence=0.975, resamples=100_000)
    reach = 4.303 * 0.1 / math.sqrt(3)  # t of two degrees of freedom
    assert interval.absolute.change == pytest.approx(0.1)
    assert interval.low == pytest.approx(0.1 - reach, rel=0.05)
    assert interval.relative is not None
    assert interval.relative.high == pytest.approx((0.1 + reach) / 6, rel=0.05)


@pytest.mark.parametrize(
    ("candidate", "baseline"),
    [((1, 9), (1, 9)), ((3, 9), (3, 8)), ((9,), (9,)), ((3, 9), (8,)), ((3, 0), (3, 0))],
)
def test_seeds_that_do_not_pair(candidate: tuple[int, ...], baseline: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"values \[S, n\] against"):
        paired_over_seeds(np.zeros(candidate), np.zeros(baseline), seed=0)
