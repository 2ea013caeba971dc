"""Columns of a log: what is said when one is missing, and ids and times as one type.

An id is a text. An integer 7, a floating 7.0 (what a column with gaps turns integers into)
and the text "7" are the same id in Parquet and JSON; in text files the text stands as it is.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from slmc.errors import DataError

KEYS = {
    "user": "columns.user", "item": "columns.item", "time": "columns.time",
    "title": "titles.title",
}  # fmt: skip
LARGEST = float(2**63)


def missing_column(
    path: Path,
    column: str,
    names: Sequence[str],
    columns: Mapping[str, str],
    separator: str | None = None,
) -> DataError:
    """The error for a column that is not there, or there twice."""
    role = next(role for role, name in columns.items() if name == column)
    key = "titles.item" if "title" in columns and role == "item" else KEYS[role]
    listed = ", ".join(repr(name) for name in names[:12]) + (", …" if len(names) > 12 else "")
    if names.count(column) > 1:
        return DataError(
            f"{path} has {names.count(column)} columns named {column!r}.",
            "Give each column of its header a name of its own.",
        )
    what = f"{path} has no column {column!r}; it has {listed}."
    if separator is not None and len(names) == 1:
        name = {"\t": "tab", ",": "comma"}.get(separator, repr(separator))
        return DataError(
            what, f"Its first line has no {name} in it: set separator, or format to what it is."
        )
    folded = {name.casefold(): name for name in reversed(names)}
    near = difflib.get_close_matches(column.casefold(), folded, n=1)
    hint = f", perhaps {folded[near[0]]!r}" if near else ""
    if role == "time":
        hint += ", or to null if rows already stand in time order"
    return DataError(what, f"Set {key} to one of them{hint}.")


def json_text(value: object, column: str) -> str | None:
    """A JSON value as the text of an id or time; raises ``ValueError`` for a list and the like."""
    if value is None:
        return None
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    kind = {dict: "an object", list: "a list", bool: "true or false"}[type(value)]
    raise ValueError(f"{column} is {kind}")


def parquet_column(path: Path, column: str, dtype: pl.DataType, role: str) -> pl.Expr:
    """A Parquet column as text, or as seconds if it holds numbers or dates and is the time.

    Raises:
        DataError: The column's type can be neither.
    """
    value = pl.col(column)
    if dtype in (pl.String, pl.Categorical, pl.Enum):
        return value.cast(pl.String).str.strip_chars()
    if role == "time" and dtype.is_numeric():
        return value.cast(pl.Float64)
    if role == "time" and dtype in (pl.Date, pl.Datetime):
        return value.dt.epoch("us").cast(pl.Float64) / 1e6
    if dtype.is_integer():
        return value.cast(pl.String)
    if dtype.is_float() or dtype.is_decimal():
        number = value.cast(pl.Float64)
        whole = (number == number.floor()) & (number.abs() < LARGEST)
        return (
            pl.when(whole)
            .then(number.cast(pl.Int64, strict=False).cast(pl.String))
            .otherwise(number.cast(pl.String))
        )
    wanted = "time stamps" if role == "time" else "titles" if role == "title" else "ids"
    fit = "numbers or dates" if role == "time" else "texts or integers"
    raise DataError(
        f"Column {column!r} of {path} holds {dtype}, which are no {wanted}.",
        f"Set {KEYS[role]} to a column of {fit}.",
    )
