"""The formats of a log, each read into the same table of texts.

Every format gives, for each row, its line and the columns that were asked for, as text (the
time may be a number already). What cannot be split into fields is malformed; whether an id
or a time stamp makes sense is decided once for all formats, in ``slmc.data.readers``.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import polars as pl

from slmc.data.columns import json_text, missing_column, parquet_column, refuse_inexact
from slmc.data.delimited import delimited_blocks, places_of
from slmc.data.files import MALFORMED, Lines, check_parquet, head_lines, line_blocks, stored
from slmc.data.layout import Layout
from slmc.errors import DataError

IDS = ("user", "item")
"""Roles whose texts come again and again: they are kept as categories, 4 bytes a row."""


@dataclass(frozen=True)
class Table:
    """The rows of one file."""

    frame: pl.DataFrame
    """``line`` (1-based), then a column for each role: ids categorical, others text, but for a
    time that Parquet has as numbers or dates."""
    malformed: pl.DataFrame
    """``line``, ``fault``, ``reason`` of the rows that are left out."""


def read_table(path: Path, layout: Layout, columns: Mapping[str, str]) -> Table:
    """Read one file.

    Args:
        path: A local file.
        layout: What it is.
        columns: Role (``user``, ``item``, ``time``, ``title``) -> column. The sequence format
            has no columns: it always gives ``user`` and ``item``.

    Raises:
        DataError: The file as a whole cannot be read, or lacks a column.
    """
    if layout.format == "parquet":
        return _parquet(path, columns)
    if layout.format == "sequences":
        columns = {"user": "the user", "item": "an item"}
    schema = pl.Schema({"line": pl.Int64()} | {role: _type(role) for role in columns})
    frames, faults = [pl.DataFrame(schema=schema)], [pl.DataFrame(schema=MALFORMED)]
    for rows, malformed in _blocks(path, layout, columns):
        frames.append(rows.cast(schema))
        faults.append(malformed)
    return Table(pl.concat(frames), pl.concat(faults))


def check_columns(path: Path, layout: Layout, columns: Mapping[str, str]) -> None:
    """See that a file has the columns, from its header alone; arguments as :func:`read_table`.

    JSON lines have no header: what one line lacks another may have.

    Raises:
        DataError: A column is not there.
    """
    if layout.format == "parquet":
        with _readable(path):
            _picked(path, columns)
    elif layout.delimited:
        places_of(path, layout, columns, head_lines(path)[0])


def _type(role: str) -> pl.DataType:
    return pl.Categorical() if role in IDS else pl.String()


Blocks = Iterator[tuple[pl.DataFrame, pl.DataFrame]]
"""Rows and malformed rows, block after block."""


def _blocks(path: Path, layout: Layout, columns: Mapping[str, str]) -> Blocks:
    if layout.format == "sequences":
        return map(_sequences, line_blocks(path))
    if layout.format == "jsonl":
        return _jsonl(path, columns)
    return delimited_blocks(path, layout, columns)


def _faults(faults: Iterable[tuple[int, str, str]]) -> pl.DataFrame:
    """Malformed rows as a table."""
    return pl.DataFrame([*faults], schema=MALFORMED, orient="row")


def _sequences(lines: Lines) -> tuple[pl.DataFrame, pl.DataFrame]:
    """``user item item …``: one row an item, in the order of the line."""
    tokens = lines.filled.select("line", pl.col("text").str.extract_all(r"\S+"))
    short = tokens.filter(pl.col("text").list.len() < 2)["line"]
    frame = (
        tokens.filter(pl.col("text").list.len() >= 2)
        .select(
            "line", pl.col("text").list.first().alias("user"),
            pl.col("text").list.slice(1).alias("item"),
        )
        .explode("item")
    )  # fmt: skip
    bad = [(line, "fields", "a user without items") for line in short]
    return frame, _faults([*lines.malformed, *bad])


def _jsonl(path: Path, columns: Mapping[str, str]) -> Blocks:
    """One JSON object a line."""
    names: dict[str, None] = {}
    schema = {"line": pl.Int64} | dict.fromkeys(columns, pl.String)
    for lines in line_blocks(path):
        bad, rows = [*lines.malformed], []
        for line, row in _objects(lines, bad):
            names.update(dict.fromkeys(row))
            try:
                texts = [json_text(row.get(name), name) for name in columns.values()]
                for name, text in zip(columns.values(), texts, strict=True):
                    _check_characters(name, text)
                rows.append((line, *texts))
            except ValueError as error:
                bad.append((line, "type", str(error)))
        yield pl.DataFrame(rows, schema=schema, orient="row"), _faults(bad)
    for column in columns.values():
        if names and column not in names:
            raise missing_column(path, column, [*names], columns)


def _check_characters(name: str, text: str | None) -> None:
    """Raise ``ValueError`` for half of a character that takes two escapes (a lone surrogate)."""
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise ValueError(f"{name} has {half}, half of a character") from None


def _objects(
    lines: Lines, bad: list[tuple[int, str, str]]
) -> Iterator[tuple[int, dict[str, object]]]:
    for line, text in lines.filled.iter_rows():
        try:
            row = json.loads(text, parse_float=Decimal)
        except json.JSONDecodeError as error:
            bad.append((line, "json", f"broken JSON: {error.msg} at column {error.colno}"))
        except (RecursionError, ValueError):
            bad.append((line, "json", "broken JSON: nested too deeply, or a number too long"))
        else:
            if isinstance(row, dict):
                yield line, row
            else:
                bad.append((line, "json", "not a JSON object"))


def _parquet(path: Path, columns: Mapping[str, str]) -> Table:
    """Parquet; only the columns that are asked for are read."""
    with _readable(path):
        rows, picked = _picked(path, columns)
        refuse_inexact(path, rows, rows.collect_schema(), columns)
        frame = rows.select(*picked).with_row_index("line", 1).collect()
    ids = pl.col(role for role in columns if role in IDS).cast(pl.Categorical)
    return Table(frame.with_columns(pl.col("line").cast(pl.Int64), ids), _faults([]))


def _picked(path: Path, columns: Mapping[str, str]) -> tuple[pl.LazyFrame, list[pl.Expr]]:
    """A Parquet file, not read yet, and the column of each role."""
    check_parquet(path)
    rows = pl.scan_parquet(stored(path), glob=False)
    schema = rows.collect_schema()
    for column in columns.values():
        if column not in schema:
            raise missing_column(path, column, schema.names(), columns)
    return rows, [
        parquet_column(path, column, schema[column], role).alias(role)
        for role, column in columns.items()
    ]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what polars says of a broken Parquet file into a :class:`DataError`."""
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{path} is not a readable Parquet file: {reason}.",
            "Copy the file again, or set format to what it is.",
        ) from None
