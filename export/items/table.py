"""Change the item table of a model: add rows, or give rows other vectors."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slmc.export.graph.item_table import rounded_rows
from slmc.model.loading import Recommender
from slmc.model.quantized_table import QuantizedTable


def change(
    model: Recommender,
    added: NDArray[np.float32],
    rows: Sequence[int],
    swapped: NDArray[np.float32],
) -> None:
    """Change the item table of a model in place; a quantized table gets rounded rows.

    Args:
        model: Its table has R rows of width d.
        added: ``[N, d]`` vectors of the rows R .. R + N - 1.
        rows: M rows that get other vectors.
        swapped: ``[M, d]`` these vectors.
    """
    table = model.item_embeddings
    if isinstance(table, QuantizedTable):
        model.item_embeddings = _changed_codes(table, added, rows, swapped)
    else:
        before = table.weight.detach()
        weight = torch.cat([before, torch.from_numpy(added).to(before)])
        weight[list(rows)] = torch.from_numpy(swapped).to(before)
        model.item_embeddings = nn.Embedding.from_pretrained(weight, padding_idx=0)
    model.config.num_items += len(added)


def _changed_codes(
    table: QuantizedTable,
    added: NDArray[np.float32],
    rows: Sequence[int],
    swapped: NDArray[np.float32],
) -> QuantizedTable:
    changed = QuantizedTable(table.rows + len(added), table.width, table.bits)
    codes, scale = _rounded(added, table)
    changed.codes = torch.cat([table.codes, codes])
    changed.scale = torch.cat([table.scale, scale])
    if rows:
        changed.codes[list(rows)], changed.scale[list(rows)] = _rounded(swapped, table)
    return changed


def _rounded(vectors: NDArray[np.float32], table: QuantizedTable) -> tuple[Tensor, Tensor]:
    """The codes of vectors as the table stores them, and their scales."""
    if not len(vectors):
        return table.codes[:0], table.scale[:0]
    rounded = rounded_rows(vectors, table.bits)
    codes = torch.from_numpy(rounded.codes)
    scale = torch.from_numpy(rounded.scale[:, :1].copy())
    if table.bits == 8:
        return (codes.to(torch.int16) - 128).to(torch.int8), scale
    even = nn.functional.pad(codes, (0, table.width % 2), value=8)
    return even[:, 0::2] | (even[:, 1::2] << 4), scale
