"""Read histories from files, in batches, as rows of a catalogue.

A file has one row per user, with a list of items, or one row per interaction.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from slmc.artefact import sha256
from slmc.data.columns import json_text
from slmc.data.delimited import header_names
from slmc.data.files import GZIP, Lines, head_lines, is_stream, line_blocks, open_file, rereadable
from slmc.data.formats import json_objects, parquet_errors, table_blocks
from slmc.data.layout import Layout
from slmc.data.parts import place
from slmc.data.sniff import detect_layouts
from slmc.data.sources import fetch
from slmc.data.times import parse
from slmc.errors import DataError
from slmc.scoring.settings import Settings
from slmc.serving.catalogue import Catalogue, Id, shown
from slmc.serving.frames import (
    Columns,
    find_columns,
    holds_numbers,
    read_frame,
    split_lists,
    text_of,
)
from slmc.serving.histories import Ints

STDIN = Path("/dev/stdin")
BATCH_ROWS = 1 << 15
"""Rows of a Parquet file that are read at once."""
LINE = "#line"
"""Column of line numbers; hardly the name of a column of the input."""
SHOWN = 5
"""Malformed rows that are logged one by one."""
INEXACT = r"[\[:,]\s*-?\d+(?:\.|[eE])"
"""A number in JSON that is not a plain integer: such lines are read one by one, exactly."""

log = logging.getLogger("slmc.score")


@dataclass(frozen=True, eq=False)
class Batch:
    """Users and their histories."""

    users: pl.Series
    """``[B]``."""
    rows: NDArray[np.int32]
    """Rows of the catalogue of all histories, concatenated; 0 for an unknown item."""
    lengths: Ints
    """``[B]`` items of each history."""
    read: int
    """Rows of the input that have been read so far."""


@dataclass
class Source:
    """The files of an input, what is in them, and what was found wrong while reading."""

    settings: Settings
    paths: list[Path]
    layouts: list[Layout]
    columns: Columns
    kind: type[Id]
    """Type of the item ids: ``int`` if the files store them as numbers, else ``str``."""
    users: pl.DataType
    """Type of the users in the output."""
    malformed: int = 0
    """Rows that were skipped."""
    unknown: dict[str, None] = field(default_factory=dict)
    """The first ids that are not in the catalogue."""

    @classmethod
    def open(cls, settings: Settings) -> "Source":
        """Find the files, their format and their columns.

        Raises:
            DataError: A file or a column is missing or unreadable.
            MissingError: A remote file cannot be read.
        """
        paths = [STDIN] if settings.input == "-" else fetch(settings.input)
        named = settings.columns.named
        layouts = detect_layouts(paths, named, settings.format, settings.separator, settings.header)
        schema = _schema(paths[0], layouts[0])
        if layouts[0].format == "sequences":
            columns = Columns("user", "items")
        else:
            columns = find_columns(schema, settings.columns, str(paths[0]), "--columns.")
        user = schema[columns.user] if columns.user is not None else pl.Int64()
        source = cls(
            settings, paths, layouts, columns, int if holds_numbers(schema, columns) else str,
            user if user.is_integer() else pl.String(),
        )  # fmt: skip
        log.info("%s: %s", paths[0], source.description)
        return source

    @property
    def description(self) -> str:
        """What a row of the input is."""
        columns = self.columns
        user = columns.user or "the number of the row"
        if columns.items is not None:
            return f"one row per user ({user}), with a list of items ({columns.items})"
        time = columns.time or "none: rows are in time order"
        return f"one row per interaction (user {user}, item {columns.item}, time {time})"

    @property
    def by_user(self) -> bool:
        """Whether there is one row per user."""
        return self.columns.items is not None

    def fingerprint(self) -> list[object]:
        """What shows that the input is the same as before: of a pipe its SHA-256."""
        prints: list[object] = []
        for path in self.paths:
            if is_stream(path):
                prints.append(sha256(rereadable(path)))
            else:
                state = path.stat()
                prints.append([str(path.resolve()), state.st_size, state.st_mtime_ns])
        return prints

    def total(self) -> int | None:
        """Number of rows of the input, about; None if it would have to be decompressed."""
        counts = [_count(*one) for one in zip(self.paths, self.layouts, strict=True)]
        known = [one for one in counts if one is not None]
        return sum(known) if len(known) == len(counts) else None

    def histories(self, catalogue: Catalogue) -> Iterator[Batch]:
        """The histories of an input with one row per user, of this shard, in their order.

        Raises:
            DataError: A row is malformed or an item unknown, and that is an error.
        """
        read, start = 0, 0
        for frame, lines in self._frames():
            read += lines
            if self.columns.user is None:
                number = pl.int_range(start + 1, start + frame.height + 1, eager=True)
                frame = frame.with_columns(number.alias("row"))
            start += frame.height
            columns = Columns(self.columns.user or "row", self.columns.items)
            frame = frame.filter(pl.Series(self.settings.shard.holds(frame[columns.user or ""])))
            table = read_frame(frame, columns, str(self.paths[0]))
            rows = self.known(table.ids, catalogue)
            yield Batch(table.users.cast(self.users), rows, table.lengths, read)

    def interactions(self, catalogue: Catalogue) -> Iterator[tuple[pl.DataFrame, int]]:
        """The interactions of this shard: ``user``, ``item`` (row), ``time``; and the rows read.

        Raises:
            DataError: As :meth:`histories`.
        """
        read = 0
        for frame, lines in self._frames():
            read += lines
            frame = frame.select(
                pl.col(name).alias(role) for role, name in self.columns.named.items()
            )
            frame = frame.filter(pl.Series(self.settings.shard.holds(frame["user"])))
            rows = self.known(text_of(frame["item"], str(self.paths[0])), catalogue)
            yield frame.with_columns(pl.Series("item", rows), pl.col("user").cast(self.users)), read

    def known(self, ids: pl.Series, catalogue: Catalogue) -> NDArray[np.int32]:
        """Rows of the catalogue, 0 for unknown ids; raises ``DataError`` if they are an error."""
        rows = catalogue.rows(ids)
        if (rows == 0).any() and len(self.unknown) < SHOWN:
            texts = ids.filter(pl.Series(rows == 0)).fill_null("null").unique(maintain_order=True)
            self.unknown.update(dict.fromkeys(texts.head(SHOWN).to_list()))
        if self.unknown and self.settings.unknown == "error":
            raise DataError(
                f"{self.paths[0]}: ids that are not in the vocabulary: {shown([*self.unknown])}.",
                f"Use the ids of the log, for example {catalogue.example}, or pass --unknown skip.",
            )
        return rows

    def _frames(self) -> Iterator[tuple[pl.DataFrame, int]]:
        """Well-formed rows of all files, in batches, and how many rows each batch has read."""
        self.malformed, self.unknown = 0, {}  # each pass counts anew
        for path, layout in zip(self.paths, self.layouts, strict=True):
            if layout.format == "parquet":
                blocks = _parquet_blocks(path, self.columns)
            elif layout.format == "jsonl" and self.by_user:
                blocks = _list_blocks(path, layout, self.columns, self.users)
            else:
                blocks = self._text_blocks(path, layout)
            for frame, malformed in blocks:
                read = frame.height + malformed.height
                good, missing = self._complete(frame)
                self._report(path, pl.concat([malformed, missing]))
                yield good.drop(LINE), read

    def _text_blocks(
        self, path: Path, layout: Layout
    ) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
        if layout.format == "sequences":
            for lines in line_blocks(path, layout.skip):
                yield _sequences(lines)
            return
        roles = self.columns.named
        for frame, malformed in table_blocks(path, layout, roles):
            named = frame.rename({"line": LINE} | roles)
            if self.columns.items is not None:
                texts = named[self.columns.items]
                lists = split_lists(texts, str(path), self.settings.items_separator)
                named = named.with_columns(lists.alias(self.columns.items))
            if self.columns.user is not None and self.users.is_integer():
                users = pl.col(self.columns.user).cast(self.users, strict=False)
                named = named.with_columns(users)
            yield named, malformed.select(pl.col("line").alias(LINE), "reason")

    def _complete(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Rows with a user, an item and a time; and the others."""
        columns = self.columns
        reasons = []
        for name in (columns.user, columns.item, columns.time):
            if name is None:
                continue
            absent = pl.col(name).is_null()
            if frame.schema[name] == pl.String:
                absent |= pl.col(name).str.strip_chars() == ""
            reasons.append(pl.when(absent).then(pl.lit(f"{name} is empty")))
            if name == columns.time:
                unread = parse(frame[name]).values.is_null()
                text = pl.format("{} is {}, which is no time", pl.lit(name), pl.col(name))
                reasons.append(pl.when(pl.lit(unread)).then(text))
        if not reasons:
            return frame, _malformed([])
        reason = frame.select(pl.coalesce(reasons).alias("reason"))["reason"]
        if reason.null_count() == frame.height:
            return frame, _malformed([])
        good = reason.is_null()
        return frame.filter(good), frame.select(LINE, reason).filter(~good)

    def _report(self, path: Path, malformed: pl.DataFrame) -> None:
        for line, reason in malformed.sort(LINE).iter_rows():
            if self.settings.malformed == "error":
                raise DataError(
                    f"{place(str(path), line)}: {reason}.",
                    "Fix the row, or pass --malformed skip.",
                )
            self.malformed += 1
            if self.malformed <= SHOWN:
                log.warning("%s: %s; skipped", place(str(path), line), reason)


