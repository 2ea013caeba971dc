from typing import Any, get_args

import numpy as np
import polars as pl
import pytest

from slmc.config import Sampled
from slmc.errors import SlmcError, UndecidedError, VerdictError
from slmc.evaluation.config import EvaluateConfig
from slmc.evaluation.gates import Gate, Segment
from slmc.evaluation.judge import judge
from slmc.evaluation.results import Evaluation, protocol, segment_mask
from slmc.evaluation.verdict import Verdict

FULL = protocol(EvaluateConfig(exclude_seen=False))
RNG = np.random.default_rng(0)
RANKS = np.exp(RNG.normal(3, 1.5, 1000)).round() + 1
CE = RNG.normal(6, 2, 1000)


def evaluation(
    name: str = "export",
    ranks: np.ndarray = RANKS,
    ce: np.ndarray | None = None,
    *,
    ranked_by: dict[str, Any] = FULL,
    tops: list[list[int]] | None = None,
    size_mb: float = 12.34,
) -> Evaluation:
    n = len(ranks)
    lists = tops or [list(range(1, 21))] * n
    per_user = pl.DataFrame(
        {
            "user": [str(i) for i in range(n)],
            "target": pl.Series(np.arange(n) % 7 + 1, dtype=pl.Int32),
            "rank": np.asarray(ranks, dtype=float),
            "rank_unseen": np.ones(n),
            "ce": (CE if n == CE.size else np.ones(n)) if ce is None else ce,
            "history": pl.Series(np.arange(n) % 40 + 1, dtype=pl.Int32),
            "tail": np.arange(n) % 5 == 0,
            "new": np.arange(n) % 7 == 0,
            "top_items": pl.Series(lists, dtype=pl.List(pl.Int32)),
            "top_scores": pl.Series([[30.0 - i for i in range(len(r))] for r in lists]),
        },
    )
    return Evaluation(name, per_user, ranked_by, size_mb)


def drop(metric: str = "mrr", budget: str | float = "3%", **more: Any) -> Gate:
    return Gate(metric=metric, baseline="teach", max_drop=budget, **more)


def worsened(share: float) -> np.ndarray:
    """Ranks, doubled for a share of the users."""
    moved = np.random.default_rng(1).random(RANKS.size) < share
    return np.where(moved, 2 * RANKS, RANKS)


def test_an_identical_candidate_passes_any_budget() -> None:
    for budget in ("3%", 0.0):
        verdict = judge(drop(budget=budget), evaluation(), evaluation("teach"), seed=1)
        assert (verdict.outcome, verdict.failed, verdict.needed_users) == ("pass", False, None)
        assert (verdict.change, verdict.low, verdict.high) == (0.0, 0.0, 0.0)


def test_equal_values_of_other_ranks_are_bounded_by_the_rule_of_three() -> None:
    baseline = np.where(np.arange(1000) % 2, 1.0, 50.0)
    moved = np.where(baseline == 50, 51.0, baseline)
    for budget, outcome in (("1%", "pass"), ("0.5%", "inconclusive")):
        verdict = judge(
            drop("hr@10", budget), evaluation(ranks=moved), evaluation("teach", baseline), seed=1
        )
        assert verdict.outcome == outcome
        assert verdict.low == pytest.approx(-3 / 503, rel=0.1)
    gate = drop("hr@10", 0.0, segment="tail-items")
    for ranks, outcome in (
        (baseline, "pass"),
        (np.where(np.arange(1000) == 2, 51.0, baseline), "inconclusive"),
    ):
        # Ranks within the segment are equal; those of other users show that the models differ.
        verdict = judge(gate, evaluation(ranks=ranks), evaluation("teach", baseline), seed=1)
        assert verdict.outcome == outcome


def test_one_user_decides_nothing() -> None:
    one, other = evaluation(ranks=np.ones(1)), evaluation("teach", np.full(1, 9.0))
    for gate in (drop(), drop(budget=0.0), Gate(metric="hr@10", min=0.001)):
        for baseline in (evaluation("teach", np.ones(1)), other):
            verdict = judge(gate, one, baseline, seed=1)
            assert (verdict.outcome, verdict.n, verdict.needed_users) == ("inconclusive", 1, None)


