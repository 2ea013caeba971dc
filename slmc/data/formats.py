"""Read each format of a log into the same table of texts.

Every format returns, for each row, its line and the requested columns as text (the time may
be a number already). Rows that cannot be split into fields are malformed; ids and time stamps
are checked in ``slmc.data.readers``, for all formats.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import polars as pl

from slmc.data.columns import (
    json_text,
    listed_text,
    member,
    missing_column,
    parquet_column,
    parquet_field,
    refuse_inexact,
)
from slmc.data.config import TEXT
from slmc.data.delimited import column_places, delimited_blocks
from slmc.data.files import MALFORMED, Lines, check_parquet, head_lines, line_blocks, rereadable
from slmc.data.layout import Layout
from slmc.data.partitions import folder_values, inside
from slmc.errors import DataError

IDS = ("user", "item")
"""Roles whose texts are repeated often: they are kept as categories, 4 bytes per row."""
PARQUET_ROWS = 1 << 18
"""Rows of a Parquet file that are read at once."""


@dataclass(frozen=True)
class Table:
    """The rows of one file."""

    frame: pl.DataFrame
    """``line`` (1-based), then a column for each role: ids categorical, others text. A time
    column of Parquet may be numbers or dates."""
    malformed: pl.DataFrame
    """``line``, ``fault``, ``reason`` of the rows that are skipped."""


def read_table(path: Path, layout: Layout, columns: Mapping[str, str]) -> Table:
    """Read one file.

    Args:
        path: A local file.
        layout: Its layout.
        columns: Role (``user``, ``item``, ``time``, ``title``) -> column. The sequence format
            has no columns: it always returns ``user`` and ``item``.

    Raises:
        DataError: The file as a whole cannot be read, or lacks a column.
    """
    blocks = [*read_blocks(path, layout, columns)]
    return Table(
        pl.concat([block.frame for block in blocks]),
        pl.concat([block.malformed for block in blocks]),
    )


def read_blocks(path: Path, layout: Layout, columns: Mapping[str, str]) -> Iterator[Table]:
    """Read one file block by block, an empty block first; arguments as :func:`read_table`.

    Columns that only the names of the file's folders have are added.

    Raises:
        DataError: As :func:`read_table`, when the block with the error is read.
    """
    outside = {} if layout.format == "sequences" else folder_values(path, columns)
    if not outside:
        yield from _blocks(path, layout, columns)
        return
    rest = {role: column for role, column in columns.items() if role not in outside}
    added = [pl.lit(value, _type(role)).alias(role) for role, value in outside.items()]
    for table in _blocks(path, layout, rest):
        yield Table(table.frame.with_columns(added).select("line", *columns), table.malformed)


def _blocks(path: Path, layout: Layout, columns: Mapping[str, str]) -> Iterator[Table]:
    """Read one file block by block, an empty block first."""
    if layout.format == "parquet":
        yield from _parquet(path, columns)
        return
    if layout.format == "sequences":
        columns = {"user": "the user", "item": "an item"}
    schema = pl.Schema({"line": pl.Int64()} | {role: _type(role) for role in columns})
    yield Table(pl.DataFrame(schema=schema), pl.DataFrame(schema=MALFORMED))
    for rows, malformed in table_blocks(path, layout, columns):
        yield Table(rows.cast(schema), malformed)


def check_columns(path: Path, layout: Layout, columns: Mapping[str, str]) -> None:
    """Check that the header of a file has the columns; arguments as :func:`read_table`.

    JSON lines are not checked: a key that is missing in one line may be in another.

    Raises:
        DataError: A column is missing.
    """
    columns = inside(path, columns)
    if layout.format == "parquet":
        with parquet_errors(path):
            _selected(path, columns)
    elif layout.delimited:
        column_places(path, layout, columns, head_lines(path)[layout.skip])


def _type(role: str) -> pl.DataType:
    return pl.Categorical() if role in IDS else pl.String()


Blocks = Iterator[tuple[pl.DataFrame, pl.DataFrame]]
"""Rows and malformed rows of each block."""


def table_blocks(path: Path, layout: Layout, columns: Mapping[str, str]) -> Blocks:
    """Read a text file block by block; arguments and errors as :func:`read_table`.

    Yields:
        ``line`` and a text column per role, and the malformed rows.
    """
    if layout.format == "sequences":
        return map(_sequences, line_blocks(path, layout.skip))
    if layout.format == "jsonl":
        return _jsonl(path, layout, columns)
    return delimited_blocks(path, layout, columns)


def _faults(faults: Iterable[tuple[int, str, str]]) -> pl.DataFrame:
    """Return malformed rows as a table."""
    return pl.DataFrame([*faults], schema=MALFORMED, orient="row")


def _sequences(lines: Lines) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Read lines ``user item item …``: one row per item, in the order of the line."""
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


