import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slmc.evaluation.ranking import Blocks, Pairs, Ranks, rank_targets, top_of


def cut(scores: Tensor, width: int) -> Blocks:
    """Split scores [n, V] of the rows 1..V into blocks."""
    starts = range(0, scores.shape[1], width)
    return lambda: iter([(s + 1, scores[:, s : s + width].clone()) for s in starts])


def ranked(
    scores: Tensor,
    targets: list[int],
    seen: list[list[int]] | None = None,
    negatives: list[list[int]] | None = None,
    *,
    width: int | None = None,
    top: int = 20,
) -> Ranks:
    return rank_targets(
        cut(scores, width or scores.shape[1]),
        torch.tensor(targets),
        Pairs.of([torch.tensor(s, dtype=torch.int32) for s in seen or [[] for _ in targets]]),
        Pairs.of([torch.tensor(s) for s in negatives]) if negatives else None,
        num_items=scores.shape[1],
        top=top,
    )


def expected_rank(target_score: float, others: list[float]) -> float:
    return 1 + sum(s > target_score for s in others) + sum(s == target_score for s in others) / 2


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, list[int], list[list[int]], list[list[int]], int]:
    users, items = draw(st.integers(1, 4)), draw(st.integers(2, 40))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    distinct = draw(st.sampled_from([2, 5, 1000]))  # few distinct scores: many ties
    scores = torch.from_numpy(rng.integers(0, distinct, (users, items)) / 7.0).float()
    targets = rng.integers(1, items + 1, users).tolist()
    pick = [[r for r in range(1, items + 1) if rng.random() < 0.3] for _ in targets]
    both = zip(targets, pick, strict=True)
    draws = [[r for r in range(1, items + 1) if r != t and r not in own] for t, own in both]
    return scores, targets, pick, draws, draw(st.integers(1, items + 3))


@settings(max_examples=150, deadline=None)
@given(cases(), st.integers(1, 25))
def test_any_block_size_agrees_with_loops_in_float64(
    case: tuple[Tensor, list[int], list[list[int]], list[list[int]], int], top: int
) -> None:
    scores, targets, seen, negatives, width = case
    ranks = ranked(scores, targets, seen, negatives, width=width, top=top)
    for user, target in enumerate(targets):
        row = {i + 1: s for i, s in enumerate(scores[user].tolist())}
        target_score = row[target]
        others = {i: s for i, s in row.items() if i != target}
        assert ranks.rank[user] == expected_rank(target_score, list(others.values()))
        unseen = [s for i, s in others.items() if i not in seen[user]]
        expected = math.inf if target in seen[user] else expected_rank(target_score, unseen)
        assert ranks.rank_unseen[user] == expected
        assert ranks.rank_sampled is not None
        assert ranks.rank_sampled[user] == expected_rank(
            target_score, [row[i] for i in negatives[user]]
        )
        ce = math.log(math.fsum(math.exp(s) for s in row.values())) - target_score
        assert ranks.ce[user].item() == pytest.approx(ce, abs=1e-5)
        best = sorted(row, key=lambda i: (-row[i], i))[:top]
        assert ranks.top_items[user].tolist() == best
        assert ranks.top_scores[user].tolist() == [row[i] for i in best]


def test_ties_are_the_mean_over_all_orders() -> None:
    # One item above; the target ties with two others: it is 2nd, 3rd or 4th.
    assert ranked(torch.tensor([[5.0, 3.0, 3.0, 3.0, 1.0]]), [3]).rank.tolist() == [3.0]
    assert ranked(torch.zeros(1, 5), [2]).rank.tolist() == [3.0]


def test_hand_worked_cross_entropy() -> None:
    scores = torch.tensor([[0.0, math.log(2.0), 0.0]])
    assert ranked(scores, [2]).ce.item() == pytest.approx(math.log(2.0), abs=1e-7)
    assert ranked(scores, [1], width=1).ce.item() == pytest.approx(math.log(4.0), abs=1e-7)


def test_cross_entropy_of_scores_beyond_the_range_of_exp() -> None:
    scores = torch.tensor([[-5000.0, 5000.0, 4999.0]])
    expected = 10_000 + math.log(1 + math.exp(-1))
    for width in (1, 2, 3):
        assert ranked(scores, [1], width=width).ce.item() == pytest.approx(expected, abs=1e-3)


