"""Read histories from files, in batches, as rows of a catalogue.

A file has one row per user, with a list of items, or one row per interaction.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from slmc.artefact import sha256
from slmc.data.files import is_stream, rereadable
from slmc.data.layout import Layout
from slmc.data.parts import place
from slmc.data.sniff import detect_layouts
from slmc.data.sources import fetch
from slmc.data.times import parse
from slmc.errors import DataError
from slmc.scoring.batches import Batch
from slmc.scoring.blocks import LINE, count_rows, malformed_rows, read_blocks, schema_of
from slmc.scoring.settings import Settings
from slmc.serving.catalogue import Catalogue, Id, shown
from slmc.serving.frames import Columns, find_columns, holds_numbers, read_frame, text_of

STDIN = Path("/dev/stdin")
SHOWN = 5
"""Malformed rows that are logged one by one."""

log = logging.getLogger("slmc.score")


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
    rows: tuple[int, int] | None = None
    """First row and number of rows of a Parquet file that are read; None for all."""
    before: int = 0
    """Rows before those, in this file and others: users without a column are numbered from here."""

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
        schema = schema_of(paths[0], layouts[0])
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
        counts = [count_rows(*one) for one in zip(self.paths, self.layouts, strict=True)]
        known = [one for one in counts if one is not None]
        return sum(known) if len(known) == len(counts) else None

    def histories(self, catalogue: Catalogue) -> Iterator[Batch]:
        """The histories of an input with one row per user, of this shard, in their order.

        Raises:
            DataError: A row is malformed or an item unknown, and that is an error.
        """
        read, start = 0, self.before
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
            blocks = read_blocks(
                path, layout, self.columns, self.users, self.settings.items_separator, self.rows
            )
            for frame, malformed in blocks:
                read = frame.height + malformed.height
                good, missing = self._complete(frame)
                self._report(path, pl.concat([malformed, missing]))
                yield good.drop(LINE), read

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
            return frame, malformed_rows([])
        reason = frame.select(pl.coalesce(reasons).alias("reason"))["reason"]
        if reason.null_count() == frame.height:
            return frame, malformed_rows([])
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
