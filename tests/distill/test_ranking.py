"""Ranking distillation: against plain loops in float64, worked by hand, invariances."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from slmc.distill.ranking import rank_weights, ranking_loss, top_items
from slmc.training import catalogue

TOLERANCE = 2e-6
"""Float32 scores of order 1, summed over a few dozen items."""


def tensors(n: int = 6, v: int = 11, d: int = 5, k: int = 4) -> tuple[Tensor, ...]:
    """User vectors, item vectors, the teacher's order without the target, targets, weights."""
    generator = torch.Generator().manual_seed(3)
    queries = torch.randn(n, d, generator=generator)
    items = torch.randn(v + 1, d, generator=generator)
    targets = torch.randint(1, v + 1, (n,), generator=generator)
    order = top_items([(torch.randn(n, d, generator=generator), items)], targets, k)
    return queries, items, order, targets, rank_weights(k, 3.0)


def plain(queries: Tensor, items: Tensor, order: Tensor, targets: Tensor, weights: Tensor) -> float:
    total = 0.0
    for n, target in enumerate(targets.tolist()):
        scores = [float(queries[n].double() @ item) for item in items.double()]
        first = order[n].tolist()
        others = [i for i in range(1, len(items)) if i != target and i not in first]
        for k, item in enumerate(first):
            compared = [*first[k:], *others]
            log_sum = math.log(sum(math.exp(scores[i]) for i in compared))
            total += float(weights[k]) * (log_sum - scores[item])
    return total / len(targets)


@pytest.fixture(params=[catalogue.CHUNK_SCORES, 1, 30], ids=["whole", "one by one", "chunks"])
def chunked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "CHUNK_SCORES", request.param)


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("k", [1, 4, 10])
def test_it_is_the_plain_loop(k: int) -> None:
    case = tensors(k=k)
    assert case[2].shape == (6, k)
    assert abs(ranking_loss(*case).item() - plain(*case)) < TOLERANCE


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("k", [1, 4, 10])
def test_its_gradients_are_those_of_autograd(k: int) -> None:
    queries, items, order, targets, weights = tensors(k=k)
    ours = [queries.clone().requires_grad_(), items.clone().requires_grad_()]
    theirs = [queries.double().requires_grad_(), items.double().requires_grad_()]
    (3 * ranking_loss(*ours, order, targets, weights)).backward()
    scores = theirs[0] @ theirs[1].T
    padding = torch.zeros_like(scores, dtype=torch.bool)
    padding[:, 0] = True
    left_out = padding.scatter(1, targets[:, None], True)
    loss = torch.zeros((), dtype=torch.float64)
    for rank in range(k):
        log_p = scores.masked_fill(left_out, -torch.inf).log_softmax(dim=1)
        loss = loss - weights[rank] * log_p.gather(1, order[:, rank, None]).mean()
        left_out = left_out.scatter(1, order[:, rank, None], True)
    (3 * loss).backward()
    for a, b in zip(ours, theirs, strict=True):
        assert a.grad is not None and b.grad is not None
        assert (a.grad - b.grad).abs().max() < 5 * TOLERANCE


def test_by_hand() -> None:
    """Scores log 2, log 3, log 5 and the target's: ranked 3 then 1, item 2 is the rest."""
    items = torch.tensor([[9.0], [math.log(2)], [math.log(3)], [math.log(5)], [40.0]])
    args = (torch.ones(1, 1), items, torch.tensor([[3, 1]]), torch.tensor([4]))
    expected = -0.5 * math.log(5 / 10) - 0.5 * math.log(2 / 5)
    assert ranking_loss(*args, rank_weights(2, None)).item() == pytest.approx(expected)


def test_one_ranked_item_is_the_cross_entropy_without_the_target() -> None:
    queries, items, order, targets, weights = tensors(k=1)
    targets = torch.full_like(targets, 11)
    order = order.clamp(max=10)
    found = ranking_loss(queries, items, order, targets, weights)
    expected = catalogue.cross_entropy(queries, items[:11], order[:, 0])
    assert torch.allclose(found, expected, atol=TOLERANCE)


