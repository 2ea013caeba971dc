"""Read tables with a separator (CSV, TSV, RecBole's atomic files) block by block."""

import csv
from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from pathlib import Path

import polars as pl

from slmc.data.columns import missing_column
from slmc.data.config import BLANKS
from slmc.data.files import MALFORMED, Lines, line_blocks
from slmc.data.layout import Layout
from slmc.data.preamble import uncommented
from slmc.data.quotes import QuotedRows, uneven
from slmc.errors import DataError

REPEATED = "repeats the header, as where files were joined"
"""Reason of a malformed row."""


def delimited_blocks(
    path: Path, layout: Layout, columns: Mapping[str, str]
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Read the rows of a table block by block.

    Args:
        path: A local text file.
        layout: Its separator, and whether it has a header.
        columns: Role -> column: a name of the header, or a number from 1 without a header.

    Yields:
        The rows (``line`` and one text column per role), and the malformed rows.

    Raises:
        DataError: A column is missing, or a quote is never closed.
    """
    blocks, first_number, first = _first_line(line_blocks(path, layout.skip))
    width, places = column_places(path, layout, columns, first)
    quoted = QuotedRows(path, layout, width, places)
    for lines in blocks:
        rows, faults = lines.frame, [pl.DataFrame(lines.malformed, MALFORMED, orient="row")]
        if layout.header:
            rows, again = _without_header(rows, first_number, first)
            faults.append(again)
        records = []
        if layout.quoted:
            apart = quoted.separate(rows)
            rows, records = apart.lines, [apart.records]
            faults.append(apart.malformed)
        even, uneven_rows = _split(rows, layout, width)
        fields = [pl.col("fields").list.get(place).alias(role) for role, place in places.items()]
        frame = pl.concat([even.select("line", *fields), *records])
        if records and records[0].height:
            frame = frame.sort("line")
        yield (
            frame.with_columns(pl.col(*places).str.strip_chars()),
            pl.concat([*faults, uneven_rows]),
        )
    quoted.close()


def column_places(
    path: Path, layout: Layout, columns: Mapping[str, str], first: str
) -> tuple[int, dict[str, int]]:
    """Return the number of columns of a table, and the index of each role's column.

    Args:
        path: The file, for messages.
        layout: Its layout.
        columns: Role -> column.
        first: Its first line that is not blank.

    Raises:
        DataError: A column is missing, or occurs twice.
    """
    names = header_names(path, layout, first, columns.values())
    if layout.format == "recbole":
        columns = {role: name.partition(":")[0] for role, name in columns.items()}
    for column in columns.values():
        if names.count(column) != 1:
            raise missing_column(path, column, names, columns, layout.separator)
    return len(names), {role: names.index(column) for role, column in columns.items()}


def _first_line(blocks: Iterator[Lines]) -> tuple[Iterator[Lines], int, str]:
    """Return all blocks, and number and text of the first line that is not blank."""
    passed = []
    for lines in blocks:
        passed.append(lines)
        if lines.filled.height:
            number, text = lines.filled.row(0)
            return chain(passed, blocks), number, text
    return iter(passed), 0, ""


def _without_header(
    lines: pl.DataFrame, number: int, header: str
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the lines after the header, and malformed rows for lines that repeat it."""
    rows = lines.filter(pl.col("line") > number)
    same = pl.col("text").str.strip_chars_start("\ufeff") == header
    again = rows.filter(same).select("line", fault=pl.lit("header"), reason=pl.lit(REPEATED))
    return (rows.filter(~same) if again.height else rows), again


def header_names(path: Path, layout: Layout, first: str, wanted: Collection[str] = ()) -> list[str]:
    """Return the columns: the names of the header, or numbers from 1 without a header."""
    try:
        fields = layout.fields(first)
    except csv.Error as error:
        line = "the header" if layout.header else "the first line"
        raise DataError(
            f"{path}: {line} is broken CSV: {error}.",
            "Fix its quotes, or set format: tsv if the file is tab-separated.",
        ) from None
    if not layout.header:
        return [str(number) for number in range(1, len(fields) + 1)]
    names = [field.strip() for field in fields]
    names[0] = names[0] if names[0] in wanted else uncommented(names[0])
    return [name.partition(":")[0] for name in names] if layout.format == "recbole" else names


def _split(lines: pl.DataFrame, layout: Layout, width: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return ``line`` and ``fields`` of non-blank lines; lines of another width are malformed."""
    text = pl.col("text")
    blanks = layout.separator == BLANKS
    parts = text.str.extract_all(r"\S+") if blanks else text.str.split(layout.separator)
    rows = lines.filter(text.str.strip_chars() != "").select("line", parts.alias("fields"))
    count = pl.col("fields").list.len()
    odd = rows.filter(count != width).select("line", count.alias("count"))
    return (rows.filter(count == width) if odd.height else rows), uneven(odd, width, layout.header)
