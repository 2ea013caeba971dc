"""Ties: interactions of one user with the same time.

Nothing is known about their order. Logs with coarse times (days) have many, and list them in the
order of the item ids, which is often that of a catalogue: a model then learns the catalogue. So
ties are shuffled by the seed. Whether a log's own order follows the ids is tested by the share of
neighbours in a tie whose ids ascend; of a random order it is one half.
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from slmc.data.clock import Clock, literal
from slmc.data.split import Ints, id_keys, tie_keys

SIGNIFICANT = 0.001
"""p-value below which the order of ties is said to follow the ids."""


def as_before(frame: pl.DataFrame, *columns: str) -> NDArray[np.bool_]:
    """Return which rows have the same values as the row before, ``[N]``."""
    same = pl.all_horizontal(pl.col(name) == pl.col(name).shift() for name in columns)
    return frame.select(same.fill_null(False)).to_series().to_numpy()


@dataclass(frozen=True)
class Runs:
    """Runs of rows that belong together, such as ties; rows without a neighbour are left out."""

    rows: Ints
    """``[T]`` the rows that are in a run, ascending."""
    run: Ints
    """``[T]`` the run of each, ascending."""

    @classmethod
    def of(cls, before: NDArray[np.bool_]) -> Self:
        """Find the runs from which rows belong to the row before, ``[N]``."""
        rows = np.flatnonzero(before | np.append(before[1:], False)[: before.size])
        return cls(rows, np.cumsum(~before[rows]))

    def later_of_equals(self, values: NDArray[np.integer]) -> Ints:
        """Return which of the rows (indices in ``rows``) have the value of an earlier one.

        Args:
            values: ``[T]`` value of each row.
        """
        order = np.lexsort((values, self.run))
        run, value = self.run[order], values[order]
        later: Ints = order[1:][(run[1:] == run[:-1]) & (value[1:] == value[:-1])]
        return later


@dataclass(frozen=True)
class Ascents:
    """How often an item id is above that of its neighbour before, in runs of a log's own order."""

    pairs: int = 0
    ascending: int = 0
    twelfths: int = 0
    """12 times the variance of ``ascending`` if all orders of a run are equally likely."""

    @classmethod
    def of(cls, runs: Runs, ranks: NDArray[np.integer]) -> Self:
        """Count the ascents in runs; of an item that occurs again in its run, the first counts.

        A random order of n items has (n - 1) / 2 ascents on average, with variance (n + 1) / 12
        (Eulerian numbers).

        Args:
            runs: The runs, of T rows.
            ranks: ``[T]`` place of each row's item in the order of ids.
        """
        first = np.ones(runs.run.size, dtype=np.bool_)
        first[runs.later_of_equals(ranks)] = False
        run, rank = runs.run[first], ranks[first]
        inside = run[1:] == run[:-1]
        sizes = np.bincount(run)
        sizes = sizes[sizes > 1]
        above = rank[1:][inside] > rank[:-1][inside]
        return cls(int(inside.sum()), int(above.sum()), int((sizes + 1).sum()))

    def __add__(self, other: "Ascents") -> "Ascents":
        """Return the counts of both."""
        return Ascents(
            self.pairs + other.pairs,
            self.ascending + other.ascending,
            self.twelfths + other.twelfths,
        )

    @property
    def share(self) -> float | None:
        """Share of pairs that ascend; None without pairs."""
        return self.ascending / self.pairs if self.pairs else None

    @property
    def p_value(self) -> float | None:
        """Probability of such a share, or one farther from one half, in random orders."""
        if not self.pairs:
            return None
        z = (self.ascending - self.pairs / 2) / math.sqrt(self.twelfths / 12)
        return math.erfc(abs(z) / math.sqrt(2))

    @property
    def follow_ids(self) -> bool:
        """Whether the order is not a random one."""
        return self.p_value is not None and self.p_value < SIGNIFICANT


def id_ranks(ids: pl.Series) -> Ints:
    """Return the place of each id in the order of a catalogue, ``[V]``.

    Ids that end in digits after the same text (7, ``item-12``) are sorted by the number, others by
    code points.

    Args:
        ids: Different ids, sorted by code points.
    """
    parts = ids.to_frame("id").select(
        text=pl.col("id").str.replace("[0-9]+$", ""),
        number=pl.col("id").str.extract("([0-9]{1,18})$").cast(pl.Int64),
    )
    places: Ints = np.arange(ids.len(), dtype=np.int64)
    if parts["text"].n_unique() == 1 and not parts["number"].null_count():
        ranks = np.empty_like(places)
        ranks[np.argsort(parts["number"].to_numpy(), kind="stable")] = places
        return ranks
    return places


class Shuffle:
    """Shuffles ties by a hash of (seed, user, item, time); see :func:`slmc.data.split.tie_keys`."""

    def __init__(self, seed: int, clock: Clock, user_ids: pl.Series, item_ids: pl.Series) -> None:
        """Take the ids of all users and items, by code."""
        self.seed, self.clock, self.user_ids, self.item_ids = seed, clock, user_ids, item_ids
        self._item_keys: NDArray[np.uint64] | None = None

    def __call__(self, frame: pl.DataFrame, runs: Runs) -> pl.DataFrame:
        """Return the rows with the items of each run in another order.

        Args:
            frame: ``user``, ``item`` (codes) and ``time``, sorted by user and time.
            runs: Its ties.
        """
        if not runs.rows.size:
            return frame
        if self._item_keys is None:
            self._item_keys = id_keys(self.item_ids, self.seed)
        tied = frame[runs.rows]
        users, place = np.unique(tied["user"].to_numpy(), return_inverse=True)
        user_keys = id_keys(self.user_ids.gather(users), self.seed)
        items = tied["item"].to_numpy()
        numbers = self.clock.numbers(tied["time"]).to_numpy()
        keys = tie_keys(user_keys[place], self._item_keys[items], numbers)
        shuffled = frame["item"].to_numpy(writable=True)
        shuffled[runs.rows] = items[np.lexsort((keys, runs.run))]
        return frame.with_columns(pl.Series("item", shuffled))


class Resolution:
    """Finds the coarsest unit in whole multiples of which all times of a log differ."""

    def __init__(self, clock: Clock) -> None:
        """Start with no time."""
        second = clock.per_second if clock.unit is not None else 0
        sizes = {"day": 86400 * second, "hour": 3600 * second, "minute": 60 * second}
        sizes |= {"second": second, "millisecond": second // 10**3, "microsecond": second // 10**6}
        self._sizes = {name: size for name, size in sizes.items() if size}
        self._first: int | None = None

    def add(self, times: pl.Series) -> None:
        """Add times, integers of the clock."""
        if not times.len() or not self._sizes:
            return
        if self._first is None:
            self._first = times[0]
        since = pl.col("time") - literal(self._first)
        while self._sizes:
            name, size = next(iter(self._sizes.items()))
            if times.to_frame("time").select((since % literal(size) == 0).all()).item():
                break
            del self._sizes[name]

    @property
    def name(self) -> str | None:
        """``day``, ``hour`` … ``microsecond``; None if it is finer, or without a unit."""
        return next(iter(self._sizes), None) if self._first is not None else None
