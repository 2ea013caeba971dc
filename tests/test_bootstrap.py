import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmc.bootstrap import (
    DISTINCT,
    Bounds,
    detectable_drop,
    paired_bootstrap,
    pass_chance,
    resampled_means,
)


def normal(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(6.0, 2.0, n)


def hits(n: int, share: float, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(n) < share).astype(float)


def test_an_identical_candidate_has_no_change_at_all() -> None:
    for baseline in (hits(50, 0.2), normal(10_000), np.zeros(7)):
        found = paired_bootstrap(baseline.copy(), baseline, seed=1)
        assert found.absolute == found.relative == Bounds(0.0, 0.0, 0.0)


@pytest.mark.parametrize("n", [1000, 20_000])  # by counts of values, and in blocks
def test_bounds_are_those_of_the_normal_where_that_holds(n: int) -> None:
    assert (n <= DISTINCT) == (n == 1000)
    baseline, noise = normal(n), np.random.default_rng(1).normal(0.1, 0.5, n)
    found = paired_bootstrap(baseline + noise, baseline, seed=2)
    error = noise.std() / math.sqrt(n)
    assert found.change == pytest.approx(noise.mean(), abs=1e-12)
    assert found.low == pytest.approx(noise.mean() - 1.645 * error, abs=0.15 * error)
    assert found.high == pytest.approx(noise.mean() + 1.645 * error, abs=0.15 * error)
    assert found.relative is not None
    assert found.relative.change == pytest.approx(noise.mean() / baseline.mean())
    assert found.relative.low == pytest.approx(found.low / 6, rel=0.05)


def test_agrees_with_a_loop_over_resamples() -> None:
    candidate, baseline = hits(200, 0.3, seed=1), hits(200, 0.35)
    rng = np.random.default_rng(9)
    changes, ratios = [], []
    for _ in range(20_000):
        users = rng.integers(0, 200, 200)
        changes.append(candidate[users].mean() - baseline[users].mean())
        ratios.append(candidate[users].mean() / baseline[users].mean() - 1)
    found = paired_bootstrap(candidate, baseline, seed=3, resamples=20_000)
    assert found.relative is not None
    for bounds, loop in ((found.absolute, changes), (found.relative, ratios)):
        # A percentile of 20,000 resamples has an error of .015 standard deviations.
        near = 0.06 * float(np.std(loop))
        assert bounds.low == pytest.approx(np.quantile(loop, 0.05), abs=near)
        assert bounds.high == pytest.approx(np.quantile(loop, 0.95), abs=near)


def test_the_lower_bound_covers_as_often_as_it_says() -> None:
    rng, covered = np.random.default_rng(5), 0
    for trial in range(400):
        baseline = rng.random(300) < 0.3
        flipped = rng.random(300) < 0.1
        candidate = np.where(flipped, rng.random(300) < 0.3, baseline)
        found = paired_bootstrap(
            candidate.astype(float), baseline.astype(float), seed=trial, resamples=500
        )
        covered += found.low <= 0.0
    assert 0.92 < covered / 400 < 0.985  # 95 % +- 2 standard errors, and the steps of counts


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 60), st.integers(0, 1000), st.sampled_from([0.8, 0.95]))
def test_wider_with_confidence_and_around_the_change(n: int, seed: int, confidence: float) -> None:
    rng = np.random.default_rng(seed)
    candidate, baseline = rng.random(n), rng.random(n)
    found = paired_bootstrap(candidate, baseline, seed=seed, confidence=confidence, resamples=200)
    wider = paired_bootstrap(candidate, baseline, seed=seed, confidence=0.99, resamples=200)
    assert wider.low <= found.low <= found.high <= wider.high
    swapped = paired_bootstrap(baseline, candidate, seed=seed, confidence=confidence)
    assert swapped.change == pytest.approx(-found.change)


def test_the_same_seed_gives_the_same_bounds() -> None:
    candidate, baseline = normal(9000, 1), normal(9000, 2)
    one = paired_bootstrap(candidate, baseline, seed=4)
    assert one == paired_bootstrap(candidate, baseline, seed=4)
    assert one != paired_bootstrap(candidate, baseline, seed=5)


def test_blocks_draw_every_user_as_often() -> None:
    n = 3 * DISTINCT
    values = np.stack([np.arange(n, dtype=float), (np.arange(n) % 2).astype(float)], axis=1)
    means = resampled_means(values, resamples=400, seed=0)
    assert means.shape == (400, 2)
    errors = values.std(axis=0) / math.sqrt(n)
    assert (np.abs(means.mean(axis=0) - values.mean(axis=0)) < 4 * errors / 20).all()
    assert means.std(axis=0) == pytest.approx(errors, rel=0.15)


def test_no_relative_change_from_a_baseline_at_zero() -> None:
    found = paired_bootstrap(np.array([1.0, 0.0, 0.0]), np.zeros(3), seed=0)
    assert found.relative is None
    assert found.change == pytest.approx(1 / 3)
    # One hit of forty: a third of the resamples have none.
    one = np.zeros(40)
    one[0] = 1.0
    assert paired_bootstrap(np.ones(40), one, seed=0).relative is None


@pytest.mark.parametrize("n", [(0, 0), (3, 4)])
def test_users_that_do_not_pair(n: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"\({n[0]},\) values against \({n[1]},\)"):
        paired_bootstrap(np.zeros(n[0]), np.zeros(n[1]), seed=0)


def test_detectable_drop_hand_worked() -> None:
    # mean .5, standard deviation .5: (1.6449 + .8416) * .5 * sqrt(2 * .1) / sqrt(10^4) / .5
    values = np.repeat([0.0, 1.0], 5000)
    assert detectable_drop(values) == pytest.approx(0.011120, abs=2e-6)
    four_times = np.repeat([0.0, 1.0], 20_000)
    assert detectable_drop(four_times) == pytest.approx(0.011120 / 2, abs=1e-6)
    assert detectable_drop(values, correlation=0.975) == pytest.approx(0.011120 / 2, abs=1e-6)


def test_the_detectable_drop_is_passed_with_the_power_it_was_asked_for() -> None:
    values = hits(500, 0.2)
    drop = detectable_drop(values, power=0.8, confidence=0.9)
    assert pass_chance(drop, values, confidence=0.9) == pytest.approx(0.8)
    absolute = drop * float(values.mean())
    assert pass_chance(absolute, values, relative=False, confidence=0.9) == pytest.approx(0.8)
    assert pass_chance(0.0, values) == pytest.approx(0.05)


def test_pass_chance_is_how_often_unchanged_candidates_pass() -> None:
    rng, passed, trials, budget = np.random.default_rng(0), 0, 250, 0.01
    for trial in range(trials):
        shared = rng.normal(5, math.sqrt(0.9), 300)
        ours, theirs = (shared + rng.normal(0, math.sqrt(0.1), 300) for _ in range(2))
        found = paired_bootstrap(ours, theirs, seed=trial, resamples=300).relative
        assert found is not None
        passed += found.low >= -budget
    expected = pass_chance(budget, theirs)
    assert 0.3 < expected < 0.9
    assert passed / trials == pytest.approx(expected, abs=0.09)  # three standard errors


@pytest.mark.parametrize("values", [np.zeros(10), np.ones(1), np.zeros(0)])
def test_what_nothing_can_be_seen_with(values: np.ndarray) -> None:
    assert detectable_drop(values) == math.inf
    assert pass_chance(0.5, values) == 0.0


def test_where_users_do_not_differ_anything_is_seen() -> None:
    assert detectable_drop(np.ones(10)) == 0.0
    assert pass_chance(0.0, np.ones(10)) == 1.0
