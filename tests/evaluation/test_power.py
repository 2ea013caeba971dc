import math

import numpy as np
import pytest

from slmc.evaluation.bootstrap import paired_bootstrap
from slmc.evaluation.power import (
    ASSUMED_CORRELATION,
    correlation_of,
    detectable_drop,
    least_drop,
    pass_chance,
    users_needed,
)


def hits(n: int, share: float, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(n) < share).astype(float)


def test_detectable_drop_hand_worked() -> None:
    # mean 1, standard deviation 1: (1.6449 + .8416) * sqrt(2 * .1) / sqrt(10^4)
    values = np.repeat([0.0, 2.0], 5000)
    assert detectable_drop(values) == pytest.approx(0.011120, abs=2e-6)
    four_times = np.repeat([0.0, 2.0], 20_000)
    assert detectable_drop(four_times) == pytest.approx(0.011120 / 2, abs=1e-6)
    assert detectable_drop(values, correlation=0.975) == pytest.approx(0.011120 / 2, abs=1e-6)


def test_the_detectable_drop_is_passed_with_the_given_power() -> None:
    values = hits(5000, 0.2)
    drop = detectable_drop(values, power=0.8, confidence=0.9)
    assert pass_chance(drop, values, confidence=0.9) == pytest.approx(0.8)
    absolute = drop * float(values.mean())
    assert pass_chance(absolute, values, relative=False, confidence=0.9) == pytest.approx(0.8)
    assert pass_chance(0.0, 6 + values) == pytest.approx(0.05)


def test_pass_chance_is_how_often_unchanged_candidates_pass() -> None:
    rng, passed, trials, budget = np.random.default_rng(0), 0, 250, 0.01
    for trial in range(trials):
        shared = rng.normal(5, math.sqrt(0.9), 300)
        ours, theirs = (shared + rng.normal(0, math.sqrt(0.1), 300) for _ in range(2))
        change = paired_bootstrap(ours, theirs, seed=trial, resamples=300).relative
        assert change is not None
        passed += change.low >= -budget
    expected = pass_chance(budget, theirs)
    assert 0.3 < expected < 0.9
    assert passed / trials == pytest.approx(expected, abs=0.09)  # three standard errors


@pytest.mark.parametrize(("n", "drawn"), [(5000, 0.03), (20_000, 0.03), (5000, 0.3)])
def test_the_detectable_drop_of_a_metric_is_passed_about_as_often(n: int, drawn: float) -> None:
    """A share of the users get new values: the candidate is as good as its baseline."""
    rng, trials = np.random.default_rng(1), 200
    lows, drops = [], []
    for trial in range(trials):
        baseline = hits(n, 0.06, seed=trial)
        candidate = np.where(rng.random(n) < drawn, rng.random(n) < 0.06, baseline)
        change = paired_bootstrap(candidate, baseline, seed=trial, resamples=400).relative
        assert change is not None
        lows.append(change.low)
        drops.append(detectable_drop(baseline, correlation=correlation_of(candidate, baseline)))
    assert -np.quantile(lows, 0.2) == pytest.approx(np.mean(drops), rel=0.15)


def test_no_drop_below_the_rule_of_three_is_detected() -> None:
    values = hits(1000, 0.05)
    least = -math.log(0.05) / values.sum()
    assert least_drop(values) == pytest.approx(least)
    assert detectable_drop(values, correlation=1.0) == pytest.approx(least)
    assert pass_chance(0.99 * least, values) == 0.0
    assert 0.0 < pass_chance(1.01 * least, values) < 0.1
    change = paired_bootstrap(values, values, seed=0, resamples=50_000).relative
    assert change is not None
    assert -change.low == pytest.approx(least, rel=0.07)  # approximate: the values sum to only 50
    assert least_drop(values + 6.0) == 0.0  # cross-entropy has no largest value


def test_correlation_of_pairs() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 3, 100_000)
    one, other = (shared + rng.normal(0, 1, shared.size) for _ in range(2))
    assert correlation_of(one, other) == pytest.approx(0.9, abs=0.005)
    assert correlation_of(np.zeros(9), np.zeros(9)) == 1.0
    assert correlation_of(np.zeros(9), hits(9, 0.5)) == ASSUMED_CORRELATION


def test_users_needed_hand_worked() -> None:
    # (1.6449 + .8416)^2 / 1.6449^2 = 2.285 times as many as for even odds
    spread = {"reach": 1.6449, "error": 1.0, "confidence": 0.95}
    assert users_needed(1000, room=1.6449, **spread) == pytest.approx(2285, abs=2)
    assert users_needed(1000, room=2 * 1.6449, **spread) == 1001  # never fewer than now
    # Without variance only the additional user counts: its part is 3 / n.
    rule = {"reach": 0.03, "error": 0.0, "confidence": 0.95}
    assert users_needed(100, room=0.01, **rule) == pytest.approx(300, abs=1)


@pytest.mark.parametrize("values", [np.zeros(10), np.ones(1), np.zeros(0)])
def test_values_that_detect_nothing(values: np.ndarray) -> None:
    assert detectable_drop(values) == math.inf
    assert pass_chance(0.5, values) == 0.0


def test_constant_values_detect_anything() -> None:
    assert detectable_drop(np.full(10, 6.0)) == 0.0
    assert pass_chance(0.0, np.full(10, 6.0)) == 1.0
