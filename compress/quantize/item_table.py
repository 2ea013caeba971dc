"""Quantize the item table to 8 or 4 bits, with one scale per row.

For a large catalogue it is most of the model. The order of the scores matters, so the stage
evaluates the ranking, not the weight error. Letters: ``R`` rows, ``d`` item width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from slmc.model.quantized_table import QuantizedTable
from slmc.model.recommender import SequentialRecommender

BITS = {"int8": 8, "int4": 4}


def quantize_table(model: SequentialRecommender, form: str) -> None:
    """Quantize the item table of a model to ``int8`` or ``int4``, in place."""
    weight = model.item_embeddings.weight.detach()
    rows, width = weight.shape
    table = QuantizedTable(rows, width, BITS[form])
    codes, table.scale = rowwise(weight, BITS[form])
    table.codes = packed(codes) if BITS[form] == 4 else codes
    model.item_embeddings = table
    model.config.item_bits = BITS[form]


def rowwise(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Quantize each row symmetrically; the scale is its largest magnitude / ``(2^(bits-1) - 1)``.

    Args:
        weight: ``[R, d]`` float32; rows of zeros stay zero.
        bits: Bits per weight, sign included.

    Returns:
        Codes ``[R, d]`` int8, symmetric around 0, and scales ``[R, 1]`` float32.
    """
    top = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(dim=1, keepdim=True) / top
    scaled = weight / torch.where(scale > 0, scale, 1)
    return scaled.round().clamp(-top, top).char(), scale


def packed(codes: Tensor) -> Tensor:
    """Pack codes ``[R, d]`` in [-8, 7] to bytes ``[R, ceil(d / 2)]`` (:class:`QuantizedTable`)."""
    nibbles = F.pad(codes + 8, (0, codes.shape[1] % 2)).to(torch.uint8)
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)
