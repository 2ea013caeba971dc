"""Round-to-nearest weight quantization: the baseline that other methods must beat.

Letters: ``N`` outputs, ``K`` inputs, ``G`` groups of inputs that share a scale, ``b`` bits. Scales
and zero points are those of compressed-tensors, so every method uses the same grid.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Scales and zero points: a weight is ``(code - zero_point) * scale`` in each group."""

    bits: int
    symmetric: bool
    scale: Tensor
    """``[N, G]`` float32, positive."""
    zero_point: Tensor
    """``[N, G]`` int8; zeros if symmetric."""

    @classmethod
    def of(cls, weight: Tensor, *, bits: int, group_size: int, symmetric: bool) -> "Grid":
        """Return the smallest scales that cover each group of a weight.

        A symmetric scale is the largest magnitude divided by ``(2^b - 1) / 2``; the largest
        positive weight is then half a scale above the last code. An asymmetric grid covers the
        range of the group and 0.

        Args:
            weight: ``[N, K]`` float32; ``group_size`` divides K.
            bits: b.
            group_size: Inputs that share a scale.
            symmetric: Whether zero points are 0.
        """
        groups = weight.unflatten(1, (-1, group_size))
        lowest, highest = groups.amin(dim=2).clamp(max=0), groups.amax(dim=2).clamp(min=0)
        least, levels = -(2 ** (bits - 1)), 2**bits - 1
        if symmetric:
            scale = torch.maximum(-lowest, highest) / (levels / 2)
        else:
            scale = (highest - lowest) / levels
        # For a group of zeros any positive scale is correct.
        scale = torch.where(scale == 0, torch.finfo(scale.dtype).eps, scale)
        if symmetric:
            return cls(bits, True, scale, torch.zeros_like(scale, dtype=torch.int8))
        zero = (least - lowest / scale).clamp(least, least + levels)
        return cls(bits, False, scale, zero.round().to(torch.int8))

    def codes(self, weight: Tensor) -> Tensor:
        """Round each weight ``[N, K]`` to the nearest code.

        Returns:
            ``[N, K]`` int8 in ``[-2^(b-1), 2^(b-1) - 1]``.
        """
        groups = weight.unflatten(1, (self.scale.shape[1], -1))
        scaled = groups / self.scale[:, :, None] + self.zero_point[:, :, None]
        least = -(2 ** (self.bits - 1))
        return scaled.round().clamp(least, -least - 1).to(torch.int8).flatten(1)

    def weight(self, codes: Tensor) -> Tensor:
        """Dequantize codes to a weight ``[N, K]`` float32."""
        groups = codes.unflatten(1, (self.scale.shape[1], -1)).to(self.scale.dtype)
        return ((groups - self.zero_point[:, :, None]) * self.scale[:, :, None]).flatten(1)