def read_ids(name: str, option: str) -> list[str]:
    """The ids of a file for ``--allow`` or ``--deny``: one per line, or a table's item column.

    Raises:
        DataError: The file cannot be read, or has no column of items.
    """
    ids: list[str] = []
    for path in fetch(name):
        layout = Layout("parquet") if _is_parquet(path) else None
        if layout is None:
            for lines in line_blocks(path):
                if lines.malformed:
                    line, _, reason = lines.malformed[0]
                    raise DataError(f"{path}, line {line}: {reason}.", f"Fix {option}.")
                ids += lines.filled["text"].str.strip_chars().to_list()
            continue
        with parquet_errors(path):
            frame = pl.read_parquet(path)
        if frame.width == 1:
            column = frame.columns[0]
        else:
            found = find_columns(frame.schema, Columns(user=frame.columns[0]), str(path))
            column = found.item or found.items or ""
        ids += [one for one in text_of(frame[column], str(path)).to_list() if one]
    return ids


def _is_parquet(path: Path) -> bool:
    from slmc.data.files import has_parquet_magic

    return has_parquet_magic(path)


def _schema(path: Path, layout: Layout) -> dict[str, pl.DataType]:
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


def _parquet_blocks(path: Path, columns: Columns) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    names = [*columns.named.values()]
    with parquet_errors(path):
        rows = pl.scan_parquet(rereadable(path), glob=False).select(names)
        line = 1
        for frame in rows.collect_batches(chunk_size=BATCH_ROWS, maintain_order=True):
            numbers = pl.int_range(line, line + frame.height, eager=True, dtype=pl.Int64)
            line += frame.height
            yield frame.with_columns(numbers.alias(LINE)), _malformed([])


def _list_blocks(
    path: Path, layout: Layout, columns: Columns, users: pl.DataType
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
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
                    _malformed(bad),
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
) -> tuple[pl.DataFrame, pl.DataFrame]:
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
    return frame, _malformed(bad)


def _sequences(lines: Lines) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Lines ``user item item …``; a user alone has an empty history."""
    tokens = lines.filled.select("line", pl.col("text").str.extract_all(r"\S+"))
    frame = tokens.select(
        pl.col("text").list.first().alias("user"), pl.col("text").list.slice(1).alias("items"),
        pl.col("line").alias(LINE),
    )  # fmt: skip
    return frame, _malformed([(line, reason) for line, _, reason in lines.malformed])


def _malformed(rows: Sequence[tuple[int, str]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={LINE: pl.Int64, "reason": pl.String}, orient="row")


def _count(path: Path, layout: Layout) -> int | None:
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
