"""Rows of a log that repeat another exactly: a log that was delivered twice, or caught twice.

With time stamps a row is a repeat where the same user, item and time stand in a row before it.
Without them, where the user's row before it holds the same item, or where it lies in a part of
the log (a file, or the second half) that holds the same rows as a part before. Such rows make the
target of a split the very item before it, or one that the training part tells.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

log = logging.getLogger("slmc.data")


@dataclass(frozen=True)
class Copy:
    """A part of a log that holds the same rows as a part before it."""

    part: str
    original: str
    start: int
    """The first of its rows in the log."""
    stop: int
    """The row after its last."""


def copies(files: Sequence[str], frame: pl.DataFrame, heights: Sequence[int]) -> tuple[Copy, ...]:
    """Files that hold the rows of a file before them; of one file, a second half like the first.

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
    found: list[Copy] = []
    seen: dict[tuple[int, int], str] = {}
    start = 0
    for file, height in zip(files, heights, strict=True):
        key = (height, int(rows[start : start + height].hash_rows().sum()))
        if height and key in seen:
            found.append(Copy(file, seen[key], start, start + height))
        seen.setdefault(key, file)
        start += height
    return tuple(found)


def repeated(frame: pl.DataFrame, timed: bool, parts: Sequence[Copy]) -> pl.Series:
    """``[N]`` which rows are exact repeats; ``frame`` is that of a log."""
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
    """Say how much of a log repeats itself, what that does, and what to set."""
    what = (
        "repeat another row exactly: the same user, item and time"
        if timed
        else "repeat the row before them, or a part of the log before"
    )
    for part in parts:
        log.warning("%s holds the same rows as %s", part.part, part.original)
    done = (
        "They are kept, and a model that recommends what was just taken will look too good; "
        "set repeats: drop (--repeats drop) unless they are real"
        if kept
        else "They are dropped (repeats: drop)"
    )
    log.warning("%d of %d rows (%s) %s. %s", count, rows, _percent(count / rows), what, done)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else f"{100 * share:.2g} %"
