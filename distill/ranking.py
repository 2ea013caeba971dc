"""Ranking distillation: the student puts the teacher's best items first, in the teacher's order.

Relaxed ranking distillation (Kang et al., CIKM 2020, arXiv 2012.04357, equation 5), with the weight
of a rank from DLLM2Rec (Cui et al., RecSys 2024, arXiv 2405.00338): of the first K items of the
teacher the order counts, of all others only that they come later. The next item itself has no part
in it: its cross-entropy says where it belongs, and as one of the others it would be pushed down
wherever the teacher misses it. Letters: ``N`` positions, ``V`` items, ``K`` ranked items, ``d`` and
``e`` item widths of student and teacher.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from slmc.training import catalogue


@torch.no_grad()
def top_items(teachers: Sequence[tuple[Tensor, Tensor]], targets: Tensor, k: int) -> Tensor:
    """Return the best items of the teachers at each position, without the position's own target.

    Several teachers are one: the mean of their distributions.

    Args:
        teachers: User vectors ``[N, e]`` and item vectors ``[V + 1, e]`` of each teacher; row 0 is
            padding and is left out.
        targets: ``[N]`` int64 in 1..V.
        k: Number of items; at most the V - 1 that are left are returned.

    Returns:
        ``[N, K]`` int64 rows in 1..V, best first.
    """
    rows = [(queries, items[1:].float()) for queries, items in teachers]
    count = len(rows[0][1])
    best = targets.new_empty(len(targets), min(k, count - 1))
    for part in catalogue.chunks(len(targets), count):
        with torch.autocast(targets.device.type, enabled=False):
            logits = [queries[part].float() @ table.T for queries, table in rows]
        scores = catalogue.log_mean(logits)
        scores.scatter_(1, targets[part, None] - 1, -torch.inf)
        best[part] = scores.topk(best.shape[1]).indices + 1
    return best


def rank_weights(count: int, decay: float | None, device: torch.device | str = "cpu") -> Tensor:
    """Return the weights ``[K]`` of the ranks, whose sum is 1.

    Args:
        count: K.
        decay: Rank k = 1, 2, … weighs ``exp(-k / decay)``; ``None`` for equal weights.
        device: Of the weights.
    """
    ranks = torch.arange(count, dtype=torch.float32, device=device)
    return torch.softmax(torch.zeros_like(ranks) if decay is None else -ranks / decay, dim=0)


def ranking_loss(
    queries: Tensor,
    items: Tensor,
    order: Tensor,
    targets: Tensor,
    weights: Tensor,
    log_weights: Tensor | None = None,
) -> Tensor:
    r"""Return the mean over positions of :math:`-\sum_k w_k \log p_k`, in nats.

    :math:`p_k = e^{s_k} / (\sum_{j=k}^{K} e^{s_j} + \sum_{i \notin order} e^{s_i})`, where s are
    the student's scores: the probability that item k comes before the ranked items after it and
    before all others. Memory does not grow with ``N x V``.

    Args:
        queries: ``[N, d]`` the student's user vectors.
        items: ``[V + 1, d]`` its item vectors; row 0 is padding.
        order: ``[N, K]`` int64 rows in 1..V, distinct in each position, best first.
        targets: ``[N]`` int64 in 1..V, not in ``order``; they are left out of every sum.
        weights: ``[K]``.
        log_weights: ``[V]`` logarithm of how many items each one stands for where it is not
            ranked, if the items are a sample (:mod:`slmc.training.softmax`).
    """
    loss: Tensor = _Ranking.apply(queries, items, order, targets, weights, log_weights)
    return loss


class _Ranking(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        items: Tensor,
        order: Tensor,
        targets: Tensor,
        weights: Tensor,
        log_weights: Tensor | None,
    ) -> Tensor:
        fused = catalogue.Fused(ctx, queries, items)
        for part in fused.chunks():
            logits, ranked_at = fused.logits(part), order[part] - 1
            logits.scatter_(1, targets[part, None] - 1, -torch.inf)
            ranked = logits.gather(1, ranked_at)
            logits = catalogue.weighted(logits, log_weights)
            others = logits.scatter(1, ranked_at, -torch.inf).logsumexp(dim=1, keepdim=True)
            later = ranked.flip(1).logcumsumexp(dim=1).flip(1)
            log_sum = torch.logaddexp(later, others)
            fused.loss += (weights * (log_sum - ranked)).double().sum()
            # Of an item's score: the sum of w_k p over the ranks k in whose sums it is.
            pull = (weights.log() - log_sum).logcumsumexp(dim=1)
            grad = logits.add_(pull[:, -1:]).exp_()
            fused.add_gradient(part, grad.scatter_(1, ranked_at, (ranked + pull).exp_() - weights))
        return fused.finish()

    @staticmethod
    def backward(ctx: Any, *grad: Any) -> Any:
        return (*catalogue.scaled(ctx, grad[0]), None, None, None, None)
