"""Read the rows of one input file, block by block, and set malformed rows apart.

A block is two tables: the rows, with the columns of the file and their line in :data:`LINE`; and
:data:`LINE` and ``reason`` of the malformed rows.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from slmc.data.columns import json_text
from slmc.data.delimited import header_names
from slmc.data.files import GZIP, Lines, head_lines, line_blocks, open_file, rereadable
from slmc.data.formats import json_objects, parquet_errors, table_blocks
from slmc.data.layout import Layout
from slmc.data.lists import split_lists
from slmc.serving.frames import Columns

BATCH_ROWS = 1 << 15
"""Rows of a Parquet file that are read at once."""
LINE = "#line"
"""Column of line numbers; hardly the name of a column of the input."""
INEXACT = r"[\[:,]\s*-?\d+(?:\.|[eE])"
"""A number in JSON that is not a plain integer: such lines are read one by one, exactly."""

Block = tuple[pl.DataFrame, pl.DataFrame]


def schema_of(path: Path, layout: Layout) -> dict[str, pl.DataType]:
    """Column -> type; those of text files are texts."""
    if layout.format == "sequences":
        return {"user": pl.String(), "items": pl.List(pl.String)}
    if layout.format == "parquet":
        with parquet_errors(path):
            return dict(pl.scan_parquet(rereadable(path), glob=False).collect_schema())
    if layout.format == "jsonl":
        return _json_schema(path, layout)
    names = header_names(path, layout, head_lines(path)[layout.skip])
    return dict.fromkeys(names, pl.String())


def _json_schema(path: Path, layout: Layout) -> dict[str, pl.DataType]:
    """Keys of the first objects -> type of their first value."""
    schema: dict[str, pl.DataType] = {}
    for line in head_lines(path)[layout.skip :]:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        for key, value in row.items() if isinstance(row, dict) else ():
            if isinstance(value, list):
                inner = pl.Int64() if value and type(value[0]) is int else pl.String()
                if not value and key in schema:
                    continue
                schema[key] = pl.List(inner)
            elif key not in schema:
                schema[key] = pl.Int64() if type(value) is int else pl.String()
    return schema


def count_rows(path: Path, layout: Layout) -> int | None:
    """Number of rows of a file, about; None if it would have to be decompressed."""
    if layout.format == "parquet":
        with parquet_errors(path):
            count: int = (
                pl.scan_parquet(rereadable(path), glob=False).select(pl.len()).collect().item()
            )
            return count
    with open_file(path) as stream:
        if stream.read(2) == GZIP:
            return None
        stream.seek(0)
        count = 0
        while block := stream.read(1 << 22):
            count += block.count(b"\n")
    return max(1, count - (layout.delimited and layout.header))


def read_blocks(
    path: Path,
    layout: Layout,
    columns: Columns,
    users: pl.DataType,
    items_separator: str | None,
    part: tuple[int, int] | None = None,
) -> Iterator[Block]:
    """The rows of a file.

    Args:
        path: The file.
        layout: What is in it.
        columns: Its columns.
        users: Type of the users.
        items_separator: Separator of the ids of a list that is written as text; None for blanks.
        part: First row and number of rows of a Parquet file; None for all.

    Raises:
        DataError: The file cannot be read.
    """
    if layout.format == "parquet":
        return _parquet_blocks(path, columns, part)
    if layout.format == "jsonl" and columns.items is not None:
        return _list_blocks(path, layout, columns, users)
    if layout.format == "sequences":
        return (_sequences(lines) for lines in line_blocks(path, layout.skip))
    return _table_blocks(path, layout, columns, users, items_separator)


def _table_blocks(
    path: Path, layout: Layout, columns: Columns, users: pl.DataType, items_separator: str | None
) -> Iterator[Block]:
    """CSV, TSV, RecBole's files, and JSON lines with one interaction each."""
    roles = columns.named
    for frame, malformed in table_blocks(path, layout, roles):
        named = frame.rename({"line": LINE} | roles)
        if columns.items is not None:
            lists = split_lists(named[columns.items], str(path), items_separator)
            named = named.with_columns(lists.alias(columns.items))
        if columns.user is not None and users.is_integer():
            named = named.with_columns(pl.col(columns.user).cast(users, strict=False))
        yield named, malformed.select(pl.col("line").alias(LINE), "reason")


def _parquet_blocks(path: Path, columns: Columns, part: tuple[int, int] | None) -> Iterator[Block]:
    names = [*columns.named.values()]
    start, rows_read = part or (0, None)
    with parquet_errors(path):
        rows = pl.scan_parquet(rereadable(path), glob=False).select(names).slice(start, rows_read)
        line = start + 1
        for frame in rows.collect_batches(chunk_size=BATCH_ROWS, maintain_order=True):
            numbers = pl.int_range(line, line + frame.height, eager=True, dtype=pl.Int64)
            line += frame.height
            yield frame.with_columns(numbers.alias(LINE)), malformed_rows([])


def _list_blocks(
    path: Path, layout: Layout, columns: Columns, users: pl.DataType
) -> Iterator[Block]:
    """JSON lines with a list of items each."""
    items = columns.items or ""
    types: dict[str, pl.DataType] = {items: pl.List(pl.String)}
    if columns.user is not None:
        types[columns.user] = users
    for lines in line_blocks(path, layout.skip):
        bad = [(line, reason) for line, _, reason in lines.malformed]
        texts = lines.filled
        if not texts["text"].str.contains(INEXACT).any():
            try:
                rows = texts["text"].str.json_decode(pl.Struct(types)).struct.unnest()
                yield (
                    rows.with_columns(texts["line"].alias(LINE)).select(*types, LINE),
                    malformed_rows(bad),
                )
                continue
            except pl.exceptions.PolarsError:
                pass  # a line is malformed: find it
        yield _slowly(lines, bad, columns, types)


def _slowly(
    lines: Lines,
    bad: list[tuple[int, str]],
    columns: Columns,
    types: dict[str, pl.DataType],
) -> Block:
    """Read JSON lines one by one, so that each malformed one is known."""
    faults: list[tuple[int, str, str]] = []
    rows = []
    items, user = columns.items or "", columns.user
    for line, row in json_objects(lines, faults):
        try:
            listed = row.get(items)
            if listed is not None and not isinstance(listed, list):
                raise ValueError(f"{items} is not a list")
            ids = [json_text(one, items) for one in listed or ()]
            owner: str | int | None = json_text(row.get(user), user) if user is not None else None
            if user is not None and types[user].is_integer() and owner is not None:
                owner = int(owner)
            rows.append({items: ids, LINE: line} | ({user: owner} if user is not None else {}))
        except ValueError as error:
            bad.append((line, str(error)))
    bad += [(line, reason) for line, _, reason in faults]
    frame = pl.DataFrame(rows, schema={**types, LINE: pl.Int64()})
    return frame, malformed_rows(bad)


def _sequences(lines: Lines) -> Block:
    """Lines ``user item item …``; a user alone has an empty history."""
    tokens = lines.filled.select("line", pl.col("text").str.extract_all(r"\S+"))
    frame = tokens.select(
        pl.col("text").list.first().alias("user"), pl.col("text").list.slice(1).alias("items"),
        pl.col("line").alias(LINE),
    )  # fmt: skip
    return frame, malformed_rows([(line, reason) for line, _, reason in lines.malformed])


def malformed_rows(rows: Sequence[tuple[int, str]]) -> pl.DataFrame:
    """The table of malformed rows: line and reason of each."""
    return pl.DataFrame(rows, schema={LINE: pl.Int64, "reason": pl.String}, orient="row")
