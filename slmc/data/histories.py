"""From sorted rows to histories: which rows stay, and where each history is split."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from slmc.data.clock import Clock, literal
from slmc.data.config import PrepareConfig
from slmc.data.sorting import Sorted
from slmc.data.split import Ints, by_time, leave_one_out
from slmc.data.ties import Resolution, as_before
from slmc.data.times import bounds

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Bucket:
    """The histories of some users."""

    users: NDArray[np.uint32]
    """``[U]`` codes of the users, ascending."""
    items: NDArray[np.uint32]
    """``[N]`` codes of the items, one history after the other."""
    lengths: Ints
    """``[U]`` interactions of each user."""
    valid_from: Ints
    """``[U]`` place of the validation target; see :mod:`slmc.data.split`."""
    test_from: Ints
    """``[U]`` place of the test target."""
    valid_tied: Mask | None
    """``[U]`` whether the validation target has the time of the item before it; None without time
    stamps. False for users without such a target."""
    test_tied: Mask | None
    """``[U]`` the same for the test target."""

    @property
    def validated(self) -> Mask:
        """Users with a validation target and a history before it."""
        return (self.valid_from > 0) & (self.valid_from < self.test_from)

    @property
    def tested(self) -> Mask:
        """Users with a test target and a history before it."""
        return (self.test_from > 0) & (self.test_from < self.lengths)

    def frame(self, rows: NDArray[np.int32], user_ids: pl.Series) -> pl.DataFrame:
        """Return the table of users; ``rows`` is the row of each item code."""
        place = np.repeat(np.arange(self.lengths.size), self.lengths)
        items = pl.DataFrame({"place": place, "items": rows[self.items]})
        return (
            items.group_by("place", maintain_order=True)
            .agg("items")
            .select(
                user_ids.gather(self.users).alias("user"),
                "items",
                pl.Series("valid_from", self.valid_from, dtype=pl.Int32),
                pl.Series("test_from", self.test_from, dtype=pl.Int32),
                _known("valid_tied", self.valid_tied, self.validated),
                _known("test_tied", self.test_tied, self.tested),
            )
        )


def _known(name: str, tied: Mask | None, targets: Mask) -> pl.Series:
    """Return whether targets are tied, null for users without a target or without times."""
    values = pl.Series(name, np.zeros(targets.size, np.bool_) if tied is None else tied)
    return values.set(pl.Series(~targets) if tied is not None else values | True, None)


class Splitter:
    """Takes the rows of chosen users and items, splits them, and counts what the manifest says."""

    def __init__(self, config: PrepareConfig, clock: Clock | None, items: int) -> None:
        """Start without histories.

        Args:
            config: Its split.
            clock: Of the times; None without time stamps. A temporal split needs it, with a unit.
            items: Number of item codes.
        """
        self.clock = clock
        self.starts: tuple[int, int] | None = None
        if config.split.by == "time" and clock is not None:
            self.starts = clock.at(config.split.valid), clock.at(config.split.test)
        self.trained = np.zeros(items, dtype=np.int64)
        """Training interactions of each item code."""
        self.taken = np.zeros(items, dtype=np.int64)
        """All interactions of each item code."""
        self.tied = self.tied_before = 0
        """Interactions with the time of a neighbour in the history, and of the one before."""
        self.span: tuple[int, int] | None = None
        self.resolution = Resolution(clock) if clock is not None else None

    def split(self, rows: Sorted, users: Mask, items: Mask) -> Iterator[Bucket]:
        """Yield the histories of the chosen users over the chosen items, bucket after bucket."""
        for chunk in rows.rows.chunks():
            user, item = chunk["user"].to_numpy(), chunk["item"].to_numpy()
            frame = chunk.filter(pl.Series(users[user] & items[item]))
            if frame.height:
                yield self._bucket(frame)

    def _bucket(self, frame: pl.DataFrame) -> Bucket:
        user, items = frame["user"].to_numpy(), frame["item"].to_numpy()
        first = np.flatnonzero(~as_before(frame, "user"))
        lengths = np.diff(first, append=user.size)
        if self.starts is None:
            valid_from, test_from = leave_one_out(lengths)
        else:
            before = [
                frame["time"].to_frame().select(pl.col("time") < literal(start))["time"].to_numpy()
                for start in self.starts
            ]
            valid_from, test_from = by_time(before[0], before[1], lengths)
        place = np.arange(user.size) - np.repeat(first, lengths)
        train = items[place < np.repeat(valid_from, lengths)]
        self.trained += np.bincount(train, minlength=self.trained.size)
        self.taken += np.bincount(items, minlength=self.taken.size)
        tied = self._note_times(frame)

        def of_targets(places: Ints, ends: Ints) -> Mask | None:
            if tied is None:
                return None
            found = (places > 0) & (places < ends)
            found[found] = tied[(first + places)[found]]
            return found

        return Bucket(
            users=user[first], items=items, lengths=lengths,
            valid_from=valid_from, test_from=test_from,
            valid_tied=of_targets(valid_from, test_from), test_tied=of_targets(test_from, lengths),
        )  # fmt: skip

    def _note_times(self, frame: pl.DataFrame) -> Mask | None:
        """Return which rows have the time of the user's row before, and note the times."""
        if self.resolution is None:
            return None
        before = as_before(frame, "user", "time")
        self.tied_before += int(before.sum())
        self.tied += int((before | np.append(before[1:], False)).sum())
        least, most = bounds(frame["time"])
        self.span = (
            (least, most)
            if self.span is None
            else (min(least, self.span[0]), max(most, self.span[1]))
        )
        self.resolution.add(frame["time"])
        return before