def _jsonl(path: Path, layout: Layout, columns: Mapping[str, str]) -> Blocks:
    """Read one JSON object per line."""
    names: dict[str, None] = {}
    found: set[str] = set()
    schema = {"line": pl.Int64} | dict.fromkeys(columns, pl.String)
    for lines in line_blocks(path, layout.skip):
        bad, rows = [*lines.malformed], []
        for line, row in json_objects(lines, bad):
            names.update(dict.fromkeys(row))
            try:
                found.update(name for name in columns.values() if member(row, name) is not None)
                values = [
                    None if (one := member(row, name)) is None else one[0]
                    for name in columns.values()
                ]
                texts = [
                    listed_text(value) if role.startswith(TEXT) else json_text(value, name)
                    for (role, name), value in zip(columns.items(), values, strict=True)
                ]
                for name, text in zip(columns.values(), texts, strict=True):
                    _check_characters(name, text)
                rows.append((line, *texts))
            except ValueError as error:
                bad.append((line, "type", str(error)))
        yield pl.DataFrame(rows, schema=schema, orient="row"), _faults(bad)
    for column in columns.values():
        if names and column not in found:
            raise missing_column(path, column, [*names], columns)


def _check_characters(name: str, text: str | None) -> None:
    """Raise ``ValueError`` for a lone surrogate, half of a character of two escapes."""
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise ValueError(f"{name} contains {half}, half of a character") from None


class _TwiceError(ValueError):
    """An object has a key twice, so that it is not known which value is meant."""


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object, whose keys must differ."""
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _TwiceError(f"the key {twice!r} occurs twice in one object")
    return row


DECODER = json.JSONDecoder(parse_float=Decimal, object_pairs_hook=_object)
"""Numbers keep all their digits."""


def json_objects(
    lines: Lines, bad: list[tuple[int, str, str]]
) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield line and object of JSON lines; others are added to ``bad``: line, fault, reason."""
    for line, text in lines.filled.iter_rows():
        try:
            row = DECODER.decode(text)
        except json.JSONDecodeError as error:
            bad.append((line, "json", f"broken JSON: {error.msg} at column {error.colno}"))
        except _TwiceError as error:
            bad.append((line, "json", str(error)))
        except (RecursionError, ValueError):
            bad.append((line, "json", "broken JSON: nested too deeply, or a number too long"))
        else:
            if isinstance(row, dict):
                yield line, row
            else:
                bad.append((line, "json", "not a JSON object"))


def _parquet(path: Path, columns: Mapping[str, str]) -> Iterator[Table]:
    """Read the requested columns of a Parquet file by polars' streaming engine."""
    ids = pl.col(role for role in columns if role in IDS).cast(pl.Categorical)
    with parquet_errors(path):
        rows, selected = _selected(path, columns)
        refuse_inexact(path, rows, columns)
        rows = (
            rows.select(*selected)
            .with_row_index("line", 1)
            .with_columns(pl.col("line").cast(pl.Int64), ids)
        )
        yield Table(rows.head(0).collect(), _faults([]))
        for block in rows.collect_batches(chunk_size=PARQUET_ROWS, engine="streaming"):
            yield Table(block, _faults([]))


def _selected(path: Path, columns: Mapping[str, str]) -> tuple[pl.LazyFrame, list[pl.Expr]]:
    """Return a lazy frame with a column for each role, and the expression of each as text."""
    check_parquet(path)
    rows = pl.scan_parquet(rereadable(path), glob=False)
    schema = rows.collect_schema()
    fields = {}
    for role, column in columns.items():
        fields[role] = parquet_field(schema, column)
        if fields[role] is None:
            raise missing_column(path, column, schema.names(), columns)
    rows = rows.select(field.alias(role) for role, field in fields.items() if field is not None)
    schema = rows.collect_schema()
    unknown = [role for role in columns if schema[role] == pl.Null]
    if unknown and rows.select(pl.len()).collect().item() == 0:  # an empty part of a log
        rows = rows.with_columns(pl.col(unknown).cast(pl.String))
        schema = rows.collect_schema()
    return rows, [
        parquet_column(path, column, schema[role], role) for role, column in columns.items()
    ]


@contextmanager
def parquet_errors(path: Path) -> Iterator[None]:
    """Turn polars' errors about a broken Parquet file into a :class:`DataError`."""
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "invalid utf8" in reason:
            raise DataError(
                f"{path} has a column of ids or times whose bytes are not UTF-8 text.",
                "Export it as text, a UUID for instance in its hexadecimal form.",
            ) from None
        raise DataError(
            f"{path} is not a readable Parquet file: {reason}.",
            "Copy the file again, or set format to its real format.",
        ) from None
