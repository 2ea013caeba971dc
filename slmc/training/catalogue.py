"""Losses over the whole catalogue whose memory does not grow with positions x items.

Logits are computed for one chunk of positions at a time, reduced to loss and gradient, and
freed. Only the gradients of queries and items are kept for the backward pass; they have the
shapes of queries and items. Letters: ``N`` positions, ``V`` items, ``d`` item width.

The items can also be a sample of the catalogue (:mod:`slmc.training.softmax`): then ``log_weights``
says how many items of the catalogue each one stands for.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

CHUNK_SCORES = 2**24
"""Logits of one chunk: 64 MB in float32."""


def cross_entropy(
    queries: Tensor, items: Tensor, targets: Tensor, log_weights: Tensor | None = None
) -> Tensor:
    """Return the mean cross-entropy, in nats, of the targets over the items 1..V.

    Args:
        queries: ``[N, d]`` user vectors.
        items: ``[V + 1, d]`` item vectors; row 0 is padding and is left out.
        targets: ``[N]`` int64 in 1..V.
        log_weights: ``[V]`` logarithm of each item's weight in the sum of the softmax; ``None``
            for weights of 1.
    """
    loss: Tensor = _CrossEntropy.apply(queries, items, targets, log_weights)
    return loss


def divergence(
    student: Tensor,
    student_items: Tensor,
    teachers: Sequence[tuple[Tensor, Tensor]],
    *,
    temperature: float,
    log_weights: Tensor | None = None,
) -> Tensor:
    """Return the mean KL(teacher || student) over the items 1..V, times the squared temperature.

    Hinton et al. 2015 (arXiv 1503.02531), section 2: the factor makes the size of the gradient
    independent of the temperature. Several teachers are one: the mean of their distributions.

    Args:
        student: ``[N, d]`` user vectors, with gradient.
        student_items: ``[V + 1, d]``.
        teachers: User vectors ``[N, e]`` and item vectors ``[V + 1, e]`` of each teacher, which
            get no gradient; the width e may differ between teachers.
        temperature: Divides the logits before the softmax.
        log_weights: ``[V]`` as in :func:`cross_entropy`, for all distributions.
    """
    fixed = [(queries.detach(), items.detach()) for queries, items in teachers]
    loss: Tensor = _Divergence.apply(student, student_items, fixed, temperature, log_weights)
    return loss


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, items: Tensor, targets: Tensor, log_weights: Tensor | None
    ) -> Tensor:
        fused = Fused(ctx, queries, items)
        for part in fused.chunks():
            log_p = weighted(fused.logits(part), log_weights).log_softmax(dim=1)
            columns = (targets[part] - 1)[:, None]
            fused.loss += -log_p.gather(1, columns).double().sum()
            fused.add_gradient(
                part, log_p.exp_().scatter_add_(1, columns, -torch.ones_like(columns).float())
            )
        return fused.finish()

    @staticmethod
    def backward(ctx: Any, *grad: Any) -> Any:
        return (*scaled(ctx, grad[0]), None, None)


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        items: Tensor,
        teachers: list[tuple[Tensor, Tensor]],
        temperature: float,
        log_weights: Tensor | None,
    ) -> Tensor:
        fused = Fused(ctx, student, items)
        rows = [(queries, table[1:].float()) for queries, table in teachers]
        for part in fused.chunks():
            log_q = weighted(fused.logits(part) / temperature, log_weights).log_softmax(dim=1)
            taught = [q[part].float() @ t.T / temperature for q, t in rows]
            log_p = log_mean([weighted(logits, log_weights) for logits in taught])
            p = log_p.exp()
            fused.loss += temperature**2 * (p * (log_p - log_q)).double().sum()
            fused.add_gradient(part, (log_q.exp_() - p) * temperature)
        return fused.finish()

    @staticmethod
    def backward(ctx: Any, *grad: Any) -> Any:
        return (*scaled(ctx, grad[0]), None, None, None)


def weighted(logits: Tensor, log_weights: Tensor | None) -> Tensor:
    """Add the logarithms ``[V]`` of the items' weights to logits ``[n, V]``, in place."""
    return logits if log_weights is None else logits.add_(log_weights)


def log_mean(logits: list[Tensor]) -> Tensor:
    """Return the logarithm ``[N, V]`` of the mean of the softmax distributions of some logits."""
    mean = logits[0].log_softmax(dim=1)
    for other in logits[1:]:
        mean = torch.logaddexp(mean, other.log_softmax(dim=1))
    return mean - math.log(len(logits)) if len(logits) > 1 else mean


class Fused:
    """Loss and gradients, accumulated chunk by chunk in the forward pass."""

    def __init__(self, ctx: Any, queries: Tensor, items: Tensor) -> None:
        """Start sums of zero; ``ctx`` is that of the autograd function."""
        self.ctx = ctx
        self.queries = queries.detach().float()
        self.items = items.detach()[1:].float()
        self.loss = torch.zeros((), dtype=torch.float64, device=queries.device)
        needed = ctx.needs_input_grad
        self.query_grad = torch.zeros_like(self.queries) if needed[0] else None
        self.item_grad = torch.zeros_like(items, dtype=torch.float32) if needed[1] else None
        ctx.types = (queries.dtype, items.dtype)

    def chunks(self) -> list[slice]:
        """Return the chunks of positions."""
        return chunks(len(self.queries), len(self.items))

    def logits(self, part: slice) -> Tensor:
        """Return the scores ``[n, V]`` of a chunk."""
        with torch.autocast(self.queries.device.type, enabled=False):
            return self.queries[part] @ self.items.T

    def add_gradient(self, part: slice, logit_grad: Tensor) -> None:
        """Add the gradients of queries and items, from those of a chunk's scores ``[n, V]``."""
        with torch.autocast(self.queries.device.type, enabled=False):
            if self.query_grad is not None:
                self.query_grad[part] = logit_grad @ self.items
            if self.item_grad is not None:
                self.item_grad[1:] += logit_grad.T @ self.queries[part]

    def finish(self) -> Tensor:
        """Keep the gradients of the mean over positions for the backward pass, and return it."""
        count = len(self.queries)
        for name, grad in (("query_grad", self.query_grad), ("item_grad", self.item_grad)):
            setattr(self.ctx, name, None if grad is None else grad / count)
        return (self.loss / count).float()


def chunks(positions: int, items: int) -> list[slice]:
    """Return chunks of positions whose scores of all items are at most :data:`CHUNK_SCORES`."""
    size = max(1, CHUNK_SCORES // max(1, items))
    return [slice(i, i + size) for i in range(0, positions, size)]


def scaled(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return the kept gradients of queries and items, times that of the loss."""
    pair = zip((ctx.query_grad, ctx.item_grad), ctx.types, strict=True)
    queries, items = [None if g is None else (g * grad).to(t) for g, t in pair]
    return queries, items
