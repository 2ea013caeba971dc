"""A file of new items that says where their vectors are: as vectors, or near other items.

The columns decide. With ``vector`` each item has a list of numbers; with ``neighbours`` a list of
ids of items that the model knows, and with ``weights`` a list of their weights. A file with
neither has texts, which :mod:`slmc.data.item_texts` reads. Does not import torch.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import polars as pl

from slmc.data.columns import json_text
from slmc.data.config import PrepareConfig
from slmc.data.delimited import header_names
from slmc.data.files import head_lines, line_blocks
from slmc.data.formats import json_objects, parquet_errors, table_blocks
from slmc.data.layout import Layout
from slmc.data.lists import split_lists
from slmc.data.sniff import detect_layouts
from slmc.data.sources import fetch
from slmc.errors import DataError, SlmcError

ITEM, TITLE = "item", "title"
NEIGHBOURS, WEIGHTS, VECTOR = "neighbours", "weights", "vector"
"""Columns of a file, besides that of the ids."""
USUAL = ("item_id", "item")
"""Names of the column of ids, after those of the dataset."""
Source = Literal["texts", "neighbours", "vectors"]


def source_of(file: "ItemFile") -> Source:
    """Return where the vectors of a file come from, by its columns.

    Raises:
        DataError: It has both vectors and neighbours.
    """
    if VECTOR in file.names and NEIGHBOURS in file.names:
        raise DataError(
            f"{file.path} has both columns {VECTOR!r} and {NEIGHBOURS!r}.",
            "Leave one of them out: a vector is given, or follows from neighbours.",
        )
    if VECTOR in file.names:
        return "vectors"
    return "neighbours" if NEIGHBOURS in file.names else "texts"


def needs_texts(file: str) -> bool:
    """Return whether a local file has only texts; False where its columns cannot be read now."""
    if "://" in file.removeprefix("file://"):
        return False
    try:
        (path,) = fetch(file)
        return source_of(ItemFile.open(path, USUAL)) == "texts"
    except (SlmcError, ValueError):
        return True  # the file has a fault of its own


def id_columns(data: PrepareConfig) -> list[str]:
    """Names that the column of ids may have, the likeliest first."""
    own = [data.items.item] if data.items is not None else []
    return list(dict.fromkeys([*own, data.columns.item, *USUAL]))


@dataclass(frozen=True)
class ItemFile:
    """A local file and its columns."""

    path: Path
    layout: Layout
    ids: Sequence[str]
    """Names that the column of ids may have, the likeliest first."""
    names: Sequence[str]
    """All columns; of JSON lines, those of the first lines."""

    @classmethod
    def open(cls, path: Path, ids: Sequence[str]) -> Self:
        """Detect the format and read the columns.

        Raises:
            DataError: The format cannot be detected, or the file cannot be read.
        """
        layout = detect_layouts([path], {ITEM: next(_in_first_line(path, ids), ids[0])})[0]
        return cls(path, layout, ids, _columns_of(path, layout))


def _columns_of(path: Path, layout: Layout) -> list[str]:
    if layout.format == "parquet":
        with parquet_errors(path):
            return list(pl.read_parquet_schema(path))
    if layout.format == "jsonl":
        names: dict[str, None] = {}
        for lines in line_blocks(path, layout.skip):
            for _, row in json_objects(lines, []):
                names.update(dict.fromkeys(row))
            break
        return list(names)
    return header_names(path, layout, head_lines(path)[layout.skip])


def read(file: ItemFile) -> pl.DataFrame:
    """Read a file with neighbours or vectors.

    Returns:
        ``item`` and ``title`` (null without one), and ``vector`` or ``neighbours`` and ``weights``
        (lists of texts or numbers, null where a row has none), for each row.

    Raises:
        DataError: The file cannot be read, has no column of ids, or an item is missing or has two
            rows.
    """
    path, names = file.path, file.names
    item = next((name for name in file.ids if name in names), None)
    if item is None:
        raise DataError(
            f"{path} has no column of item ids; it has {', '.join(map(repr, names))}.",
            f"Name the column {file.ids[0]!r}.",
        )
    wanted = {ITEM: item} | {n: n for n in (TITLE, NEIGHBOURS, WEIGHTS, VECTOR) if n in names}
    frame = _rows(path, file.layout, wanted)
    missing = frame[ITEM].is_null() | (frame[ITEM] == "")
    if missing.any():
        raise DataError(
            f"{path}: row {int(missing.arg_max() or 0) + 1} has no item id in {item!r}.",
            "Write an id in every row, or leave the row out.",
        )
    twice = frame.filter(pl.col(ITEM).is_duplicated())[ITEM]
    if twice.len():
        count = frame.filter(pl.col(ITEM) == twice[0]).height
        raise DataError(
            f"{path}: the item {twice[0]!r} has {count} rows.", "Write one row for each item."
        )
    if TITLE not in wanted:
        frame = frame.with_columns(pl.lit(None, pl.String).alias(TITLE))
    return frame


def _in_first_line(path: Path, ids: Sequence[str]) -> Iterator[str]:
    try:
        first = next(iter(head_lines(path)), "")
    except DataError:  # not a text; the format decides
        return
    yield from (name for name in ids if name in first)


def _rows(path: Path, layout: Layout, wanted: Mapping[str, str]) -> pl.DataFrame:
    """Read columns by role: ids and titles as texts, lists as they are or of texts."""
    if layout.format == "parquet":
        with parquet_errors(path):
            frame = pl.read_parquet(path, columns=list(wanted.values()))
        frame = frame.select(pl.col(name).alias(role) for role, name in wanted.items())
        texts = [pl.col(role).cast(pl.String) for role in (ITEM, TITLE) if role in wanted]
        frame = frame.with_columns(texts)
    elif layout.format == "jsonl":
        frame = _json_rows(path, layout, wanted)
    else:
        blocks = []
        for block, malformed in table_blocks(path, layout, wanted):
            _refuse_malformed(path, malformed)
            blocks.append(block.drop("line"))
        frame = pl.concat(blocks)
    return frame.with_columns(
        _as_lists(frame[role], path) for role in (NEIGHBOURS, WEIGHTS, VECTOR) if role in wanted
    )


def _json_rows(path: Path, layout: Layout, wanted: Mapping[str, str]) -> pl.DataFrame:
    rows: list[dict[str, object]] = []
    bad: list[tuple[int, str, str]] = []
    for lines in line_blocks(path, layout.skip):
        for line, row in json_objects(lines, bad):
            values: dict[str, object] = {}
            for role, name in wanted.items():
                try:
                    values[role] = _json_value(row.get(name), role, name)
                except ValueError as error:
                    bad.append((line, "type", str(error)))
            rows.append(values)
    _refuse_malformed(path, pl.DataFrame(bad, ["line", "fault", "reason"], orient="row"))
    lists = (NEIGHBOURS, WEIGHTS, VECTOR)
    schema = {role: pl.List(pl.String) if role in lists else pl.String for role in wanted}
    return pl.DataFrame(rows, schema=schema)


def _json_value(value: object, role: str, name: str) -> object:
    """A value as text, or as a list of texts."""
    if role in (ITEM, TITLE):
        return json_text(value, name)
    if value is None:
        return None
    if not isinstance(value, list):
        raise ValueError(f"{name} is {json.dumps(value, default=str)}, which is not a list")
    return [json_text(one, name) for one in value]


def _as_lists(column: pl.Series, path: Path) -> pl.Series:
    """A column as lists; texts hold JSON arrays, or values between blanks."""
    if column.dtype == pl.String:
        return split_lists(column, str(path)).alias(column.name)
    if isinstance(column.dtype, pl.Array):
        return column.arr.to_list()
    if column.dtype == pl.Null:
        return column.cast(pl.List(pl.String))
    if not isinstance(column.dtype, pl.List):
        raise DataError(
            f"{path}: column {column.name!r} has the type {column.dtype}, not lists.",
            "Write a list in each row.",
        )
    return column


def _refuse_malformed(path: Path, malformed: pl.DataFrame) -> None:
    if malformed.height:
        first = malformed.row(0, named=True)
        raise DataError(
            f"{path}:{first['line']}: {first['reason']}.", "Fix the row, or leave it out."
        )
