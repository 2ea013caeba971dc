"""Histories in a table: one row per user (with a list of items), or one row per interaction.

The columns are named by the caller, or found by their names and types.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import polars as pl

from slmc.data.clock import Alignment, Tally
from slmc.data.columns import inexact_from
from slmc.data.lists import split_lists
from slmc.data.times import parse
from slmc.errors import DataError, UsageError
from slmc.serving.histories import Ints

NAMES = {
    "user": ("user_id", "user", "userid", "uid", "customer_id", "customer", "visitor_id",
             "session_id"),
    "items": ("items", "history", "item_ids", "item_id_list", "sequence"),
    "item": ("item_id", "item", "itemid", "product_id", "sku", "movie_id", "asin", "parent_asin"),
    "time": ("timestamp", "time", "unix_timestamp", "datetime", "date", "ts"),
}  # fmt: skip
"""Names by which columns are found, in any case, without a type as in ``user_id:token``."""


@dataclass(frozen=True)
class Columns:
    """The columns of a table; those that are None are found."""

    user: str | None = None
    items: str | None = None
    """A list of items; the table has one row per user."""
    item: str | None = None
    """One item; the table has one row per interaction."""
    time: str | None = None

    @property
    def named(self) -> dict[str, str]:
        """Role -> column, of the columns that are known."""
        roles = {"user": self.user, "items": self.items, "item": self.item, "time": self.time}
        return {role: name for role, name in roles.items() if name is not None}


Schema = Mapping[str, pl.DataType]


def find_columns(schema: Schema, columns: Columns, what: str, option: str = "") -> Columns:
    """Find the columns of a table that are not named.

    Args:
        schema: All columns and their types.
        columns: Those that the caller has named.
        what: The table, for messages.
        option: Prefix of the options that name columns, for messages.

    Returns:
        ``user`` and either ``items`` or ``item``. ``user`` is None for a table of lists without a
        column of users; ``time`` is None for one whose rows are in time order.

    Raises:
        DataError: A named column is missing, or no column of items is found.
    """
    names = [*schema]
    for role, name in columns.named.items():
        if name not in names:
            raise DataError(
                f"{what} has no column {name!r} for {role}; it has {_listed(names)}.",
                f"Set {option}{role} to one of them.",
            )
    items, item = columns.items, columns.item
    if items is not None and item is not None:
        raise DataError(
            f"{what}: items ({items}) and item ({item}) are both named.",
            "Name items for one row per user, item for one row per interaction.",
        )
    if items is None and item is None:
        lists = [name for name in names if isinstance(schema[name], pl.List | pl.Array)]
        items = _named(lists, "items") or (lists[0] if len(lists) == 1 else None)
        if items is None and _named(names, "item") is None:
            items = _named(names, "items")  # lists that are written as texts
    if items is not None:
        user = columns.user or _named([name for name in names if name != items], "user")
        return Columns(user, items)
    item = item or _named(names, "item")
    user = columns.user or _named(names, "user")
    if item is None or user is None:
        lacking = "items" if item is None else "users"
        roles = "items or " * (item is None) + ("item" if item is None else "user")
        raise DataError(
            f"{what}: no column of {lacking} is known by its name; it has {_listed(names)}.",
            f"Name it: {' or '.join(option + role for role in roles.split(' or '))}.",
        )
    return Columns(user, None, item, columns.time or _named(names, "time"))


@dataclass(frozen=True, eq=False)
class Table:
    """Users and their histories as original ids."""

    users: pl.Series
    """``[B]``, in the type in which they came in."""
    ids: pl.Series
    """Ids of all histories, concatenated; of any type that can hold ids."""
    lengths: Ints
    """``[B]`` items of each history."""


def read_frame(frame: pl.DataFrame, columns: Columns, what: str = "the frame") -> Table:
    """The users and histories of a table whose columns are known.

    Rows of one user are sorted by time; users come in the order of their first row.

    Raises:
        DataError: A column has a wrong type, or a user or item is missing.
    """
    if columns.items is not None:
        return _lists(frame, columns, what)
    return _interactions(frame, columns, what)


def order_of(times: pl.Series, what: str) -> pl.Series:
    """Times as integers by which they can be sorted; raises ``DataError`` for unreadable ones."""
    parsed, tally = parse(times), Tally()
    tally.add(parsed)
    values, _ = Alignment.of(tally).align(parsed)
    if values.null_count():
        place = int(values.is_null().arg_max() or 0)
        raise DataError(
            f"{what}: {times.name} of row {place + 1} is {times[place]!r}, which is no time.",
            "Write times as numbers or ISO dates, or leave out the column if rows are in order.",
        )
    return values


def text_of(ids: pl.Series, what: str) -> pl.Series:
    """Ids as exact texts, as :mod:`slmc.data.columns` reads them.

    Raises:
        DataError: The column cannot hold ids, or holds floats that may be rounded.
    """
    dtype = ids.dtype
    if dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null):
        return ids.cast(pl.String).str.strip_chars()
    if dtype.is_integer():
        return ids.cast(pl.String)
    if dtype.is_decimal():
        return ids.cast(pl.String).str.replace(r"(\.[0-9]*?)0+$", "$1").str.strip_suffix(".")
    if dtype.is_float():
        whole = (ids == ids.floor()) & (ids.abs() < inexact_from(dtype))
        if bool((whole | ids.is_null() | ids.is_nan()).all()):
            return ids.fill_nan(None).cast(pl.Int64).cast(pl.String)
    raise DataError(
        f"{what}: column {ids.name!r} has the type {dtype}, which cannot hold ids exactly.",
        "Write ids as texts or integers.",
    )


def holds_numbers(schema: Schema, columns: Columns) -> bool:
    """Whether the items of a table are numbers."""
    dtype: Any = schema[columns.items or columns.item or ""]
    inner = getattr(dtype, "inner", dtype)
    return bool(inner.is_integer() or inner.is_float())


def given_frame(frame: Any) -> tuple[pl.DataFrame, bool]:
    """A data frame as one of Polars, and whether it was one of pandas.

    Raises:
        UsageError: It is neither.
    """
    if isinstance(frame, pl.LazyFrame):
        return frame.collect(), False
    if isinstance(frame, pl.DataFrame):
        return frame, False
    if type(frame).__module__.partition(".")[0] == "pandas" and hasattr(frame, "columns"):
        columns = [_column(str(name), frame.iloc[:, i]) for i, name in enumerate(frame.columns)]
        return pl.DataFrame(columns), True
    raise UsageError(
        f"frame: expected a data frame of Polars or pandas, not {type(frame).__name__}.",
        "Pass a frame with a column of users and one of items; `recommend` takes a list.",
    )


def _column(name: str, values: Any) -> pl.Series:
    """A column of pandas, read without pyarrow."""
    if getattr(values.dtype, "kind", "O") in "iufM" and isinstance(values.dtype, np.dtype):
        return pl.Series(name, values.to_numpy())
    absent = values.isna().tolist()
    listed = [None if none else one for one, none in zip(values.tolist(), absent, strict=True)]
    if not any(isinstance(one, list | tuple | np.ndarray | pl.Series) for one in listed):
        return pl.Series(name, listed, strict=False)
    ids = [one for row in listed if row is not None for one in row]
    kind = pl.Int64 if all(isinstance(one, Integral) for one in ids) else pl.String
    convert = int if kind == pl.Int64 else str
    rows = [None if row is None else [convert(one) for one in row] for row in listed]
    return pl.Series(name, rows, dtype=pl.List(kind))


def _lists(frame: pl.DataFrame, columns: Columns, what: str) -> Table:
    name = columns.items or ""
    items = frame[name]
    if items.dtype == pl.String:
        items = split_lists(items, what)
    if items.dtype == pl.Null:
        items = items.cast(pl.List(pl.String))
    if isinstance(items.dtype, pl.Array):
        items = items.arr.to_list()
    if not isinstance(items.dtype, pl.List):
        raise DataError(
            f"{what}: column {name!r} has the type {items.dtype}, not lists of items.",
            "Name it item for one row per interaction, or write lists.",
        )
    lengths = items.list.len().fill_null(0).to_numpy().astype(np.int64)
    flat = items.drop_nulls().explode(empty_as_null=False)
    if columns.user is None:
        users = pl.Series("row", np.arange(1, len(frame) + 1))
    else:
        users = frame[columns.user]
        _refuse_missing(users, what)
    return Table(users, text_of(flat, what), lengths)


def _interactions(frame: pl.DataFrame, columns: Columns, what: str) -> Table:
    user, item = columns.user or "", columns.item or ""
    for name in (user, item):
        _refuse_missing(frame[name], what)
    rows = pl.DataFrame({"user": frame[user], "item": text_of(frame[item], what)})
    if columns.time is not None:
        rows = rows.with_columns(order_of(frame[columns.time], what).alias("time"))
    return grouped(rows, user)


def grouped(rows: pl.DataFrame, user: str) -> Table:
    """Interactions as histories: ``user``, ``item``, and ``time`` if they are not in time order.

    Args:
        rows: The interactions; the order of equal times is kept.
        user: Name of the column of users.
    """
    if "time" in rows.columns:
        first = pl.col("first").min().over("user")
        rows = rows.with_row_index("first").with_columns(first)
        rows = rows.sort("first", "time", maintain_order=True)
    lists = rows.group_by("user", maintain_order=True).agg("item")
    lengths = lists["item"].list.len().to_numpy().astype(np.int64)
    flat = lists["item"].explode(empty_as_null=False)
    return Table(lists["user"].alias(user), flat, lengths)


def _refuse_missing(column: pl.Series, what: str) -> None:
    missing = column.is_null() | (column == "" if column.dtype == pl.String else False)
    if missing.any():
        row = int(missing.arg_max() or 0) + 1
        raise DataError(
            f"{what}: column {column.name!r} has no value in row {row}.",
            "Remove rows without a user or an item.",
        )


def _named(names: Sequence[str], role: str) -> str | None:
    """The first column whose name is usual for a role."""
    folded = {name.partition(":")[0].casefold(): name for name in reversed(names)}
    return next((folded[name] for name in NAMES[role] if name in folded), None)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:12]) + (", …" if len(names) > 12 else "")
