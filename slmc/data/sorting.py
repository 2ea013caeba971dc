"""The rows of a log, sorted by user and time: bucket after bucket of users.

Sorting needs several times the memory of what is sorted. So the rows are split into buckets of
users, in the order of user ids, and one bucket at a time is in memory.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from slmc.data.buckets import MOST_BUCKETS, Buckets
from slmc.data.config import PrepareConfig
from slmc.data.readers import Log
from slmc.data.repeats import find_repeats, warn_of_repeats
from slmc.data.split import Codes, k_core
from slmc.data.spool import Spool
from slmc.data.ties import Ascents, Runs, Shuffle, as_before, id_ranks
from slmc.errors import DataError

log = logging.getLogger("slmc.data")

BUCKET_ROWS = 1 << 21
"""Rows that are sorted at once; more only for a user that has more."""


@dataclass(frozen=True)
class Sorted:
    """The rows of a log, sorted by user and time."""

    rows: Spool
    """``user``, ``item`` (codes: places in the sorted ids) and ``time``; a chunk holds all rows of
    its users."""
    user_ids: pl.Series
    item_ids: pl.Series
    """Sorted by code points."""
    repeats: int
    """Exact duplicates, also where they were dropped."""
    ascents: Ascents
    """Order of ids in ties, as the log has it; without time stamps, in whole histories."""


def sort(config: PrepareConfig, read_log: Log) -> Sorted:
    """Sort a log by user and time; ties as ``config.ties`` says, rows without time by their order.

    Exact duplicates are counted, and dropped if ``config.repeats`` is ``drop``.

    Raises:
        DataError: The log has fewer than two users.
    """
    (user_places, user_ids), (item_places, item_ids) = (
        read_log.ids[role].sorted() for role in ("user", "item")
    )
    if user_ids.len() < 2:
        users = f"only one user ({user_ids[0]})" if user_ids.len() else "no user"
        raise DataError(
            f"{config.source} has {users}; a recommender needs many.",
            "Check columns.user, or name a log with more users.",
        )
    sorter = _Sorter(config, read_log, user_ids, item_ids)
    rows = Spool()
    for bucket in _in_buckets(read_log, user_places, item_places):
        rows.append(sorter.sort(bucket))
    if sorter.repeats:
        kept = config.repeats == "keep"
        warn_of_repeats(read_log.good.height, sorter.repeats, read_log.timed, read_log.copies, kept)
    return Sorted(rows, user_ids, item_ids, sorter.repeats, sorter.ascents)


def core(config: PrepareConfig, rows: Sorted) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which users and items are in the core.

    Raises:
        DataError: Fewer than two users, or two items, are.
    """

    def parts() -> Iterator[tuple[Codes, Codes]]:
        for chunk in rows.rows.chunks():
            yield chunk["user"].to_numpy(), chunk["item"].to_numpy()

    users, items = k_core(parts, rows.user_ids.len(), rows.item_ids.len(), config.core)
    left = int(users.sum())
    if left < 2:
        what = "drops all" if left == 0 else "leaves one user of the"
        raise DataError(
            f"{config.source}: the {config.core}-core {what} {rows.rows.height} interactions by "
            f"{rows.user_ids.len()} users.",
            "Lower core (1 keeps all), or name a larger log.",
        )
    kept = np.flatnonzero(items)
    if kept.size == 1:
        only = rows.item_ids.len() == 1
        raise DataError(
            f"{config.source}: {'there is' if only else f'the {config.core}-core leaves'} only one "
            f"item ({rows.item_ids[int(kept[0])]}), so there is nothing to rank.",
            "Check columns.item, or name a log with more items."
            if only
            else "Lower core (1 keeps all), or name a larger log.",
        )
    return users, items


def _in_buckets(
    read_log: Log, user_places: NDArray[np.uint32], item_places: NDArray[np.uint32]
) -> Iterator[pl.DataFrame]:
    """Yield the good rows of a log in buckets of users, in the order of user ids."""
    number = min(-(-read_log.good.height // BUCKET_ROWS), MOST_BUCKETS)
    rows = np.zeros(int(user_places.max(initial=0)) + 1, dtype=np.int64)
    counts = read_log.ids["user"].rows
    used = np.flatnonzero(counts)
    rows[user_places[used]] = counts[used]
    before = np.cumsum(rows) - rows
    bucket_of = (before * number // read_log.good.height).astype(np.uint8)
    buckets = Buckets(number, lambda frame: bucket_of[frame["user"].to_numpy()])
    start = 0
    for chunk in read_log.good.chunks():
        frame = chunk.with_columns(
            pl.Series("user", user_places[chunk["user"].to_numpy()]),
            pl.Series("item", item_places[chunk["item"].to_numpy()]),
        )
        if read_log.copies and not read_log.timed:
            place = np.arange(start, start + frame.height)
            inside = [(part.start <= place) & (place < part.stop) for part in read_log.copies]
            frame = frame.with_columns(pl.Series("copied", np.any(inside, axis=0)))
        start += frame.height
        buckets.append(frame)
    yield from buckets.tables()


class _Sorter:
    """Sorts the buckets of a log, and counts over all of them."""

    def __init__(
        self, config: PrepareConfig, read_log: Log, user_ids: pl.Series, item_ids: pl.Series
    ) -> None:
        self.drop, self.timed = config.repeats == "drop", read_log.timed
        self.ranks = id_ranks(item_ids)
        self.shuffle = None
        if read_log.clock is not None and config.ties == "shuffle":
            self.shuffle = Shuffle(config.seed, read_log.clock, user_ids, item_ids)
        self.repeats, self.ascents = 0, Ascents()

    def sort(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the rows of a bucket in order; they are in the order of the log before."""
        keys = ["user", "time"] if self.timed else ["user"]
        frame = frame.sort(keys, maintain_order=True)
        repeats = find_repeats(frame, self.timed)
        self.repeats += int(repeats.sum())
        if self.drop:
            frame = frame.filter(pl.Series(~repeats))
        frame = frame.select("user", "item", "time")
        runs = Runs.of(as_before(frame, *keys))
        self.ascents += Ascents.of(runs, self.ranks[frame["item"].to_numpy()[runs.rows]])
        return frame if self.shuffle is None else self.shuffle(frame, runs)
