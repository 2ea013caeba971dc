"""Exact duplicates of rows, for example of a log that was delivered or recorded twice.

With time stamps, a row is a duplicate if an earlier row has the same user, item and time. Without
them, it is one if the user's row before it has the same item, or if it belongs to a part of the
log (a file, or the second half) with the same rows as an earlier part. Duplicates leak targets:
the target is then the item right before it, or is also in the training part.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from slmc.data.spool import CHUNK_ROWS, Spool
from slmc.data.ties import Runs, as_before

log = logging.getLogger("slmc.data")


@dataclass(frozen=True)
class Copy:
    """A part of a log with the same rows as an earlier part."""

    part: str
    original: str
    start: int
    """Its first row in the log."""
    stop: int
    """The row after its last one."""


def find_copies(files: Sequence[str], rows: Spool, heights: Sequence[int]) -> tuple[Copy, ...]:
    """Find files with the same rows as an earlier one; in a single file, two equal halves.

    Args:
        files: Names of the files of a log.
        rows: ``user``, ``item`` and ``time`` of all rows, file after file.
        heights: Rows of each file.
    """
    if len(files) == 1:
        half = rows.height // 2
        twice = rows.height > 2 and rows.height % 2 == 0 and _equal(rows, 0, half, half)
        names = f"the second half of {files[0]}", "the first"
        return (Copy(*names, half, rows.height),) if twice else ()
    copied: list[Copy] = []
    seen: dict[tuple[int, int], str] = {}
    start = 0
    for file, height in zip(files, heights, strict=True):
        if height and heights.count(height) > 1:
            key = (height, _hash(rows, start, start + height))
            if key in seen:
                copied.append(Copy(file, seen[key], start, start + height))
            seen.setdefault(key, file)
        start += height
    return tuple(copied)


def _equal(rows: Spool, first: int, second: int, height: int) -> bool:
    """Return whether ``height`` rows from ``first`` and from ``second`` on are the same."""
    for start in range(0, height, CHUNK_ROWS):
        stop = min(start + CHUNK_ROWS, height)
        one, other = (rows.rows(begin + start, begin + stop) for begin in (first, second))
        wide = pl.col("time").cast(pl.Int128)
        if not one.with_columns(wide).equals(other.with_columns(wide)):
            return False
    return True


def _hash(rows: Spool, start: int, stop: int) -> int:
    """Return a hash of rows that does not depend on their order."""
    total = 0
    for begin in range(start, stop, CHUNK_ROWS):
        part = rows.rows(begin, min(begin + CHUNK_ROWS, stop))
        short = pl.col("time").cast(pl.Int64, strict=False)  # the type must not change the hash
        total += int(part.with_columns(short).hash_rows().to_numpy().sum(dtype=np.uint64))
    return total % 2**64


def find_repeats(frame: pl.DataFrame, timed: bool) -> NDArray[np.bool_]:
    """Return which rows are exact duplicates, ``[N]``.

    Args:
        frame: ``user``, ``item`` and ``time``, sorted by user and time (without time stamps: by
            user), rows of the same time in the order of the log. ``copied`` marks the rows of
            :func:`find_copies`, if there are any.
        timed: Whether the rows have time stamps.
    """
    if not timed:
        again = as_before(frame, "user", "item")
        return again | frame["copied"].to_numpy() if "copied" in frame.columns else again
    runs = Runs.of(as_before(frame, "user", "time"))
    again = np.zeros(frame.height, dtype=np.bool_)
    again[runs.rows[runs.later_of_equals(frame["item"].to_numpy()[runs.rows])]] = True
    return again


def warn_of_repeats(rows: int, count: int, timed: bool, parts: Sequence[Copy], kept: bool) -> None:
    """Warn of exact duplicates: how many there are, their effect, and what to set."""
    what = (
        "are exact duplicates: the same user, item and time"
        if timed
        else "repeat the row before them, or an earlier part of the log"
    )
    for part in parts:
        log.warning("%s holds the same rows as %s", part.part, part.original)
    done = (
        "They are kept, so a model that recommends the last item again will look too good; "
        "set repeats: drop (--repeats drop) unless they are real"
        if kept
        else "They are dropped (repeats: drop)"
    )
    log.warning("%d of %d rows (%s) %s. %s", count, rows, _percent(count / rows), what, done)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else f"{100 * share:.2g} %"