@settings(deadline=None)
@given(cases())
def test_ranks_do_not_change_under_a_monotone_transform(
    case: tuple[Tensor, list[int], list[list[int]], list[list[int]], int],
) -> None:
    scores, targets, seen, _, width = case
    one = ranked(scores, targets, seen, width=width)
    other = ranked((scores.double() * 3 + 1).exp(), targets, seen, width=width)
    assert torch.equal(one.rank, other.rank)
    assert torch.equal(one.rank_unseen, other.rank_unseen)
    assert torch.equal(one.top_items, other.top_items)


def test_a_target_does_not_tie_with_itself_by_rounding() -> None:
    """A matmul of another shape differs in the last bits; the rank must not depend on it."""
    generator = torch.Generator().manual_seed(0)
    users = torch.randn(8, 96, generator=generator)
    items = torch.randn(3000, 96, generator=generator)
    targets = torch.randint(1, 3001, (8,), generator=generator).tolist()
    parts = [(s + 1, users @ items[s : s + 700].T) for s in range(0, 3000, 700)]
    ranks = rank_targets(
        lambda: iter(parts),
        torch.tensor(targets),
        Pairs.of([torch.tensor([], dtype=torch.int64)] * 8),
        None,
        num_items=3000,
    )
    assert torch.equal(ranks.rank, ranks.rank.round())


def test_one_block_takes_one_pass_and_more_take_two() -> None:
    for width, passes in ((6, 1), (4, 2)):
        calls = []
        blocks = cut(torch.rand(2, 6), width)

        def counted(blocks: Blocks = blocks, calls: list[int] = calls):  # type: ignore[no-untyped-def]
            calls.append(1)
            return blocks()

        rank_targets(
            counted, torch.tensor([1, 6]), Pairs.of([torch.tensor([2])] * 2), None, num_items=6
        )
        assert len(calls) == passes


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_flagged(bad: float, width: int) -> None:
    scores = torch.rand(3, 4)
    scores[1, 2] = bad
    assert ranked(scores, [1, 3, 2], width=width).finite.tolist() == [True, False, True]


def test_constant_scores_are_flagged() -> None:
    scores = torch.tensor([[2.0, 2.0, 2.0], [2.0, 2.0, 1.0]])
    assert ranked(scores, [1, 1]).constant.tolist() == [True, False]
    assert ranked(scores, [1, 1], width=1).constant.tolist() == [True, False]


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([(0, 3)], "a block of scores starts at row 0, not 1"),
        ([(1, 2), (4, 1)], "a block of scores starts at row 4, not 3"),
        ([(1, 2)], "the scores end at row 2, the catalogue at 3"),
        ([(1, 4)], "the scores end at row 4, the catalogue at 3"),
    ],
)
def test_blocks_that_are_not_the_catalogue(blocks: list[tuple[int, int]], message: str) -> None:
    parts = [(first, torch.rand(1, width)) for first, width in blocks]
    with pytest.raises(ValueError) as caught:
        rank_targets(
            lambda: iter(parts),
            torch.tensor([1]),
            Pairs.of([torch.tensor([2])]),
            None,
            num_items=3,
        )
    assert str(caught.value) == message


def test_scores_that_change_between_the_passes() -> None:
    with pytest.raises(ValueError, match="different scores for the same histories"):
        rank_targets(
            lambda: iter([(1, torch.rand(1, 2)), (3, torch.rand(1, 2))]),
            torch.tensor([2]),
            Pairs.of([torch.tensor([1])]),
            None,
            num_items=4,
        )


def test_top_of_breaks_ties_at_its_edge_by_the_smaller_column() -> None:
    scores = torch.tensor([[1.0, 3.0, 1.0, 1.0, 3.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    values, columns = top_of(scores, 3)
    assert columns.tolist() == [[1, 4, 0], [0, 1, 2]]
    assert values.tolist() == [[3.0, 3.0, 1.0], [5.0, 4.0, 3.0]]
    assert top_of(torch.zeros(2, 500), 20)[1].tolist() == [list(range(20))] * 2
