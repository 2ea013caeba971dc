"""Columns of a log: the error for a missing one, and ids as exact texts.

An id is a text. In Parquet and JSON the integer 7, the float 7.0 (which integers become in a
column with missing values) and the text "7" are the same id; text files are read as they are.
A float so large that it may be a rounded integer is not a valid id.
"""

import difflib
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path

import polars as pl

from slmc.data.config import TEXT
from slmc.errors import DataError

KEYS = {
    "user": "columns.user", "item": "columns.item", "time": "columns.time",
    "title": "titles.title",
}  # fmt: skip
DIGITS = 40
"""Largest number of digits of a JSON number that is written without an exponent."""
INEXACT = 2**53
"""From this integer on, float64 is not exact."""


def inexact_from(dtype: pl.DataType) -> int:
    """Return the integer from which a float type cannot hold every integer."""
    return INEXACT if dtype == pl.Float64 else 2**24 if dtype == pl.Float32 else 2**11


def missing_column(
    path: Path,
    column: str,
    names: Sequence[str],
    columns: Mapping[str, str],
    separator: str | None = None,
) -> DataError:
    """Return the error for a column that is missing, or that occurs twice."""
    role = next(role for role, name in columns.items() if name == column)
    key = KEYS.get(role, "items.columns")
    if role == "item" and "user" not in columns:
        key = "titles.item" if "title" in columns else "items.item"
    listed = ", ".join(repr(name) for name in names[:12]) + (", …" if len(names) > 12 else "")
    if names.count(column) > 1:
        return DataError(
            f"{path} has {names.count(column)} columns named {column!r}.",
            "Give each column of the header a different name.",
        )
    what = f"{path} has no column {column!r}; it has {listed}."
    if separator is not None and len(names) == 1:
        name = {"\t": "tab", ",": "comma"}.get(separator, repr(separator))
        return DataError(what, f"Its first line contains no {name}: set separator, or set format.")
    folded = {name.casefold(): name for name in reversed(names)}
    near = difflib.get_close_matches(column.casefold(), folded, n=1)
    hint = f", perhaps {folded[near[0]]!r}" if near else ""
    if role == "time":
        hint += ", or to null if the rows are already in time order"
    return DataError(what, f"Set {key} to one of them{hint}.")


def listed_text(value: object) -> str | None:
    """Return a JSON value as part of an item's text; members of a list are joined by commas."""
    if isinstance(value, list):
        return ", ".join(text for one in value if (text := listed_text(one)))
    if value is None or isinstance(value, dict | bool):
        return None
    return str(value)


def json_text(value: object, column: str) -> str | None:
    """Return a JSON value as the text of an id or time; raises ``ValueError`` for lists etc.

    Numbers with a point or an exponent are ``Decimal`` (``parse_float``), so none is rounded.
    Large numbers with an exponent (1.8e+18) were floats: they keep it, and are refused as ids.
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
    if isinstance(value, dict) and value:
        example = f"{column}.{next(iter(value))}"
        raise ValueError(f"{column} is an object; name its member, such as {example}")
    kind = {dict: "an object", list: "a list", bool: "true or false"}[type(value)]
    raise ValueError(f"{column} is {kind}")


def _decimal_text(value: Decimal) -> str:
    if not value.is_finite() or value != value.to_integral_value() or value.adjusted() > DIGITS:
        return str(value)
    exponent = value.as_tuple().exponent
    shortened = isinstance(exponent, int) and exponent > 0 and abs(value) >= INEXACT
    return str(value) if shortened else str(int(value))


def member(row: Mapping[str, object], column: str) -> tuple[object] | None:
    """Return the value of a column of a JSON object, in a tuple; None if it has no such column.

    ``user.id`` is the member ``id`` of the object ``user``, unless there is a member ``user.id``.
    """
    if column in row:
        return (row[column],)
    outer, dot, inner = column.partition(".")
    nested = row.get(outer)
    return member(nested, inner) if dot and isinstance(nested, dict) else None


def parquet_field(schema: pl.Schema, column: str) -> pl.Expr | None:
    """Return a column of a Parquet file, or a field of a struct (``user.id``); None if missing."""
    if column in schema:
        return pl.col(column)
    outer, *path = column.split(".")
    dtype, value = schema.get(outer), pl.col(outer)
    for name in path:
        fields = {field.name: field.dtype for field in getattr(dtype, "fields", ())}
        if name not in fields:
            return None
        dtype, value = fields[name], value.struct.field(name)
    return value if path and dtype is not None else None


def parquet_column(path: Path, column: str, dtype: pl.DataType, role: str) -> pl.Expr:
    """Return the column of a role as text; a time column of numbers or dates is not converted.

    Args:
        path: The file, for messages.
        column: Name of the column, for messages.
        dtype: Its type.
        role: Its role, the name of the expression's column.

    Raises:
        DataError: The column has another type.
    """
    value = pl.col(role)
    if dtype in (pl.String, pl.Categorical, pl.Enum):
        return value.cast(pl.String).str.strip_chars()
    if dtype == pl.Binary:  # texts of Hive and Impala, which leave out that they are UTF-8
        return value.cast(pl.String, strict=False).str.strip_chars()
    if role == "time" and (dtype.is_numeric() or dtype in (pl.Date, pl.Datetime)):
        return value
    if dtype.is_integer():
        return value.cast(pl.String)
    if role.startswith(TEXT) and isinstance(dtype, pl.List) and dtype.inner == pl.String:
        return value.list.join(", ", ignore_nulls=True)
    if dtype.is_decimal():
        return value.cast(pl.String).str.replace(r"(\.[0-9]*?)0+$", "$1").str.strip_suffix(".")
    if dtype.is_float():
        whole = (value == value.floor()) & (value.abs() < inexact_from(dtype))
        return (
            pl.when(whole)
            .then(value.cast(pl.Int64, strict=False).cast(pl.String))
            .otherwise(value.cast(pl.String))
        )
    kinds = {"time": "time stamps", "title": "titles", "user": "ids", "item": "ids"}
    wanted = kinds.get(role, "texts")
    fit = "numbers or dates" if role == "time" else "texts or integers"
    remedy = f"Set {KEYS.get(role, 'items.columns')} to a column of {fit}."
    if isinstance(dtype, pl.Struct) and dtype.fields:
        field = f"{column}.{dtype.fields[0].name}"
        remedy = f"Set {KEYS.get(role, 'items.columns')} to one of its fields, such as {field}."
    elif isinstance(dtype, pl.List | pl.Array) and role in ("user", "item", "time"):
        remedy = "Write one row per interaction, such as with explode of polars, pandas or Spark."
    raise DataError(
        f"Column {column!r} of {path} has the type {dtype}, which cannot hold {wanted}.", remedy
    )


def refuse_inexact(path: Path, rows: pl.LazyFrame, columns: Mapping[str, str]) -> None:
    """Raise :class:`DataError` if a Parquet column of ids holds floats that may be rounded."""
    schema = rows.collect_schema()
    for role, column in columns.items():
        dtype = schema[role]
        if role not in ("user", "item") or not dtype.is_float():
            continue
        value, limit = pl.col(role), inexact_from(dtype)
        finite = rows.select(value.filter(value.is_finite()).abs().max()).collect().item()
        if finite is not None and finite >= limit:
            raise DataError(
                f"Column {column!r} of {path} holds ids as {dtype}, up to {finite:.4g}: from "
                f"{limit} on, {dtype} rounds different ids to the same number.",
                f"Export the ids again as integers or texts, from a source that has them exactly; "
                f"or set {KEYS[role]} to another column.",
            )
