"""The formats of a log, each read into the same table of texts.

Every format gives, for each row, its line and the columns that were asked for, as text (the
time may be a number already). What cannot be split into fields is malformed; whether an id
or a time stamp makes sense is decided once for all formats, in ``slmc.data.readers``.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import polars as pl

from slmc.data.columns import json_text, missing_column, parquet_column, refuse_inexact
from slmc.data.config import Format
from slmc.data.files import MALFORMED, Lines, check_parquet, read_lines
from slmc.errors import DataError

SUFFIXES: dict[str, Format] = {
    ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet",
    ".pq": "parquet", ".inter": "recbole", ".item": "recbole", ".txt": "sequences",
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """The rows of one file."""

    frame: pl.DataFrame
    """``line`` (1-based), then a column for each role: text, or Float64 for a time."""
    malformed: pl.DataFrame
    """``line``, ``fault``, ``reason`` of the rows that are left out."""


def format_of(path: Path, format: Format = "auto") -> Format:
    """The format of a file, by its name if ``auto``; raises :class:`DataError` if untold."""
    if format != "auto":
        return format
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    found = SUFFIXES.get(suffixes[-1]) if suffixes else None
    if found is None or (found == "parquet" and path.suffix == ".gz"):
        raise DataError(
            f"The name of {path} does not tell its format.",
            "Set format to csv, tsv, jsonl, parquet, recbole or sequences.",
        )
    return found


def read_table(path: Path, format: Format, columns: Mapping[str, str]) -> Table:
    """Read one file.

    Args:
        path: A local file.
        format: Its format, not ``auto``.
        columns: Role (``user``, ``item``, ``time``, ``title``) -> column. The sequence format
            has no columns: it always gives ``user`` and ``item``.

    Raises:
        DataError: The file as a whole cannot be read, or lacks a column.
    """
    if format == "parquet":
        return _parquet(path, columns)
    lines = read_lines(path)
    if format == "sequences":
        return _sequences(lines)
    if format == "jsonl":
        return _jsonl(path, lines, columns)
    return _delimited(path, lines, format, columns)


def _table(frame: pl.DataFrame, malformed: Iterable[tuple[int, str, str]]) -> Table:
    return Table(frame, pl.DataFrame(list(malformed), schema=MALFORMED, orient="row"))


def _sequences(lines: Lines) -> Table:
    """``user item item …``: one row an item, in the order of the line."""
    tokens = lines.frame.select("line", pl.col("text").str.extract_all(r"\S+"))
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
    return _table(frame, [*lines.malformed, *bad])


def _delimited(path: Path, lines: Lines, format: Format, columns: Mapping[str, str]) -> Table:
    """CSV (RFC 4180 quotes), TSV and RecBole's atomic files (tabs, no quotes, typed header)."""
    separator = "," if format == "csv" else "\t"
    first = lines.frame.head(1)["text"].item() if lines.frame.height else ""
    quoted = format == "csv" and bool(lines.frame["text"].str.contains('"', literal=True).any())
    header = _unquoted_header(path, first) if quoted else first.split(separator)
    names = [name.strip() for name in header]
    if format == "recbole":
        names = [name.partition(":")[0] for name in names]
        columns = {role: name.partition(":")[0] for role, name in columns.items()}
    for column in columns.values():
        if names.count(column) != 1:
            raise missing_column(path, column, names, columns, separator)
    rows = lines.frame.slice(1)
    bad = [*lines.malformed]
    if quoted:
        rows = _unquoted(path, rows, bad)
    else:
        rows = rows.select("line", pl.col("text").str.split(separator).alias("fields"))
    count = pl.col("fields").list.len()
    for line, found in rows.filter(count != len(names)).select("line", count).iter_rows():
        fields = "1 field" if found == 1 else f"{found} fields"
        bad.append((line, "fields", f"{fields}, the header has {len(names)}"))
    frame = rows.filter(count == len(names)).select(
        "line",
        *(
            pl.col("fields").list.get(names.index(column)).str.strip_chars().alias(role)
            for role, column in columns.items()
        ),
    )
    return _table(frame, bad)


def _unquoted_header(path: Path, text: str) -> list[str]:
    try:
        return next(csv.reader([text], strict=True))
    except csv.Error as error:
        raise DataError(
            f"{path}: the header is broken CSV: {error}.",
            "Mend its quotes, or set format: tsv if the file is tab-separated.",
        ) from None


def _unquoted(path: Path, rows: pl.DataFrame, bad: list[tuple[int, str, str]]) -> pl.DataFrame:
    """Split CSV rows that hold quotes; a row may span lines and is named by its first."""
    numbers = rows["line"].to_list()
    reader = csv.reader((f"{text}\n" for text in rows["text"]), strict=True)
    starts: list[int] = []
    fields: list[list[str]] = []
    while reader.line_num < len(numbers):
        start = numbers[reader.line_num]
        try:
            row = next(reader)
        except csv.Error as error:
            if reader.line_num == len(numbers) and "end of data" in str(error):
                raise DataError(
                    f"{path}, line {start}: a quoted field does not end.",
                    "Close the quote, or set format: tsv if the file is tab-separated.",
                ) from None
            bad.append((start, "fields", f"broken CSV: {error}"))
            continue
        starts.append(start)
        fields.append(row)
    return pl.DataFrame(
        {"line": starts, "fields": fields},
        schema={"line": pl.Int64, "fields": pl.List(pl.String)},
    )


def _jsonl(path: Path, lines: Lines, columns: Mapping[str, str]) -> Table:
    """One JSON object a line."""
    bad = [*lines.malformed]
    names: dict[str, None] = {}
    rows = []
    for line, row in _objects(lines, bad):
        names.update(dict.fromkeys(row))
        try:
            rows.append((line, *(json_text(row.get(name), name) for name in columns.values())))
        except ValueError as error:
            bad.append((line, "type", str(error)))
    for column in columns.values():
        if names and column not in names:
            raise missing_column(path, column, [*names], columns)
    schema = {"line": pl.Int64} | dict.fromkeys(columns, pl.String)
    return _table(pl.DataFrame(rows, schema=schema, orient="row"), bad)


def _objects(
    lines: Lines, bad: list[tuple[int, str, str]]
) -> Iterator[tuple[int, dict[str, object]]]:
    for line, text in lines.frame.iter_rows():
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
    try:
        check_parquet(path)
        rows = pl.scan_parquet(path, glob=False)
        schema = rows.collect_schema()
        for column in columns.values():
            if column not in schema:
                raise missing_column(path, column, schema.names(), columns)
        refuse_inexact(path, rows, schema, columns)
        picked = [
            parquet_column(path, column, schema[column], role).alias(role)
            for role, column in columns.items()
        ]
        frame = rows.select(*picked).with_row_index("line", 1).collect()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{path} is not a readable Parquet file: {reason}.",
            "Copy the file again, or set format to what it is.",
        ) from None
    return _table(frame.with_columns(pl.col("line").cast(pl.Int64)), [])
