"""Add items that are newer than the model to its item table; nothing is trained.

Their vectors come from texts, from the vectors of neighbours, or from the user. Letters: N items,
d item width.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from slmc.artefact import Artefact
from slmc.data.config import ItemTable, PrepareConfig
from slmc.data.item_texts import read_texts
from slmc.data.sources import fetch
from slmc.errors import UsageError
from slmc.export.config import ExportConfig
from slmc.export.items import cooccurrence, item_file, neighbours, table
from slmc.export.items.given import given_vectors, known_neighbours
from slmc.export.items.item_file import ItemFile
from slmc.model.loading import Recommender
from slmc.model.quantized_table import QuantizedTable
from slmc.model.text_map import TextMap

By = Literal["texts", "neighbours", "co-occurrence", "vectors"]

log = logging.getLogger("slmc.export")


@dataclass(frozen=True, eq=False)
class Vectors:
    """Items and their vectors."""

    items: pl.DataFrame
    """``item`` and ``title`` of N items."""
    vectors: NDArray[np.float32]
    """``[N, d]``."""
    by: By
    """Where the vectors come from."""


@dataclass(frozen=True, eq=False)
class NewItems:
    """What was changed in the item table of a model."""

    vocabulary: pl.DataFrame
    """``row``, ``item``, ``count``, ``title``: new items last, with a count of 0."""
    rows: NDArray[np.int64]
    """Rows that were added or replaced."""
    added: int
    replaced: int
    by: By

    @property
    def summary(self) -> Mapping[str, Any]:
        """For the manifest and ``engine.json``."""
        return {"added": self.added, "replaced": self.replaced, "by": self.by}


def extend(model: Recommender, source: Artefact, data: Artefact, config: ExportConfig) -> NewItems:
    """Add rows for new items to the item table of a model, and replace rows if asked to, in place.

    Args:
        model: Loaded from ``source``.
        source: The model artefact.
        data: The dataset; its config has the columns of logs and texts.
        config: ``items``, ``cooccurrence`` and ``replace``. Items that the model already has are
            skipped without ``replace``, and so are items without a text or a known neighbour.

    Raises:
        UsageError: The item table did not come from texts and the file has only these, a vector
            does not fit, too few neighbours are known, or no item is left.
        DataError: A file cannot be read, or lacks a column.
    """
    known = pl.read_parquet(source.file("items.parquet"))
    got = _vectors(model, source, data, known, config)
    is_known = got.items["item"].is_in(known["item"].implode())
    new, old = got.items.filter(~is_known), got.items.filter(is_known)
    places = is_known.to_numpy()
    rows = old.join(known, on="item", how="left", maintain_order="left")["row"].to_list()
    table.change(model, got.vectors[~places], rows, got.vectors[places])
    first = known.height + 1
    vocabulary = pl.concat(
        [
            _retitled(known, old).select("row", "item", "count", "title"),
            new.select(
                pl.int_range(first, first + new.height, dtype=pl.Int32).alias("row"),
                "item",
                pl.lit(0, pl.Int32).alias("count"),
                "title",
            ),
        ]
    )
    changed = np.concatenate([rows, np.arange(first, first + new.height)]).astype(np.int64)
    return NewItems(vocabulary, changed, new.height, old.height, got.by)


def _vectors(
    model: Recommender, source: Artefact, data: Artefact, known: pl.DataFrame, config: ExportConfig
) -> Vectors:
    """Items to add or to replace, and their vectors."""
    settings = PrepareConfig.model_validate(data.manifest.config)
    if config.cooccurrence is not None:
        return _from_log(model, known, settings, config)
    assert config.items is not None
    path, *more = fetch(config.items)
    file = ItemFile.open(path, item_file.id_columns(settings))
    by = item_file.source_of(file)
    if by == "texts":
        return _from_texts(model, source, data, known, config)
    if more:
        raise UsageError(f"items: {config.items} is several files.", "Name one file.")
    rows = _chosen(item_file.read(file), known["item"], config)
    if by == "vectors":
        vectors = given_vectors(rows, model.item_vectors().detach().numpy(), path, source.path)
        return Vectors(rows, vectors, by)
    with_rows = known_neighbours(rows, known, str(path))
    return _from_neighbours(model, with_rows, config.items, by)


def _chosen(rows: pl.DataFrame, known: pl.Series, config: ExportConfig) -> pl.DataFrame:
    """The items of a file, without those that the model has unless these are to be replaced."""
    if config.replace:
        return rows
    new = rows.filter(~pl.col("item").is_in(known.implode()))
    if new.height < rows.height:
        log.info(
            "%s: %d items that the model already has are skipped; --replace gives them the new "
            "vectors",
            config.items, rows.height - new.height,
        )  # fmt: skip
    if not new.height:
        raise UsageError(
            f"{config.items} has no item that the model does not have.",
            "Name a file with new items, or replace the vectors of known ones with --replace.",
        )
    return new


def _from_neighbours(model: Recommender, rows: pl.DataFrame, file: str, by: By) -> Vectors:
    """Vectors of the items that have a known neighbour: ``rows`` and ``weights`` not empty."""
    near = rows.filter(pl.col("rows").list.len() > 0)
    log.info(
        "%s: %d items get vectors from %.1f neighbours on average; skipped: %d without a known "
        "neighbour",
        file, near.height, near["rows"].list.len().mean() or 0, rows.height - near.height,
    )  # fmt: skip
    if not near.height:
        raise UsageError(
            f"{file}: no item has a neighbour that the model knows.",
            "Name neighbours of the model's vocabulary, or a log that has its items too.",
        )
    vectors = neighbours.vectors(model.item_vectors().detach().numpy(), near)
    return Vectors(near.select("item", "title"), vectors, by)


def _from_log(
    model: Recommender, known: pl.DataFrame, settings: PrepareConfig, config: ExportConfig
) -> Vectors:
    """Vectors of the new items of a log; with a file of items, only of those in the file."""
    assert config.cooccurrence is not None
    wanted = None
    if config.items is not None:
        file = ItemFile.open(fetch(config.items)[0], item_file.id_columns(settings))
        listed = item_file.read(file)
        wanted = _chosen(listed, known["item"], config).select("item", "title")
    counted = cooccurrence.count_neighbours(
        config.cooccurrence, settings, known["item"], None if wanted is None else wanted["item"]
    )
    if wanted is None:
        rows = counted.with_columns(pl.lit(None, pl.String).alias("title"))
    else:
        rows = wanted.join(counted, on="item", how="left", maintain_order="left")
        lists = (pl.col(name).fill_null([]) for name in ("neighbours", "weights"))
        rows = rows.with_columns(lists)
    if not rows.height:
        raise UsageError(
            f"{config.cooccurrence} has no item that the model does not have.",
            "Name a log with interactions of new items.",
        )
    return _from_neighbours(
        model, known_neighbours(rows, known, config.cooccurrence), config.cooccurrence,
        "co-occurrence",
    )  # fmt: skip


def _from_texts(
    model: Recommender, source: Artefact, data: Artefact, known: pl.DataFrame, config: ExportConfig
) -> Vectors:
    """Texts encoded, whitened and mapped like those of the item table."""
    text_map = TextMap.open(source)
    if not isinstance(model.item_embeddings, QuantizedTable):  # its rows are rounded
        text_map.check(model.item_vectors(), source.path)
    assert config.items is not None
    new = _with_texts(config, known["item"], data)
    vectors = text_map.vectors(new["text"].to_list()).numpy()
    return Vectors(new.select("item", "title"), vectors, "texts")


def _with_texts(config: ExportConfig, known: pl.Series, data: Artefact) -> pl.DataFrame:
    """Read ``item``, ``title`` and ``text`` of the items of a file that have a text."""
    file = str(config.items)
    texts = PrepareConfig.model_validate(data.manifest.config).items
    if texts is None:
        raise UsageError(
            f"the dataset {data.path} has no table of items, so the columns of a text are unknown.",
            "Name the dataset that the model was trained on with --data.",
        )
    # The same columns and template; the format is detected anew.
    whole = ItemTable(
        source=file,
        item=texts.item,
        columns=texts.columns,
        template=texts.template,
        max_chars=texts.max_chars,
    )
    frame = read_texts(fetch(file), whole)
    unknown = frame
    if not config.replace:
        unknown = frame.filter(~pl.col("item").is_in(known.implode()))
    new = unknown.filter(pl.col("text").is_not_null())
    log.info(
        "%s: %d items with a text; skipped: %d that the model already has, %d without a text",
        file, new.height, frame.height - unknown.height, unknown.height - new.height,
    )  # fmt: skip
    if not new.height:
        raise UsageError(
            f"{file} has no new item with a text.",
            "Export without --items, or name a file of items that the model does not have.",
        )
    return new


def _retitled(known: pl.DataFrame, old: pl.DataFrame) -> pl.DataFrame:
    """The vocabulary of the model, with the titles of replaced items if the file has them."""
    titles = old.select("item", pl.col("title").alias("new_title"))
    joined = known.join(titles, on="item", how="left", maintain_order="left")
    return joined.with_columns(pl.coalesce("new_title", "title").alias("title"))