@pytest.mark.parametrize(
    ("share", "budget", "outcome"),
    [
        (0.02, "5%", "pass"),
        (0.3, "5%", "regression"),
        (0.1, "5%", "inconclusive"),
        (0.02, 0.005, "pass"),
        (0.3, 0.005, "regression"),
    ],
)
def test_outcomes(share: float, budget: str | float, outcome: str) -> None:
    verdict = judge(
        drop(budget=budget), evaluation(ranks=worsened(share)), evaluation("teach"), seed=1
    )
    assert verdict.outcome == outcome
    assert verdict.failed == (outcome != "pass")
    limit = -0.05 if verdict.relative else -0.005
    low, high = verdict.low, verdict.high
    assert low is not None and high is not None
    expected = "pass" if low >= limit else "regression" if high < limit else "inconclusive"
    assert verdict.outcome == expected
    assert (verdict.needed_users is None) == (outcome != "inconclusive")


@pytest.mark.slow
def test_the_estimate_of_needed_users_is_about_right() -> None:
    candidate, baseline = evaluation(ranks=worsened(0.1)), evaluation("teach")
    verdict = judge(drop(budget="7%"), candidate, baseline, seed=1)
    assert verdict.outcome == "inconclusive" and verdict.needed_users is not None
    rng, passed, trials = np.random.default_rng(3), 0, 100
    for trial in range(trials):
        users = rng.integers(0, RANKS.size, verdict.needed_users)
        many = evaluation(ranks=worsened(0.1)[users]), evaluation("teach", RANKS[users])
        passed += judge(drop(budget="7%"), *many, seed=trial).outcome == "pass"
    assert passed / trials == pytest.approx(0.8, abs=0.12)  # three standard errors


def test_a_rise_of_ce_is_a_drop() -> None:
    rise = CE + RNG.normal(0.3, 0.1, CE.size)
    worse = judge(drop("ce", 0.2), evaluation(ce=rise), evaluation("teach"), seed=1)
    assert worse.outcome == "regression"
    assert worse.change == pytest.approx(CE.mean() - rise.mean())
    assert worse.low is not None and worse.high is not None
    assert worse.low < worse.change < worse.high < -0.2
    better = judge(drop("ce", 0.2), evaluation(ce=CE - 0.3), evaluation("teach"), seed=1)
    assert (better.outcome, better.change) == ("pass", pytest.approx(0.3))


def test_the_protocol_chooses_the_ranks() -> None:
    ranked_by = protocol(EvaluateConfig(exclude_seen=True))
    verdict = judge(
        Gate(metric="mrr", min=0.9), evaluation(ranked_by=ranked_by, ranks=np.full(30, 9.0)), seed=1
    )
    assert (verdict.value, verdict.outcome) == (1.0, "pass")


@pytest.mark.parametrize(
    ("gate", "outcome"),
    [
        (Gate(metric="hr@10", min=0.1), "pass"),
        (Gate(metric="hr@10", min=0.9), "regression"),
        (Gate(metric="hr@10", min=0.32), "inconclusive"),
        (Gate(metric="ce", max=6.5), "pass"),
        (Gate(metric="ce", max=5.5), "regression"),
        (Gate(metric="ce", max=6.0), "inconclusive"),
    ],
)
def test_plain_bounds_use_the_interval_of_the_mean(gate: Gate, outcome: str) -> None:
    verdict = judge(gate, evaluation(), seed=1)
    assert verdict.outcome == outcome
    assert verdict.change is None and verdict.baseline_value is None
    assert verdict.low is not None and verdict.high is not None
    assert verdict.low < verdict.value < verdict.high


def test_size_is_compared_as_it_is() -> None:
    assert judge(Gate(metric="size_mb", max=12.34), evaluation(), seed=1).outcome == "pass"
    assert judge(Gate(metric="size_mb", max=12.3), evaluation(), seed=1).outcome == "regression"


def test_overlap_of_top_lists() -> None:
    same, other = list(range(1, 21)), list(range(101, 121))
    gate = Gate(metric="overlap@10", baseline="source", min=0.9)
    candidate = evaluation(ranks=np.ones(40), tops=[same] * 40)
    half = evaluation("distill", np.ones(40), tops=[same, other] * 20)
    assert judge(gate, candidate, candidate, seed=1).value == 1.0
    verdict = judge(gate, candidate, half, seed=1)
    assert (verdict.value, verdict.outcome) == (0.5, "regression")


def test_overlap_in_a_catalogue_that_is_too_small() -> None:
    few = evaluation(ranks=np.ones(3), tops=[[1, 2, 3]] * 3)
    gate = Gate(metric="overlap@10", baseline="source", min=0.9)
    with pytest.raises(UndecidedError, match="overlap@10: the catalogue has only 3 items"):
        judge(gate, few, few, seed=1)


