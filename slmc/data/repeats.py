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


def find_copies(
    files: Sequence[str], frame: pl.DataFrame, heights: Sequence[int]
) -> tuple[Copy, ...]:
    """Find files with the same rows as an earlier one; in a single file, two equal halves.

    Args:
        files: Names of the files of a log.
        frame: ``user``, ``item`` and ``time`` of all rows, file after file.
        heights: Rows of each file.
    """
    rows = frame.select("user", "item", "time")
    if len(files) == 1:
        half = rows.height // 2
        twice = rows.height > 2 and rows.height % 2 == 0 and rows[:half].equals(rows[half:])
        names = f"the second half of {files[0]}", "the first"
        return (Copy(*names, half, rows.height),) if twice else ()
    copied: list[Copy] = []
    seen: dict[tuple[int, int], str] = {}
    start = 0
    for file, height in zip(files, heights, strict=True):
        key = (height, int(rows[start : start + height].hash_rows().sum()))
        if height and key in seen:
            copied.append(Copy(file, seen[key], start, start + height))
        seen.setdefault(key, file)
        start += height
    return tuple(copied)


def find_repeats(frame: pl.DataFrame, timed: bool, parts: Sequence[Copy]) -> pl.Series:
    """Return which rows of a log's frame are exact duplicates, ``[N]``."""
    codes = frame.select(pl.col("user", "item").to_physical(), "time", "order")
    keys = ["user", "item", "time"] if timed else ["user"]
    codes = codes.sort([*keys, "order"])
    same = pl.all_horizontal(
        pl.col(name) == pl.col(name).shift() for name in (keys if timed else ["user", "item"])
    )
    again = codes.select(same.fill_null(False)).to_series().to_numpy()
    marked = np.zeros(frame.height, dtype=np.bool_)
    marked[codes["order"].to_numpy()] = again
    if not timed:
        for part in parts:
            marked[part.start : part.stop] = True
    return pl.Series(marked)


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
