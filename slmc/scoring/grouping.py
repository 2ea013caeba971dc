"""From interactions to histories, with flat memory: large inputs are split by user on disk.

An input of up to :data:`IN_MEMORY` rows is grouped in memory, and its users come in the order of
their first row. A larger one is split into :data:`BUCKETS` buckets of users, by a hash
(:mod:`slmc.data.buckets`): then users come bucket by bucket, and in a bucket by their first row.
Either way the order depends on the input alone.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from slmc.data.buckets import Buckets
from slmc.scoring.batches import Batch
from slmc.scoring.settings import hashes
from slmc.scoring.source import Source
from slmc.serving.catalogue import Catalogue
from slmc.serving.frames import grouped, order_of

IN_MEMORY = 1 << 22
"""Rows that are grouped in memory."""
BUCKETS = 64

log = logging.getLogger("slmc.score")


def histories(
    source: Source, catalogue: Catalogue, folder: Path | None, total: int | None
) -> Iterator[Batch]:
    """The histories of an input with one row per interaction.

    Args:
        source: The input.
        catalogue: Names the items.
        folder: Where large inputs are split; None for the cache.
        total: Rows of the input, if known.
    """
    buckets, read = Buckets(BUCKETS, _bucket_of, memory=IN_MEMORY, folder=folder), 0
    for frame, read in source.interactions(catalogue):
        buckets.append(frame)
        _progress(read, total)
    if read:
        _progress(read, read)
    done, rows = 0, max(1, buckets.height)
    for table in buckets.tables():
        done += table.height
        yield _batch(table, source, read * done // rows)


def _progress(read: int, total: int | None) -> None:
    done = {"task": "score: read", "done": read, "total": total, "unit": "rows"}
    log.debug("progress", extra={"progress": done})


def _bucket_of(rows: pl.DataFrame) -> NDArray[np.int64]:
    """The bucket of the user of each row."""
    users = rows["user"].unique()
    # The upper bits: the lower ones have chosen the shard.
    buckets = pl.DataFrame({"user": users, "bucket": (hashes(users) >> 16) % BUCKETS})
    return rows.join(buckets, on="user", maintain_order="left")["bucket"].to_numpy()


def _batch(rows: pl.DataFrame, source: Source, read: int) -> Batch:
    if "time" in rows.columns:
        rows = rows.with_columns(order_of(rows["time"], str(source.paths[0])).alias("time"))
    table = grouped(rows, source.columns.user or "user")
    items = table.ids.to_numpy().astype(np.int32, copy=False)
    return Batch(table.users, items, table.lengths, read)
