"""Round-to-nearest weight quantization: the baseline every other method must beat.

Letters: ``N`` outputs, ``K`` inputs, ``G`` groups of inputs that share a scale, ``b`` bits. The
grid is that of compressed-tensors, so that every method rounds to the same values.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """The values that weights may take: ``(code - zero_point) * scale`` in each group."""

    bits: int
    symmetric: bool
    scale: Tensor
    """``[N, G]`` float32, positive."""
    zero_point: Tensor
    """``[N, G]`` int8; zeros where the grid is symmetric."""

    @classmethod
    def of(cls, weight: Tensor, *, bits: int, group_size: int, symmetric: bool) -> "Grid":
        """The grid that just holds each group of a weight.

        A symmetric scale is the largest magnitude over ``(2^b - 1) / 2``; the largest positive
        weight then lies half a step above the last code. An asymmetric grid spans the group's
        range and 0.

        Args:
            weight: ``[N, K]`` float32; ``group_size`` divides K.
            bits: b.
            group_size: Inputs that share a scale.
            symmetric: Whether zero points are 0.
        """
        groups = weight.unflatten(1, (-1, group_size))
        lowest, highest = groups.amin(dim=2).clamp(max=0), groups.amax(dim=2).clamp(min=0)
        least, steps = -(2 ** (bits - 1)), 2**bits - 1
        if symmetric:
            scale = torch.maximum(-lowest, highest) / (steps / 2)
        else:
            scale = (highest - lowest) / steps
        # A group of zeros has any scale.
        scale = torch.where(scale == 0, torch.finfo(scale.dtype).eps, scale)
        if symmetric:
            return cls(bits, True, scale, torch.zeros_like(scale, dtype=torch.int8))
        zero = (least - lowest / scale).clamp(least, least + steps)
        return cls(bits, False, scale, zero.round().to(torch.int8))

    def codes(self, weight: Tensor) -> Tensor:
        """The nearest code of each weight ``[N, K]``: round-to-nearest.

        Returns:
            ``[N, K]`` int8 in ``[-2^(b-1), 2^(b-1) - 1]``.
        """
        groups = weight.unflatten(1, (self.scale.shape[1], -1))
        steps = groups / self.scale[:, :, None] + self.zero_point[:, :, None]
        least = -(2 ** (self.bits - 1))
        return steps.round().clamp(least, -least - 1).to(torch.int8).flatten(1)

    def weight(self, codes: Tensor) -> Tensor:
        """The weight ``[N, K]`` float32 that codes stand for."""
        groups = codes.unflatten(1, (self.scale.shape[1], -1)).to(self.scale.dtype)
        return ((groups - self.zero_point[:, :, None]) * self.scale[:, :, None]).flatten(1)
