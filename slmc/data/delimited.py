"""Tables with a separator (CSV, TSV, RecBole's atomic files), block by block."""

import csv
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

import polars as pl

from slmc.data.columns import missing_column
from slmc.data.files import MALFORMED, Lines, line_blocks
from slmc.data.layout import Layout
from slmc.data.quotes import QuotedRows, split
from slmc.errors import DataError


def delimited_blocks(
    path: Path, layout: Layout, columns: Mapping[str, str]
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """The rows of a table, block after block.

    Args:
        path: A local text file.
        layout: Its separator, and whether it has a header.
        columns: Role -> column: a name of the header, or a number from 1 where there is none.

    Yields:
        The rows (``line`` and one text column a role), and the malformed rows.

    Raises:
        DataError: A column is not there, or a quote is never closed.
    """
    blocks, first_number, first = _first_line(line_blocks(path))
    names = _names(path, layout, first)
    if layout.format == "recbole":
        columns = {role: name.partition(":")[0] for role, name in columns.items()}
    for column in columns.values():
        if names.count(column) != 1:
            raise missing_column(path, column, names, columns, layout.separator)
    places = {role: names.index(column) for role, column in columns.items()}
    quoted = QuotedRows(path, layout.separator, len(names), [*places.values()])
    for lines in blocks:
        rows, faults = lines.frame, [pl.DataFrame(lines.malformed, MALFORMED, orient="row")]
        if layout.header:
            rows = rows.filter(pl.col("line") > first_number)
        if layout.quoted:
            fields, quote_faults = quoted.rows(rows)
            faults.append(quote_faults)
        else:
            fields = split(rows, layout.separator)
        good, uneven = _of_width(fields, len(names), layout.header)
        picked = [
            pl.col("fields").list.get(place).str.strip_chars().alias(role)
            for role, place in places.items()
        ]
        yield good.select("line", *picked), pl.concat([*faults, uneven])
    quoted.close()


def _first_line(blocks: Iterator[Lines]) -> tuple[Iterator[Lines], int, str]:
    """All blocks, and number and text of the first line that is not blank."""
    passed = []
    for lines in blocks:
        passed.append(lines)
        if lines.filled.height:
            number, text = lines.filled.row(0)
            return chain(passed, blocks), number, text
    return iter(passed), 0, ""


def _names(path: Path, layout: Layout, first: str) -> list[str]:
    """The columns: the names of the header, or numbers from 1 where there is none."""
    try:
        fields = layout.fields(first)
    except csv.Error as error:
        line = "the header" if layout.header else "the first line"
        raise DataError(
            f"{path}: {line} is broken CSV: {error}.",
            "Mend its quotes, or set format: tsv if the file is tab-separated.",
        ) from None
    if not layout.header:
        return [str(number) for number in range(1, len(fields) + 1)]
    names = [field.strip() for field in fields]
    return [name.partition(":")[0] for name in names] if layout.format == "recbole" else names


def _of_width(rows: pl.DataFrame, width: int, header: bool) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows of ``width`` fields, and the others as malformed rows."""
    count = pl.col("fields").list.len()
    uneven = rows.filter(count != width)
    first = "header" if header else "first row"
    reason = pl.format(
        f"{{}} {{}}, the {first} has {width}",
        count, pl.when(count == 1).then(pl.lit("field")).otherwise(pl.lit("fields")),
    )  # fmt: skip
    faults = uneven.select("line", pl.lit("fields").alias("fault"), reason.alias("reason"))
    return (rows.filter(count == width) if uneven.height else rows), faults
