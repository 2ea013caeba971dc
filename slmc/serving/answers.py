"""The answers for many users as a table."""

from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from slmc.errors import UsageError
from slmc.serving.catalogue import Catalogue, Id
from slmc.serving.histories import Ints
from slmc.serving.ranking import Best, Wish

Empty = Literal["popular", "skip", "error"]
"""What to do with a history without a known item."""


def popular(catalogue: Catalogue, wish: Wish) -> Best:
    """The most popular allowed rows, at most k, and their training interactions."""
    items = catalogue.popular
    rows = items["row"].to_numpy().astype(np.int64)
    counts = items["count"].to_numpy().astype(np.float32)
    if wish.allowed is not None:
        allowed = wish.allowed[rows]
        rows, counts = rows[allowed], counts[allowed]
    return rows[: wish.k], counts[: wish.k]


def as_frame(
    catalogue: Catalogue,
    users: pl.Series,
    lengths: Ints,
    answer: Best,
    wish: Wish,
    kind: type[Id],
    empty: Empty,
    *,
    titles: bool = False,
) -> pl.DataFrame:
    """The answers for many histories as a table.

    Args:
        catalogue: Names the items.
        users: ``[B]`` users.
        lengths: ``[B]`` known items of each history.
        answer: Rows ``[B, k]``, 0 after the last item, and their scores.
        wish: What was asked for.
        kind: Type of the ids in the table: texts, or integers.
        empty: What to do with histories without items.
        titles: Whether to add titles.

    Returns:
        The users, ``items``, ``scores``, ``titles`` (lists, best first), and ``by``: ``model``, or
        ``popular`` for an empty history, whose scores are training interactions.

    Raises:
        UsageError: A history is empty, and that is an error.
    """
    rows, scores = answer
    lacking = lengths == 0
    if lacking.any() and empty == "error":
        user, count = users[int(lacking.argmax())], int(lacking.sum())
        more = f", nor have {count - 1} others" if count > 1 else ""
        raise UsageError(
            f"user {user!r} has no known item{more}.",
            "Use ids of the log, or set empty to popular or skip.",
        )
    if lacking.any() and empty == "popular":
        best, counts = popular(catalogue, wish)
        at = np.ix_(np.flatnonzero(lacking), np.arange(best.size))
        rows[at], scores[at] = best, counts
    elif lacking.any():
        users, rows, scores = users.filter(pl.Series(~lacking)), rows[~lacking], scores[~lacking]
        lacking = lacking[~lacking]
    kept = rows > 0
    flat = rows[kept]
    columns = {
        "items": catalogue.ids(flat, kind),
        "scores": pl.Series(scores[kept], dtype=pl.Float32),
    }
    if titles:
        columns["titles"] = pl.Series(catalogue.titles, dtype=pl.String).gather(flat - 1)
    by = pl.Series("by", ["model", "popular"], dtype=pl.String).gather(lacking.astype(np.int64))
    user = "user" if users.name in (*columns, "by") else users.name
    listed = [_lists(values, kept.sum(axis=1)).alias(name) for name, values in columns.items()]
    return pl.DataFrame([users.alias(user), *listed, by])


def _lists(values: pl.Series, lengths: NDArray[np.int64]) -> pl.Series:
    """Cut a column into lists of these lengths."""
    rows = pl.Series("row", np.repeat(np.arange(lengths.size), lengths))
    lists = (
        pl.DataFrame({"row": rows, "values": values})
        .group_by("row", maintain_order=True)
        .agg("values")
    )
    if lists.height == lengths.size:
        return lists["values"]
    every = pl.DataFrame({"row": np.arange(lengths.size)})
    joined = every.join(lists, on="row", how="left", maintain_order="left")["values"]
    return joined.fill_null(pl.Series([[]], dtype=joined.dtype))