def test_segments() -> None:
    per_user = pl.DataFrame(
        {
            "history": [1, 2, 2, 3, 4, 5, 6, 7],
            "tail": [True, False] * 4,
            "new": [False, True] * 4,
            "count": [9, 0, 6, 0, 5, 0, 1, 0],
            "same_time": [True, False, False, None] * 2,
        }
    )
    marked = {segment: segment_mask(per_user, segment) for segment in get_args(Segment)}
    assert marked["all"].tolist() == [True] * 8
    assert marked["cold-users"].tolist() == [True] * 3 + [False] * 5
    assert marked["long-histories"].tolist() == [False] * 6 + [True] * 2
    assert marked["tail-items"].tolist() == [True, False] * 4
    assert marked["new-items"].tolist() == [False, True] * 4
    assert marked["cold-items"].tolist() == [False, True, False, True, True, True, True, True]
    assert marked["same-time"].tolist() == [True, False, False, False] * 2
    assert marked["later"].tolist() == [False, True, True, False] * 2


def test_a_drop_in_a_segment_alone() -> None:
    tail = np.arange(RANKS.size) % 5 == 0
    hurt = evaluation(ranks=np.where(tail, 4 * RANKS, RANKS))
    within = judge(drop(budget="30%", segment="tail-items"), hurt, evaluation("teach"), seed=1)
    assert (within.outcome, within.n) == ("regression", 200)
    assert judge(drop(budget="30%"), hurt, evaluation("teach"), seed=1).outcome == "pass"


