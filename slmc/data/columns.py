"""Columns of a log: what is said when one is missing, and ids as texts, exactly.

An id is a text. An integer 7, a floating 7.0 (what a column with gaps turns integers into)
and the text "7" are the same id in Parquet and JSON; in text files the text stands as it is.
A float so large that it may have been another integer once is no id.
"""

import difflib
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path

import polars as pl

from slmc.errors import DataError

KEYS = {
    "user": "columns.user", "item": "columns.item", "time": "columns.time",
    "title": "titles.title",
}  # fmt: skip
DIGITS = 40
"""Digits of a JSON number that is written out, without an exponent."""
INEXACT = 2**53
"""Integers from which a float64 is no longer exact."""


def inexact_from(dtype: pl.DataType) -> int:
    """The integer from which neighbours become one in a column of floats."""
    return INEXACT if dtype == pl.Float64 else 2**24 if dtype == pl.Float32 else 2**11


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
    """A JSON value as the text of an id or time; raises ``ValueError`` for a list and the like.

    Numbers with a point or an exponent come as ``Decimal`` (``parse_float``), so none is rounded.
    One that only a float writes so (1.8e+18) keeps its form: as an id it is refused.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, float) and value.is_integer():
        value = Decimal(value)
    if isinstance(value, Decimal):
        return _decimal_text(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    kind = {dict: "an object", list: "a list", bool: "true or false"}[type(value)]
    raise ValueError(f"{column} is {kind}")


def _decimal_text(value: Decimal) -> str:
    if not value.is_finite() or value != value.to_integral_value() or value.adjusted() > DIGITS:
        return str(value)
    exponent = value.as_tuple().exponent
    shortened = isinstance(exponent, int) and exponent > 0 and abs(value) >= INEXACT
    return str(value) if shortened else str(int(value))


def parquet_column(path: Path, column: str, dtype: pl.DataType, role: str) -> pl.Expr:
    """A Parquet column as text; a time as it is where it holds numbers or dates.

    Raises:
        DataError: The column's type can be neither.
    """
    value = pl.col(column)
    if dtype in (pl.String, pl.Categorical, pl.Enum):
        return value.cast(pl.String).str.strip_chars()
    if role == "time" and (dtype.is_numeric() or dtype in (pl.Date, pl.Datetime)):
        return value
    if dtype.is_integer():
        return value.cast(pl.String)
    if dtype.is_decimal():
        return value.cast(pl.String).str.replace(r"(\.[0-9]*?)0+$", "$1").str.strip_suffix(".")
    if dtype.is_float():
        whole = (value == value.floor()) & (value.abs() < inexact_from(dtype))
        return (
            pl.when(whole)
            .then(value.cast(pl.Int64, strict=False).cast(pl.String))
            .otherwise(value.cast(pl.String))
        )
    wanted = "time stamps" if role == "time" else "titles" if role == "title" else "ids"
    fit = "numbers or dates" if role == "time" else "texts or integers"
    raise DataError(
        f"Column {column!r} of {path} holds {dtype}, which are no {wanted}.",
        f"Set {KEYS[role]} to a column of {fit}.",
    )


def refuse_inexact(
    path: Path, rows: pl.LazyFrame, schema: pl.Schema, columns: Mapping[str, str]
) -> None:
    """Raise :class:`DataError` if a Parquet column of ids holds floats that cannot be exact."""
    for role, column in columns.items():
        dtype = schema[column]
        if role not in ("user", "item") or not dtype.is_float():
            continue
        value, limit = pl.col(column), inexact_from(dtype)
        finite = rows.select(value.filter(value.is_finite()).abs().max()).collect().item()
        if finite is not None and finite >= limit:
            raise DataError(
                f"Column {column!r} of {path} holds ids as {dtype}, up to {finite:.4g}: from "
                f"{limit} on, different ids become one there.",
                f"Write the ids again, as integers or texts, from where they are still exact; "
                f"or set {KEYS[role]} to another column.",
            )
