"""An item table with integer codes and one scale per row.

Only rows that are looked up are dequantized. Letters: ``R`` rows, ``d`` item width.
"""

import torch
from torch import Tensor, nn


class QuantizedTable(nn.Module):
    """Replaces the ``nn.Embedding`` of a recommender; its codes are buffers, not parameters."""

    codes: Tensor
    """``[R, d]`` int8, or ``[R, ceil(d / 2)]`` uint8: two codes + 8 per byte, the first one low."""
    scale: Tensor
    """``[R, 1]`` float32: a row is its codes times its scale."""

    def __init__(self, rows: int, width: int, bits: int) -> None:
        """Make a table of zeros, to be filled by loading.

        Args:
            rows: R, including the padding row.
            width: d.
            bits: 8 or 4.
        """
        super().__init__()
        self.rows, self.width, self.bits = rows, width, bits
        columns = (width, torch.int8) if bits == 8 else ((width + 1) // 2, torch.uint8)
        self.register_buffer("codes", torch.zeros(rows, columns[0], dtype=columns[1]))
        self.register_buffer("scale", torch.zeros(rows, 1))

    @property
    def weight(self) -> Tensor:
        """The whole table, dequantized, ``[R, d]``."""
        return self._dequantized(self.codes, self.scale)

    def signed_codes(self) -> Tensor:
        """Return the signed codes, ``[R, d]`` int8."""
        return self._signed(self.codes)

    def forward(self, rows: Tensor) -> Tensor:
        """Return vectors ``[..., d]`` of rows ``[...]``."""
        return self._dequantized(self.codes[rows], self.scale[rows])

    def _dequantized(self, codes: Tensor, scale: Tensor) -> Tensor:
        return self._signed(codes).float() * scale

    def _signed(self, codes: Tensor) -> Tensor:
        if self.bits == 8:
            return codes
        low, high = (codes & 15).char(), (codes >> 4).char()
        return torch.stack([low, high], dim=-1).flatten(-2)[..., : self.width] - 8
