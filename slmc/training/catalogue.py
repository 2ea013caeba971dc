"""Losses over the whole catalogue whose memory does not grow with positions x items.

The scores of a chunk of positions are computed, turned into loss and gradient at once, and
dropped; only the gradients of queries and items, which are as large as these themselves, are
kept for the backward pass. Letters: ``N`` positions, ``V`` items, ``d`` item width.
"""

from typing import Any

import torch
from torch import Tensor

CHUNK_SCORES = 2**24
"""Scores that exist at a time: 64 MB in float32."""


def cross_entropy(queries: Tensor, items: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy, in nats, of the targets among the items 1..V.

    Args:
        queries: ``[N, d]`` user vectors.
        items: ``[V + 1, d]`` item vectors; row 0 is padding and takes no part.
        targets: ``[N]`` int64 in 1..V.
    """
    loss: Tensor = _CrossEntropy.apply(queries, items, targets)
    return loss


def divergence(
    student: Tensor,
    student_items: Tensor,
    teacher: Tensor,
    teacher_items: Tensor,
    *,
    temperature: float,
) -> Tensor:
    """Mean KL(teacher || student) over the items 1..V, times the squared temperature.

    Hinton et al. 2015 (arXiv 1503.02531), section 2: the factor keeps the size of the
    gradient free of the temperature.

    Args:
        student: ``[N, d]`` user vectors, with gradient.
        student_items: ``[V + 1, d]``.
        teacher: ``[N, e]`` user vectors; carries no gradient.
        teacher_items: ``[V + 1, e]``.
        temperature: Scores are divided by it before the softmax.
    """
    loss: Tensor = _Divergence.apply(
        student, student_items, teacher.detach(), teacher_items.detach(), temperature
    )
    return loss


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, items: Tensor, targets: Tensor) -> Tensor:
        fused = _Fused(ctx, queries, items)
        for part in fused.chunks():
            scores = fused.scores(part)
            log_p = scores.log_softmax(dim=1)
            wanted = (targets[part] - 1)[:, None]
            fused.loss += -log_p.gather(1, wanted).double().sum()
            fused.keep(part, log_p.exp_().scatter_add_(1, wanted, -torch.ones_like(wanted).float()))
        return fused.finish()

    @staticmethod
    def backward(ctx: Any, *grad: Any) -> Any:
        return (*_scaled(ctx, grad[0]), None)


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        items: Tensor,
        teacher: Tensor,
        teacher_items: Tensor,
        temperature: float,
    ) -> Tensor:
        fused = _Fused(ctx, student, items)
        known = teacher_items[1:].float()
        for part in fused.chunks():
            log_q = (fused.scores(part) / temperature).log_softmax(dim=1)
            log_p = (teacher[part].float() @ known.T / temperature).log_softmax(dim=1)
            p = log_p.exp()
            fused.loss += temperature**2 * (p * (log_p - log_q)).double().sum()
            fused.keep(part, (log_q.exp_() - p) * temperature)
        return fused.finish()

    @staticmethod
    def backward(ctx: Any, *grad: Any) -> Any:
        return (*_scaled(ctx, grad[0]), None, None, None)


class _Fused:
    """Loss and gradients, gathered chunk by chunk in the forward pass."""

    def __init__(self, ctx: Any, queries: Tensor, items: Tensor) -> None:
        self.ctx = ctx
        self.queries = queries.detach().float()
        self.items = items.detach()[1:].float()
        self.loss = torch.zeros((), dtype=torch.float64, device=queries.device)
        wants = ctx.needs_input_grad
        self.query_grad = torch.zeros_like(self.queries) if wants[0] else None
        self.item_grad = torch.zeros_like(items, dtype=torch.float32) if wants[1] else None
        ctx.types = (queries.dtype, items.dtype)

    def chunks(self) -> list[slice]:
        size = max(1, CHUNK_SCORES // max(1, len(self.items)))
        return [slice(i, i + size) for i in range(0, len(self.queries), size)]

    def scores(self, part: slice) -> Tensor:
        with torch.autocast(self.queries.device.type, enabled=False):
            return self.queries[part] @ self.items.T

    def keep(self, part: slice, score_grad: Tensor) -> None:
        with torch.autocast(self.queries.device.type, enabled=False):
            if self.query_grad is not None:
                self.query_grad[part] = score_grad @ self.items
            if self.item_grad is not None:
                self.item_grad[1:] += score_grad.T @ self.queries[part]

    def finish(self) -> Tensor:
        count = len(self.queries)
        for name, grad in (("query_grad", self.query_grad), ("item_grad", self.item_grad)):
            setattr(self.ctx, name, None if grad is None else grad / count)
        return (self.loss / count).float()


def _scaled(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    pair = zip((ctx.query_grad, ctx.item_grad), ctx.types, strict=True)
    queries, items = [None if g is None else (g * grad).to(t) for g, t in pair]
    return queries, items
