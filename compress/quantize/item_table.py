"""The item table in 8 or 4 bits, a scale a row.

For a large catalogue it is most of the model. What counts is the order in which it ranks, so
the stage measures that and no weight error. Letters: ``R`` rows, ``d`` item width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from slmc.model.quantized_table import QuantizedTable
from slmc.model.recommender import SequentialRecommender

BITS = {"int8": 8, "int4": 4}


def quantize_table(model: SequentialRecommender, form: str) -> None:
    """Put the item table of a model into ``int8`` or ``int4``, in place."""
    weight = model.item_embeddings.weight.detach()
    rows, width = weight.shape
    table = QuantizedTable(rows, width, BITS[form])
    codes, table.scale = rowwise(weight, BITS[form])
    table.codes = packed(codes) if BITS[form] == 4 else codes
    model.item_embeddings = table
    model.config.item_bits = BITS[form]


def rowwise(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Round each row to the nearest multiples of its largest entry over ``2^(bits-1) - 1``.

    Args:
        weight: ``[R, d]`` float32; a row of zeros stays one.
        bits: Width of a code, sign included.

    Returns:
        Codes ``[R, d]`` int8, symmetric around 0, and scales ``[R, 1]`` float32.
    """
    top = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(dim=1, keepdim=True) / top
    steps = weight / torch.where(scale > 0, scale, 1)
    return steps.round().clamp(-top, top).char(), scale


def packed(codes: Tensor) -> Tensor:
    """Codes ``[R, d]`` in [-8, 7] as bytes ``[R, ceil(d / 2)]``; see :class:`QuantizedTable`."""
    nibbles = F.pad(codes + 8, (0, codes.shape[1] % 2)).to(torch.uint8)
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)