@pytest.mark.parametrize("of_same_model", [True, False])
def test_a_gain_on_the_model_that_it_was_made_from_is_anomalous(of_same_model: bool) -> None:
    pair = evaluation(ranks=np.maximum(1, RANKS // 2)), evaluation("teach")
    warned = judge(drop(), *pair, seed=1, of_same_model=of_same_model)
    assert (warned.outcome, warned.anomalous, warned.failed) == ("pass", of_same_model, False)
    strict = judge(drop(anomalous="fail"), *pair, seed=1, of_same_model=of_same_model)
    assert strict.failed == of_same_model


def test_a_gain_that_is_small_or_not_significant_is_not_anomalous() -> None:
    small = evaluation(ranks=np.where(RANKS < 20, np.maximum(1, 0.95 * RANKS), RANKS))
    verdict = judge(drop(), small, evaluation("teach"), seed=1, of_same_model=True)
    assert verdict.change is not None and 0 < verdict.change < 0.05 and not verdict.anomalous
    lucky = evaluation(ranks=np.r_[1.0, np.full(19, 50.0)])
    unlucky = evaluation("teach", np.r_[2.0, np.full(19, 50.0)])
    verdict = judge(drop(), lucky, unlucky, seed=1, of_same_model=True)
    assert verdict.change is not None and verdict.change > 0.05 and not verdict.anomalous


def test_nothing_is_relative_to_zero() -> None:
    none = evaluation("teach", np.full(50, 99.0))
    some = evaluation(ranks=np.r_[1.0, np.full(49, 99.0)])
    verdict = judge(drop("hr@10"), some, none, seed=1)
    assert (verdict.outcome, verdict.change, verdict.needed_users) == ("inconclusive", None, None)
    assert verdict.sentence == (
        "hr@10 of export: 0.0200 against 0.0000 of teach, no relative change, since the "
        "baseline is 0 (n = 50, full ranking, seen items kept, test, one-sided 95 % bounds): "
        "inconclusive, max_drop 3%"
    )
    assert judge(drop("hr@10"), none, none, seed=1).outcome == "pass"


def check(error: pytest.ExceptionInfo[SlmcError], what: str, remedy: str) -> None:
    assert (error.value.what, error.value.remedy) == (what, remedy)


def test_different_users() -> None:
    with pytest.raises(VerdictError) as caught:
        judge(drop(), evaluation(), evaluation("teach", RANKS[:-1]), seed=1)
    check(
        caught,
        "export and teach were evaluated on different users or targets, so they cannot be paired.",
        "Evaluate both on the same dataset and split.",
    )


def test_different_protocols() -> None:
    sampled = protocol(EvaluateConfig(ranking=Sampled(), exclude_seen=False))
    with pytest.raises(VerdictError) as caught:
        judge(drop(), evaluation(), evaluation("teach", ranked_by=sampled), seed=1)
    check(
        caught,
        "export and teach were evaluated under different protocols: full ranking, seen items kept, "
        "test, and 999 sampled negatives, test.",
        "Evaluate both with the same settings.",
    )


def test_a_missing_baseline() -> None:
    with pytest.raises(UndecidedError) as caught:
        judge(drop(), evaluation(), None, seed=1)
    check(
        caught,
        "gate mrr on export: the baseline teach is missing.",
        "Name a step whose model or engine was evaluated.",
    )


def test_no_user() -> None:
    nobody = evaluation(ranks=np.zeros(0))
    with pytest.raises(UndecidedError) as caught:
        judge(Gate(metric="mrr", min=0.1), nobody, seed=1)
    check(
        caught,
        "gate mrr on export: there are no users.",
        "Evaluate on a split with users; `slmc data check` shows the users of each split.",
    )
    popular = evaluation(ranks=np.ones(1))
    popular = Evaluation("x", popular.per_user.with_columns(tail=pl.lit(False)), FULL, 1.0)
    with pytest.raises(UndecidedError, match="there are no users in the segment tail-items"):
        judge(Gate(metric="mrr", min=0.1, segment="tail-items"), popular, seed=1)
    untimed = popular.per_user.with_columns(same_time=pl.lit(None, pl.Boolean))
    with pytest.raises(UndecidedError, match="no users in the segment later") as caught:
        judge(
            Gate(metric="mrr", min=0.1, segment="later"),
            Evaluation("x", untimed, FULL, 1.0),
            seed=1,
        )
    assert caught.value.remedy == (
        "Choose another segment: same-time and later need a log with times, and no target of a "
        "temporal split has the time of the item before it."
    )


def sentence(gate: Gate, candidate: Evaluation, baseline: Evaluation | None = None) -> str:
    verdict: Verdict = judge(gate, candidate, baseline, seed=1)
    assert "\n" not in verdict.sentence
    return verdict.sentence


def test_sentences() -> None:
    three = evaluation(ranks=np.ones(4)), evaluation("teach", np.ones(4))
    basis = "(n = 4, full ranking, seen items kept, test, one-sided 95 % bounds)"
    assert sentence(drop("ndcg@10"), *three) == (
        "ndcg@10 of export: 1.0000 against 1.0000 of teach, change +0.00 % [+0.00 %, +0.00 %] "
        f"{basis}: pass, max_drop 3%"
    )
    assert sentence(drop("ce", 0.1), *three) == (
        "ce of export: 1.0000 against 1.0000 of teach, change +0.0000 [+0.0000, +0.0000], "
        f"a rise counted as a loss {basis}: pass, max_drop 0.1"
    )
    assert sentence(Gate(metric="hr@10", min=0.5), three[0]) == (
        f"hr@10 of export: 1.0000 [0.4655, 1.0000] {basis}: inconclusive, min 0.5; about 5 users "
        "would decide it with 80 % power"
    )
    assert sentence(Gate(metric="overlap@10", baseline="source", min=0.5), *three) == (
        f"overlap@10 of export: 1.0000 with teach [1.0000, 1.0000] {basis}: pass, min 0.5"
    )
    assert sentence(Gate(metric="size_mb", max=10), three[0]) == (
        "size_mb of export: 12.3 MB (files needed for serving): regression, max 10.0"
    )
    cold = Gate(metric="hr@10", min=0.5, segment="cold-users", confidence=0.9)
    assert sentence(cold, evaluation(ranks=np.ones(70))) == (
        "hr@10 of export: 1.0000 [0.8798, 1.0000] (cold-users, 26 % of users, n = 18, full "
        "ranking, seen items kept, test, one-sided 90 % bounds): pass, min 0.5"
    )


def test_sentences_of_inconclusive_and_anomalous_verdicts() -> None:
    text = sentence(drop(budget="5%"), evaluation(ranks=worsened(0.1)), evaluation("teach"))
    assert text.startswith("mrr of export: 0.0962 against 0.1008 of teach, change -4.61 % [")
    assert ": inconclusive, max_drop 5%; about " in text
    assert text.endswith("0 users would decide it with 80 % power")
    odd = judge(
        drop(), evaluation(ranks=np.maximum(1, RANKS // 2)), evaluation("teach"), seed=1,
        of_same_model=True,
    )  # fmt: skip
    assert odd.sentence.endswith(
        "pass, max_drop 3%; anomalous: more than 5 % better than the model that it was made from"
    )
