"""Add items that are newer than the model to its item table, by their texts.

Nothing is trained. Texts are built like those of the dataset, and encoded, whitened and mapped like
those of the item table (:mod:`slmc.model.text_map`).
"""

import logging

import polars as pl
import torch
from torch import Tensor, nn

from slmc.artefact import Artefact
from slmc.data.config import ItemTable, PrepareConfig
from slmc.data.item_texts import read_texts
from slmc.data.sources import fetch
from slmc.errors import UsageError
from slmc.export.graph.item_table import rounded_rows
from slmc.model.loading import Recommender
from slmc.model.quantized_table import QuantizedTable
from slmc.model.text_map import TextMap

log = logging.getLogger("slmc.export")


def extend(model: Recommender, source: Artefact, data: Artefact, items: str) -> pl.DataFrame:
    """Add rows for new items to the item table of a model, in place.

    Args:
        model: Loaded from ``source``.
        source: The model artefact.
        data: The dataset; its config has the columns and the template of a text.
        items: File of new items, with the columns of ``data.items``. Items that the model
            already has and items without a text are skipped.

    Returns:
        The vocabulary (``row``, ``item``, ``count``, ``title``), new items last with a count of 0.

    Raises:
        UsageError: The item table did not come from texts or was trained afterwards, or there is
            no new item.
        DataError: The file cannot be read, or lacks a column.
    """
    known = pl.read_parquet(source.file("items.parquet"))
    text_map = TextMap.open(source)
    if isinstance(model.item_embeddings, nn.Embedding):
        text_map.check(model.item_vectors(), source.path)
    new = _new_items(items, known["item"], data)
    _append(model, text_map.vectors(new["text"].to_list()))
    rows = new.select(
        pl.int_range(known.height + 1, known.height + new.height + 1, dtype=pl.Int32).alias("row"),
        "item",
        pl.lit(0, pl.Int32).alias("count"),
        "title",
    )
    return pl.concat([known.select(rows.columns), rows])


def _new_items(file: str, known: pl.Series, data: Artefact) -> pl.DataFrame:
    """Read ``item``, ``title`` and ``text`` of the items of a file that are new and have a text."""
    table = PrepareConfig.model_validate(data.manifest.config).items
    if table is None:
        raise UsageError(
            f"the dataset {data.path} has no table of items, so the columns of a text are unknown.",
            "Name the dataset that the model was trained on with --data.",
        )
    # The same columns and template; the format is detected anew.
    whole = ItemTable(
        source=file,
        item=table.item,
        columns=table.columns,
        template=table.template,
        max_chars=table.max_chars,
    )
    frame = read_texts(fetch(file), whole)
    unknown = frame.filter(~pl.col("item").is_in(known.implode()))
    new = unknown.filter(pl.col("text").is_not_null())
    log.info(
        "%s: %d new items; skipped: %d that the model already has, %d without a text",
        file, new.height, frame.height - unknown.height, unknown.height - new.height,
    )  # fmt: skip
    if not new.height:
        raise UsageError(
            f"{file} has no new item with a text.",
            "Export without --items, or name a file of items that the model does not have.",
        )
    return new


def _append(model: Recommender, vectors: Tensor) -> None:
    """Add rows to the item table; a quantized table gets rounded rows."""
    table = model.item_embeddings
    if isinstance(table, QuantizedTable):
        model.item_embeddings = _appended(table, vectors)
    else:
        weight = torch.cat([table.weight.detach(), vectors.to(table.weight)])
        model.item_embeddings = nn.Embedding.from_pretrained(weight, padding_idx=0)
    model.config.num_items += len(vectors)


def _appended(table: QuantizedTable, vectors: Tensor) -> QuantizedTable:
    rounded = rounded_rows(vectors.numpy(), table.bits)
    codes = torch.from_numpy(rounded.codes)
    if table.bits == 8:
        stored = (codes.to(torch.int16) - 128).to(torch.int8)
    else:
        even = torch.nn.functional.pad(codes, (0, table.width % 2), value=8)
        stored = even[:, 0::2] | (even[:, 1::2] << 4)
    longer = QuantizedTable(table.rows + len(vectors), table.width, table.bits)
    longer.codes = torch.cat([table.codes, stored])
    longer.scale = torch.cat([table.scale, torch.from_numpy(rounded.scale[:, :1].copy())])
    return longer
