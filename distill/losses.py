"""The distillation terms of SLMRec (Xu et al., ICLR 2025, arXiv 2405.17890, section 4).

Shapes: ``N`` positions that have a target, ``B`` blocks, ``H`` hidden width, ``d`` item width,
``V`` items. Where the authors' code differs from the paper, this follows the paper: means over
blocks, a squared norm, every block compared at the same point.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from slmc.training import catalogue

FLOOR = 1e-12
"""Smallest mean square of a dimension, relative to the mean over dimensions."""


def direction_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Return the cosine distance of student and teacher states: :math:`1 - D_{cos}`.

    Args:
        student: ``[N, B, H]`` hidden states after each block.
        teacher: ``[N, B, H]``; gets no gradient.

    Returns:
        A scalar in ``[0, 2]``; 0 when every pair is parallel. The mean over blocks, as in the
        paper (the authors' code sums them, so its :math:`\lambda_1` is ``B`` times ours).
    """
    return 1 - F.cosine_similarity(student.float(), teacher.detach().float(), dim=-1).mean()


def norm_loss(student: Tensor, teacher: Tensor, mean_square: Tensor | None = None) -> Tensor:
    r"""Return the squared distance :math:`D_{norm}` of student and teacher states.

    Args:
        student: ``[N, B, H]``.
        teacher: ``[N, B, H]``; gets no gradient.
        mean_square: ``[B, H]`` mean square of the teacher's states per dimension. If given, squared
            distances are divided by it and averaged over dimensions: the loss is then of order
            1, and no outlier channel of the LLM dominates it. If not: the paper's formula,
            summed over dimensions.
    """
    square = (student.float() - teacher.detach().float()).square()
    if mean_square is None:
        return square.sum(dim=-1).mean()
    floor = FLOOR * mean_square.mean(dim=-1, keepdim=True)
    return (square / mean_square.maximum(floor)).mean()


def supervision_loss(
    queries: Tensor, items: Tensor, targets: Tensor, log_weights: Tensor | None = None
) -> Tensor:
    r"""Return the multiple supervision loss :math:`L_{ms}`, over every block but the last.

    Args:
        queries: ``[N, B - 1, d]``, the blocks' states after their heads :math:`W_a^k`.
        items: ``[V + 1, d]`` item vectors; row 0 is padding.
        targets: ``[N]`` int64 in 1..V.
        log_weights: ``[V]``, as in :func:`slmc.training.catalogue.cross_entropy`.
    """
    blocks = queries.unbind(dim=1)
    losses = [catalogue.cross_entropy(block, items, targets, log_weights) for block in blocks]
    return torch.stack(losses).mean()


def block_ends(layers: int, blocks: int) -> tuple[int, ...]:
    """Return the last layer of each block; block sizes differ by at most one layer."""
    if not 1 <= blocks <= layers:
        raise ValueError(f"{layers} layers cannot be divided into {blocks} blocks")
    return tuple((k + 1) * layers // blocks - 1 for k in range(blocks))
