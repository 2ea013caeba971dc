import numpy as np
import pytest

from slmc.evaluation.bootstrap import paired_bootstrap
from slmc.evaluation.multiple import Step, compare_all, holm

RNG = np.random.default_rng(0)
BASELINE = RNG.normal(1.0, 0.2, 400)


def candidate(z: float) -> np.ndarray:
    """Values that exceed the baseline's by exactly ``z`` standard errors."""
    noise = np.random.default_rng(1).normal(0, 0.1, BASELINE.size)
    noise -= noise.mean()
    return BASELINE + noise + z * noise.std(ddof=1) / np.sqrt(BASELINE.size)


def by_p_values(p: list[float], alpha: float) -> list[bool]:
    """Holm's procedure (1979) on sorted p-values."""
    rejected = [False] * len(p)
    for k, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[i] > alpha / (len(p) - k):
            break
        rejected[i] = True
    return rejected


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        ([0.01, 0.02, 0.04], [True, True, True]),  # .0167, .025, .05
        ([0.02, 0.02, 0.02], [False, False, False]),
        ([0.04, 0.001, 0.03], [False, True, False]),
        ([0.05], [True]),
        ([], []),
    ],
)
def test_holm_hand_worked(p: list[float], expected: list[bool]) -> None:
    steps = holm(len(p), lambda i, level: p[i] <= 1 - level + 1e-12, 0.95)
    assert [step.rejected for step in steps] == expected == by_p_values(p, 0.05)


def test_holm_equals_the_procedure_on_sorted_p_values() -> None:
    for _ in range(300):
        p = RNG.random(RNG.integers(1, 7)) * 0.08
        steps = holm(p.size, lambda i, level, p=p: p[i] <= 1 - level, 0.95)
        assert [step.rejected for step in steps] == by_p_values(list(p), 0.05)


def test_holm_returns_the_level_of_each() -> None:
    p = [0.001, 0.02, 0.9, 0.8]
    steps = holm(4, lambda i, level: p[i] <= 1 - level, 0.95)
    assert steps[0] == Step(True, pytest.approx(1 - 0.05 / 4))
    assert steps[1:] == [Step(False, pytest.approx(1 - 0.05 / 3))] * 3


def test_one_baseline_needs_no_correction() -> None:
    (decision,) = compare_all([(candidate(1.9), BASELINE)], "ndcg@10", seed=3)
    assert (decision.outcome, decision.confidence) == ("better", pytest.approx(0.95))
    assert decision.bounds == paired_bootstrap(candidate(1.9), BASELINE, seed=3).absolute


def test_three_barely_significant_gains_are_not_significant_together() -> None:
    barely = [(candidate(1.9), BASELINE)] * 3  # p = .029, above .05 / 3
    for decision in compare_all(barely, "ndcg@10", seed=3):
        assert (decision.outcome, decision.confidence) == ("not worse", pytest.approx(1 - 0.05 / 3))
        assert decision.bounds.low <= 0 <= decision.bounds.high
    with_clear = [(candidate(9.0), BASELINE), (candidate(9.0), BASELINE), barely[0]]
    assert [d.outcome for d in compare_all(with_clear, "ndcg@10", seed=3)] == ["better"] * 3


def test_worse_and_better_are_separate_families() -> None:
    pairs = [(candidate(z), BASELINE) for z in (9.0, -9.0, -1.8)]
    decisions = compare_all(pairs, "mrr", seed=3)
    assert [d.outcome for d in decisions] == ["better", "worse", "not worse"]
    assert decisions[0].bounds.low > 0 > decisions[1].bounds.high
    # -1.8 was tested against .05 / 2 (one is clearly worse) and, as better, against .05 / 2.
    assert decisions[2].confidence == pytest.approx(1 - 0.05 / 2)


def test_a_lower_cross_entropy_is_better() -> None:
    pairs = [(candidate(-9.0), BASELINE), (candidate(9.0), BASELINE)]
    assert [d.outcome for d in compare_all(pairs, "ce", seed=3)] == ["better", "worse"]


@pytest.mark.slow
def test_no_false_claim_in_more_than_one_of_twenty_families() -> None:
    rng, false = np.random.default_rng(4), 0
    for trial in range(300):
        theirs = rng.normal(0, 1, (3, 80))
        pairs = [(one + rng.normal(0, 0.5, 80), one) for one in theirs]
        decisions = compare_all(pairs, "ndcg@10", seed=trial)
        false += any(d.outcome == "worse" for d in decisions)
    assert false / 300 <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 300)
