import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmc.config import check_metric
from slmc.evaluation.metrics import overlap, rank_metric

RANKS = np.array([1.0, 2.0, 3.5, 10.0, 10.5, 11.0])


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("hr@1", [1, 0, 0, 0, 0, 0]),
        ("hr@10", [1, 1, 1, 1, 0, 0]),
        ("mrr", [1, 1 / 2, 1 / 3.5, 1 / 10, 1 / 10.5, 1 / 11]),
        # 1 / log2(1 + rank): 1 / log2(3) = .6309, 1 / log2(4.5) = .4608, 1 / log2(11) = .2891
        ("ndcg@10", [1, 0.63092975, 0.46084542, 0.28906483, 0, 0]),
        ("ndcg@2", [1, 0.63092975, 0, 0, 0, 0]),
        ("ndcg", [1, 0.63092975, 0.46084542, 0.28906483, 0.28380372, 0.27894295]),
    ],
)
def test_hand_worked(metric: str, expected: list[float]) -> None:
    assert rank_metric(metric, RANKS) == pytest.approx(expected, abs=1e-8)


@given(st.lists(st.integers(2, 4000), min_size=1), st.integers(1, 50))
def test_ndcg_lies_between_its_bounds_given_hr(halves: list[int], k: int) -> None:
    ranks = np.array(halves) / 2
    hr, ndcg = rank_metric(f"hr@{k}", ranks).mean(), rank_metric(f"ndcg@{k}", ranks).mean()
    assert hr / math.log2(1 + k) - 1e-12 <= ndcg <= hr + 1e-12


@pytest.mark.parametrize("metric", ["ndcg@0", "hr", "HR@10", "auc", "ndcg@10 "])
def test_unknown_metrics(metric: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_metric(metric)
    assert str(caught.value) == (
        f"there is no metric {metric!r}; known: hr@K, ndcg@K, ndcg, mrr, ce, ce_calibrated"
    )


@pytest.mark.parametrize("metric", ["ce", "ce_calibrated"])
def test_a_cross_entropy_is_not_a_metric_of_ranks(metric: str) -> None:
    with pytest.raises(ValueError, match=f"'{metric}' is not a metric of ranks"):
        rank_metric(metric, RANKS)


@pytest.mark.parametrize("metric", ["ndcg@10", "ndcg", "hr@10", "mrr"])
def test_a_target_that_cannot_be_ranked_counts_nothing(metric: str) -> None:
    assert rank_metric(metric, np.array([1.0, np.inf])).tolist() == [1, 0]


def lists(*rows: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([list(r) for r in rows]), np.array([list(r.values()) for r in rows])


def test_overlap_hand_worked() -> None:
    ours = lists({1: 9.0, 2: 8.0, 3: 7.0}, {1: 9.0, 2: 8.0, 3: 7.0})
    theirs = lists({1: 9.0, 3: 8.0, 2: 7.0}, {4: 9.0, 5: 8.0, 6: 7.0})
    assert overlap(*ours, *theirs, 2).tolist() == [0.5, 0.0]
    assert overlap(*ours, *theirs, 3).tolist() == [1.0, 0.0]


def test_overlap_counts_ties_with_the_kth_item_as_equal() -> None:
    ours = lists({1: 9.0, 2: 8.0, 3: 8.0})
    theirs = lists({1: 9.0, 3: 8.0, 2: 8.0})
    assert overlap(*ours, *theirs, 2).tolist() == [1.0]
    near = lists({1: 9.0, 3: 8.0, 2: 8.0 - 4e-6})
    assert overlap(*ours, *near, 2).tolist() == [1.0]
    assert overlap(*lists({1: 9.0, 2: 8.0, 3: 7.9}), *near, 2, tolerance=0).tolist() == [0.5]


ranked = st.lists(st.integers(0, 3), min_size=5, max_size=5)


@given(ranked, ranked, st.permutations(range(5)), st.permutations(range(5)), st.integers(1, 5))
def test_overlap_is_the_best_over_all_ways_to_break_ties(
    a: list[int], b: list[int], items_a: list[int], items_b: list[int], k: int
) -> None:
    ours = np.array([items_a]), np.sort(np.array([a], dtype=float))[:, ::-1]
    theirs = np.array([items_b]), np.sort(np.array([b], dtype=float))[:, ::-1]

    def firsts(items: np.ndarray, scores: np.ndarray) -> list[set[int]]:
        kept = []
        for chosen in itertools.combinations(range(5), k):
            rest = [scores[0, i] for i in range(5) if i not in chosen]
            if min(scores[0, i] for i in chosen) >= max(rest, default=-math.inf):
                kept.append({int(items[0, i]) for i in chosen})
        return kept

    best = max(len(x & y) for x in firsts(*ours) for y in firsts(*theirs))
    assert overlap(*ours, *theirs, k).tolist() == [best / k]


def test_overlap_of_lists_that_are_too_short() -> None:
    one = lists({1: 1.0})
    with pytest.raises(ValueError, match="lists of 1 and 1 items, not 2"):
        overlap(*one, *one, 2)
