"""From interactions to histories, with flat memory: large inputs are split by user on disk.

An input of up to :data:`IN_MEMORY` rows is grouped in memory, and its users come in the order of
their first row. A larger one is written to :data:`BUCKETS` groups of users, by a hash, and read
back group by group: then users come group by group, and in a group by their first row.
Either way the order depends on the input alone.
"""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from slmc.scoring.settings import hashes
from slmc.scoring.source import Batch, Source
from slmc.serving.catalogue import Catalogue
from slmc.serving.frames import grouped, order_of

IN_MEMORY = 1 << 22
BUCKETS = 64
FLUSH_ROWS = 1 << 21
"""Rows that are collected before they are written to the buckets."""

log = logging.getLogger("slmc.score")


def histories(
    source: Source, catalogue: Catalogue, folder: Path, total: int | None, in_memory: int
) -> Iterator[Batch]:
    """The histories of an input with one row per interaction.

    Args:
        source: The input.
        catalogue: Names the items.
        folder: Where large inputs are split; it is removed at the end.
        total: Rows of the input, if known.
        in_memory: Rows that are grouped in memory.
    """
    shutil.rmtree(folder, ignore_errors=True)
    frames: list[pl.DataFrame] = []
    waiting, read, flushes = 0, 0, 0
    for frame, read in source.interactions(catalogue):
        frames.append(frame)
        waiting += frame.height
        done = {"task": "score: read", "done": read, "total": total, "unit": "rows"}
        log.debug("progress", extra={"progress": done})
        if waiting > (FLUSH_ROWS if flushes else in_memory):
            _flush(pl.concat(frames), folder, flushes)
            frames, waiting, flushes = [], 0, flushes + 1
    log.debug("progress", extra={"progress": {**done, "total": read}} if read else None)
    if not flushes:
        if frames:
            yield _batch(pl.concat(frames), source, read)
        return
    if frames:
        _flush(pl.concat(frames), folder, flushes)
    grouped_rows = 0
    for bucket in range(BUCKETS):
        files = sorted((folder / str(bucket)).glob("*.arrow"))
        if files:
            rows = pl.concat([pl.read_ipc(file) for file in files])
            grouped_rows += rows.height
            yield _batch(rows, source, grouped_rows)
    shutil.rmtree(folder)


def _flush(frame: pl.DataFrame, folder: Path, number: int) -> None:
    """Write rows to the buckets of their users."""
    unique = frame["user"].unique()
    # The upper bits: the lower ones have chosen the shard.
    buckets = pl.DataFrame({"user": unique, "bucket": (hashes(unique) >> 16) % BUCKETS})
    rows = frame.join(buckets, on="user", maintain_order="left")
    for key, part in rows.partition_by("bucket", as_dict=True, include_key=False).items():
        file = folder / str(key[0]) / f"{number:06}.arrow"
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_ipc(file)


def _batch(rows: pl.DataFrame, source: Source, read: int) -> Batch:
    if "time" in rows.columns:
        rows = rows.with_columns(order_of(rows["time"], str(source.paths[0])).alias("time"))
    table = grouped(rows, source.columns.user or "user")
    items = table.ids.to_numpy().astype(np.int32, copy=False)
    return Batch(table.users, items, table.lengths, read)
