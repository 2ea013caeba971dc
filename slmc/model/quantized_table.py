"""An item table whose rows are stored as integers with a scale each.

Only the rows that are asked for become floats. Letters: ``R`` rows, ``d`` item width.
"""

import torch
from torch import Tensor, nn


class QuantizedTable(nn.Module):
    """Stands in for the ``nn.Embedding`` of a recommender; codes are no parameters."""

    codes: Tensor
    """``[R, d]`` int8, or ``[R, ceil(d / 2)]`` uint8: two codes + 8 a byte, the first one low."""
    scale: Tensor
    """``[R, 1]`` float32: a row is its codes times this."""

    def __init__(self, rows: int, width: int, bits: int) -> None:
        """Make an empty table, to be filled by loading.

        Args:
            rows: R, the padding row included.
            width: d.
            bits: 8 or 4.
        """
        super().__init__()
        self.rows, self.width, self.bits = rows, width, bits
        stored = (width, torch.int8) if bits == 8 else ((width + 1) // 2, torch.uint8)
        self.register_buffer("codes", torch.zeros(rows, stored[0], dtype=stored[1]))
        self.register_buffer("scale", torch.zeros(rows, 1))

    @property
    def weight(self) -> Tensor:
        """The whole table as floats, ``[R, d]``."""
        return self._floats(self.codes, self.scale)

    def signed_codes(self) -> Tensor:
        """The codes around 0, ``[R, d]`` int8."""
        return self._signed(self.codes)

    def forward(self, rows: Tensor) -> Tensor:
        """Vectors ``[..., d]`` of rows ``[...]``."""
        return self._floats(self.codes[rows], self.scale[rows])

    def _floats(self, codes: Tensor, scale: Tensor) -> Tensor:
        return self._signed(codes).float() * scale

    def _signed(self, codes: Tensor) -> Tensor:
        if self.bits == 8:
            return codes
        low, high = (codes & 15).char(), (codes >> 4).char()
        return torch.stack([low, high], dim=-1).flatten(-2)[..., : self.width] - 8
