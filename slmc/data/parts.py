"""The files of a log while it is read: rows in a spool, ids and times counted.

A row is read in two steps, because the unit of its time and the meaning of an id such as ``NA``
depend on all other rows. The first step splits the lines, reads the times and counts both. The
second puts the times on one clock and sets the malformed rows apart.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from slmc.data.clock import EARLIEST, LATEST, Alignment, Clock, Tally, literal
from slmc.data.doubts import warn_of_marks, warn_of_two_spellings
from slmc.data.files import MALFORMED
from slmc.data.formats import Table
from slmc.data.ids import Ids, invalid
from slmc.data.spool import Spool
from slmc.data.times import (
    LOST_DIGITS,
    NUMBER,
    Times,
    concatenated,
    narrowed,
    parse,
    warn_if_inexact,
)

log = logging.getLogger("slmc.data")

IDS = ("user", "item")


@dataclass
class Part:
    """One file of a log."""

    path: Path
    read: Spool = field(default_factory=Spool)
    """``line``, ``user``, ``item`` (codes of categories) and, in a log with time stamps, ``time``
    (null if it could not be read), ``date`` and ``digits`` (see :class:`slmc.data.times.Times`)."""
    malformed: list[pl.DataFrame] = field(default_factory=list)
    inexact: bool = False
    """Whether a warning of rounded times was logged."""

    def add(
        self, table: Table, names: Mapping[str, str], ids: Mapping[str, Ids], tally: Tally
    ) -> None:
        """Add the next rows of the file.

        Args:
            table: Rows and malformed rows.
            names: Role -> column, for messages.
            ids: Role -> the ids of the log, which are extended.
            tally: The times of the log, which are counted.
        """
        frame = table.frame.with_columns(pl.col("line").cast(pl.Int64))
        codes = [ids[role].add(frame[role].cast(pl.Categorical)).alias(role) for role in IDS]
        self.malformed.append(table.malformed)
        rows = frame.select("line").with_columns(*codes)
        if "time" in names:
            column = frame["time"].alias(names["time"])
            self.inexact = self.inexact or warn_if_inexact(column)
            times = parse(column)
            tally.add(times)
            self.malformed.append(_unreadable(frame["line"], column, times.values))
            rows = rows.with_columns(
                times.values.alias("time"),
                times.dates.alias("date"),
                pl.lit(times.digits, pl.UInt8).alias("digits"),
            )
        self.read.append(rows)


@dataclass
class Sorter:
    """Sets malformed rows apart, and puts the times of all parts on one clock."""

    names: Mapping[str, str]
    """Role -> column, for messages."""
    ids: Mapping[str, Ids]
    alignment: Alignment | None
    """None without time stamps."""
    faults: dict[str, dict[str, str]]
    """Role -> invalid id -> reason."""
    implausible: int = 0
    """Rows with a time before 1980 or from 2100 on."""
    first: tuple[str, int, int] | None = None
    """File, line and time of the first of them."""

    @classmethod
    def of(
        cls, names: Mapping[str, str], ids: Mapping[str, Ids], alignment: Alignment | None
    ) -> "Sorter":
        """Check the ids of the log, and log warnings of doubtful ones."""
        faults = {}
        for role in IDS:
            texts = ids[role].texts()
            faults[role] = invalid(texts, names[role])
            warn_of_two_spellings(texts, names[role])
            warn_of_marks(texts, names[role])
        return cls(names, ids, alignment, faults)

    def good_rows(self, part: Part) -> Iterator[pl.DataFrame]:
        """Yield ``user``, ``item`` and ``time`` of the good rows of a part, chunk by chunk.

        The malformed rows are added to those of the part, which are complete and sorted at the end.
        """
        bad_ids, bad_times = [], [*part.malformed]
        for chunk in part.read.chunks():
            frame = chunk.select("line", *IDS, time=pl.lit(None, pl.Int64))
            if self.alignment is not None:
                times, outside = self._aligned(chunk, self.alignment)
                frame = frame.with_columns(times.alias("time"))
                bad_times.append(outside)
                self._note_implausible(part, frame, self.alignment.clock)
            wrong = self._wrong_ids(frame)
            if wrong is not None:
                bad_ids.append(frame.select("line", *wrong).filter(pl.col("fault").is_not_null()))
                frame = frame.filter(wrong[0].is_null())
            if self.alignment is not None:
                frame = frame.filter(pl.col("time").is_not_null())
            yield frame.select(*IDS, narrowed(frame["time"]))
        others = pl.concat(bad_times)
        if bad_ids:
            lines = pl.concat(bad_ids)
            others = pl.concat([others.join(lines, on="line", how="anti"), lines])
        sorted_ = others.sort("line", maintain_order=True)
        part.malformed = [sorted_.select(pl.lit(str(part.path)).alias("file"), *MALFORMED)]

    def warn_of_span(self) -> None:
        """Warn of times that are implausible for an interaction."""
        if self.first is not None and self.alignment is not None:
            file, line, time = self.first
            log.warning(
                "%d %s a time before %d or from %d on; the first: %s: %s",
                self.implausible, "row has" if self.implausible == 1 else "rows have",
                EARLIEST.year, LATEST.year, place(file, line), self.alignment.clock.text(time),
            )  # fmt: skip

    def _aligned(self, chunk: pl.DataFrame, alignment: Alignment) -> tuple[pl.Series, pl.DataFrame]:
        """Return the times of a chunk on the clock, and the rows with a time in another unit."""
        values, bad, start = [pl.Series([], dtype=pl.Int64)], [pl.DataFrame(schema=MALFORMED)], 0
        for length, digits in chunk["digits"].rle().struct.unnest().rows():
            rows = chunk[start : start + length]
            times, outside = alignment.align(Times(rows["time"], digits, rows["date"]))
            values.append(times)
            if outside.height:
                reason = pl.concat_str(pl.lit(self.names["time"] + " is "), "reason")
                bad.append(
                    rows["line"].gather(outside["at"]).to_frame()
                    .with_columns(outside["reason"])
                    .select("line", fault=pl.lit("unit"), reason=reason)
                )  # fmt: skip
            start += length
        return concatenated(values), pl.concat(bad)

    def _note_implausible(self, part: Part, frame: pl.DataFrame, clock: Clock) -> None:
        if clock.unit is None:
            return
        first, last = literal(clock.at(EARLIEST)), literal(clock.at(LATEST))
        rows = frame.filter(~pl.col("time").is_between(first, last, closed="left"))
        self.implausible += rows.height
        if rows.height and self.first is None:
            self.first = (str(part.path), *rows.select("line", "time").row(0))

    def _wrong_ids(self, frame: pl.DataFrame) -> list[pl.Expr] | None:
        """Return expressions of the fault and the reason of invalid ids; None if there are none."""
        reasons = {
            role: self._reason(role)
            for role in IDS
            if self.faults[role] or frame[role].null_count()
        }
        if not reasons:
            return None
        fault = [pl.when(why.is_not_null()).then(pl.lit(role)) for role, why in reasons.items()]
        return [pl.coalesce(fault).alias("fault"), pl.coalesce(reasons.values()).alias("reason")]

    def _reason(self, role: str) -> pl.Expr:
        """Return why the id of a row is invalid, null if it is valid."""
        value, codes = pl.col(role), self.ids[role].codes_of(self.faults[role])
        known = pl.lit(None, pl.String)
        if codes:
            known = value.replace_strict(
                [*codes], [*codes.values()], default=None, return_dtype=pl.String
            )
        null = pl.lit(f"{self.names[role]} is null")
        return pl.when(value.is_null()).then(null).otherwise(known)


def place(file: str, line: int) -> str:
    """Return file and line of a row (for Parquet: file and row)."""
    return f"{file}, {'row' if file.endswith(('.parquet', '.pq')) else 'line'} {line}"


def _unreadable(lines: pl.Series, column: pl.Series, values: pl.Series) -> pl.DataFrame:
    """Return the malformed rows whose time could not be read."""
    unread = values.is_null()
    text = pl.col("text")
    reason = (
        pl.when(text.is_null() | (text == "null"))
        .then(pl.lit(" is null"))
        .when(text == "")
        .then(pl.lit(" is empty"))
        .when(text.str.contains(LOST_DIGITS))
        .then(pl.format(" is {}: its last digits are lost, as when a spreadsheet saves it", text))
        .when(text.str.contains(NUMBER))
        .then(pl.format(" is {}, a number with too many digits", text))
        .otherwise(pl.format(" is {}, neither a number nor an ISO date", text))
    )
    rows = pl.DataFrame(
        {"line": lines.filter(unread), "text": column.filter(unread).cast(pl.String)}
    ).rechunk()  # polars 2.1: a ternary of texts in several chunks, one of them empty, can panic
    return rows.select(
        "line", fault=pl.lit("time"), reason=pl.concat_str(pl.lit(column.name), reason)
    )