@given(shift=st.floats(-50, 50))
def test_a_constant_on_all_scores_changes_nothing(shift: float) -> None:
    queries, items, order, targets, weights = tensors()
    with_bias = torch.cat([queries, torch.full((len(queries), 1), shift)], dim=1)
    with_one = torch.cat([items, torch.ones(len(items), 1)], dim=1)
    moved = ranking_loss(with_bias, with_one, order, targets, weights)
    assert torch.allclose(moved, ranking_loss(queries, items, order, targets, weights), atol=1e-4)


def test_an_item_that_stands_for_three_counts_as_three() -> None:
    queries, items, order, targets, weights = tensors()
    targets = torch.full_like(targets, 11)
    # Rows 1 to 9 are ranked, so 10 is one of the others.
    order = torch.stack([torch.arange(4) + n % 5 + 1 for n in range(len(order))])
    tables = [items.clone().requires_grad_(), torch.cat([items, items[[10, 10]]])]
    log_weights = torch.zeros(11)
    log_weights[9] = math.log(3)
    found = ranking_loss(queries, tables[0], order, targets, weights, log_weights)
    copies = tables[1].clone().requires_grad_()
    expected = ranking_loss(queries, copies, order, targets, weights)
    assert torch.allclose(found, expected, atol=TOLERANCE)
    (found + expected).backward()
    assert tables[0].grad is not None and copies.grad is not None
    assert torch.allclose(tables[0].grad[1:10], copies.grad[1:10], atol=TOLERANCE)
    assert torch.allclose(tables[0].grad[10], copies.grad[[10, 12, 13]].sum(0), atol=TOLERANCE)


def test_several_teachers_are_the_mean_of_their_distributions() -> None:
    queries, items, _, targets, _ = tensors()
    other = queries.flip(0), 3 * items.flip(1)
    top = top_items([(queries, items), other], targets, 5)
    mean = sum((q.double() @ t[1:].double().T).softmax(1) for q, t in ((queries, items), other))
    for n, target in enumerate(targets.tolist()):
        mean[n, target - 1] = -1
    assert torch.equal(top, mean.argsort(dim=1, descending=True)[:, :5] + 1)


def test_the_order_of_the_teacher_costs_least() -> None:
    queries, items, _, targets, weights = tensors()
    right = top_items([(queries, items)], targets, 4)
    best = ranking_loss(queries, items, right, targets, weights)
    for wrong in (right.flip(1), right[:, [1, 0, 2, 3]]):
        assert ranking_loss(queries, items, wrong, targets, weights) > best


def test_the_target_gets_no_gradient() -> None:
    queries, items, order, targets, weights = tensors(n=1)
    table = items.clone().requires_grad_()
    ranking_loss(queries, table, order, targets, weights).backward()
    assert table.grad is not None
    assert not table.grad[targets[0]].any() and not table.grad[0].any()
    assert table.grad[order[0, 0]].any()


def test_scores_far_apart_stay_finite() -> None:
    queries, items, order, targets, weights = tensors()
    far = (1e3 * queries).requires_grad_()
    loss = ranking_loss(far, items, order, targets, weights)
    loss.backward()
    assert loss.isfinite() and far.grad is not None and far.grad.isfinite().all()


@pytest.mark.usefixtures("chunked")
def test_top_items_are_sorted_and_without_target_and_padding() -> None:
    queries, items, _, targets, _ = tensors()
    items[0] = 1e6
    for k, count in ((3, 3), (50, 10)):
        top = top_items([(queries, items)], targets, k)
        assert top.shape == (6, count)
        for n, row in enumerate(top.tolist()):
            others = sorted(
                (i for i in range(1, 12) if i != int(targets[n])),
                key=lambda i: -float(queries[n] @ items[i]),
            )
            assert row == others[:count]


def test_weights_of_the_ranks() -> None:
    assert rank_weights(4, None).tolist() == [0.25] * 4
    weights = rank_weights(3, 2.0)
    assert weights.sum().item() == pytest.approx(1)
    assert (weights[1] / weights[0]).item() == pytest.approx(math.exp(-0.5))
