"""Read CSV with quotes (RFC 4180) block by block, mostly with polars, which is fast.

Lines whose quotes enclose whole fields, without a separator or quote inside, are read like lines
without quotes. Other lines that are whole records are split by a regular expression. The rest
(records over several lines, broken records) is read by Python's ``csv``, one record at a time; a
record may span several blocks.

An unmatched quote (``24" screen`` at the beginning of a field) takes all lines up to the next
quote into its field. So the lines of a record are checked: if they look like rows themselves, all
of them are malformed.
"""

import csv
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from slmc.data.files import MALFORMED
from slmc.data.layout import Layout
from slmc.errors import DataError

log = logging.getLogger("slmc.data")

MANY_LINES = 10
"""Lines of one quoted field from which on a warning is logged."""
BARE, WHOLE, OTHER = range(3)
"""Lines without quotes or whose quotes may be dropped, other whole records, and the rest."""
SHOWN = 3
"""Warnings that are logged for one file."""
TYPED = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?|\d{4}-\d\d-\d\d.*")
"""A number, or an ISO date."""
TYPED_SHARE = 0.9
"""Share of numbers or dates from which on a column is expected to hold nothing else."""
SAMPLED = 200
"""Rows from which the types of the columns are detected."""


@dataclass(frozen=True)
class Separated:
    """A block of lines, sorted by the way in which they are read."""

    lines: pl.DataFrame
    """``line`` and ``text``, without quotes, of rows that can be split at every separator."""
    records: pl.DataFrame
    """``line`` and a column for each role, of the other rows."""
    malformed: pl.DataFrame
    """Malformed rows."""


def uneven(rows: pl.DataFrame, width: int, header: bool) -> pl.DataFrame:
    """Return malformed rows for rows (``line``, ``count`` of fields) of another width."""
    first = "header" if header else "first row"
    fields = pl.when(pl.col("count") == 1).then(pl.lit("field")).otherwise(pl.lit("fields"))
    reason = pl.format(f"{{}} {{}}, the {first} has {width}", "count", fields)
    return rows.select("line", pl.lit("fields").alias("fault"), reason.alias("reason"))


class QuotedRows:
    """Separates the rows of one file; a record may continue in the next block."""

    def __init__(self, path: Path, layout: Layout, width: int, places: Mapping[str, int]) -> None:
        """Start a file.

        Args:
            path: The file, for messages.
            layout: Its separator, one character, and its header.
            width: Fields of a row.
            places: Role -> index of its field, from 0.
        """
        self.path, self.layout, self.width, self.places = path, layout, width, places
        separator = re.escape(layout.separator)
        bare = rf'(?:"[^"{separator}]*"|[^"{separator}]*)'
        self._bare = f"^{bare}(?:{separator}{bare}){{{width - 1}}}$"
        self._field = rf'{separator}(?:"(?:[^"]|"")*"|[^"{separator}]*)'
        self._typed: list[int] | None = None
        self._open: pl.DataFrame | None = None  # lines of a record that continues in the next block
        self._open_from: int | None = None  # index of its first line in this block
        self._lost_from: int | None = None  # first line of a field that is too long for csv
        self._faults: list[pl.DataFrame] = []
        self._warnings = 0

    def separate(self, lines: pl.DataFrame) -> Separated:
        """Separate the rows of the next lines."""
        self._faults = [pl.DataFrame(schema=MALFORMED)]
        if self._open is not None:
            lines, self._open = pl.concat([self._open, lines]), None
        text = pl.col("text")
        quote = text.str.contains('"', literal=True)
        whole = (self.layout.separator + text).str.contains(f"^(?:{self._field}){{{self.width}}}$")
        lines = lines.with_columns(
            kind=pl.when(~quote | text.str.contains(self._bare)).then(BARE)
            .when(whole).then(WHOLE).otherwise(OTHER)
        )  # fmt: skip
        rows: list[tuple[int, list[str]]] = []
        if self._lost_from is not None or (lines["kind"] == OTHER).any():
            lines, rows = self._read_others(lines)
        bare = lines.filter(pl.col("kind") == BARE).select("line", "text")
        if self._typed is None:
            self._detect_types(bare)
        unquoted = pl.when(quote).then(text.str.replace_all('"', "", literal=True)).otherwise(text)
        records = [self._fields_of_whole(lines.filter(pl.col("kind") == WHOLE)), self._even(rows)]
        return Separated(
            bare.with_columns(unquoted.alias("text")), pl.concat(records), pl.concat(self._faults)
        )

    def _read_others(self, lines: pl.DataFrame) -> tuple[pl.DataFrame, list[tuple[int, list[str]]]]:
        """Read the records that polars cannot read; return the other lines, and these rows."""
        if self._typed is None:
            self._detect_types(lines.filter(pl.col("kind") == BARE))
        numbers, texts = lines["line"].to_list(), lines["text"].to_list()
        left = np.ones(lines.height, dtype=np.bool_)
        rows: list[tuple[int, list[str]]] = []
        end = 0
        if self._lost_from is not None:
            end = self._skip(numbers, texts, 0, self._lost_from)
            left[:end] = False
        for start in (lines["kind"] == OTHER).arg_true().to_list():
            if start >= end:
                row, end = self._record(numbers, texts, start)
                left[start:end] = False
                if row is not None:
                    rows.append((numbers[start], row))
        if self._open_from is not None:
            self._open, self._open_from = lines.slice(self._open_from).drop("kind"), None
        return lines.filter(pl.Series(left)), rows

    def _fields_of_whole(self, lines: pl.DataFrame) -> pl.DataFrame:
        """Return the requested fields of lines that are whole records."""
        fields = (self.layout.separator + pl.col("text")).str.extract_all(self._field)
        cut = lines.select("line", fields.alias("fields")).select(
            "line",
            *(
                pl.col("fields").list.get(place).str.strip_prefix(self.layout.separator).alias(role)
                for role, place in self.places.items()
            ),
        )
        field = pl.col(*self.places)
        content = field.str.strip_prefix('"').str.strip_suffix('"')
        content = content.str.replace_all('""', '"', literal=True)
        return cut.with_columns(pl.when(field.str.starts_with('"')).then(content).otherwise(field))

    def _even(self, rows: list[tuple[int, list[str]]]) -> pl.DataFrame:
        """Return the requested fields of rows with the right number of fields."""
        odd = [(number, len(row)) for number, row in rows if len(row) != self.width]
        if odd:
            counts = pl.DataFrame(odd, {"line": pl.Int64, "count": pl.Int64}, orient="row")
            self._faults.append(uneven(counts, self.width, self.layout.header))
            rows = [(number, row) for number, row in rows if len(row) == self.width]
        columns = {
            role: pl.Series([row[place] for _, row in rows], dtype=pl.String)
            for role, place in self.places.items()
        }
        return pl.DataFrame({"line": pl.Series([n for n, _ in rows], dtype=pl.Int64)} | columns)

    def close(self) -> None:
        """End the file; raises :class:`DataError` if a quote is still open."""
        start = self._open["line"][0] if self._open is not None else self._lost_from
        if start is not None:
            raise DataError(
                f"{self.path}, line {start}: a quoted field is never closed.",
                "Close the quote, or set format: tsv if the file is tab-separated.",
            )

    def _record(
        self, numbers: list[int], texts: list[str], start: int
    ) -> tuple[list[str] | None, int]:
        """Return the record at index ``start`` (None if it is malformed), and its end."""
        options: dict[str, Any] = {"delimiter": self.layout.separator, "strict": True}
        try:
            return next(csv.reader((texts[start],), **options)), start + 1
        except csv.Error:
            pass  # it may continue in the next line
        reader = csv.reader((f"{texts[i]}\n" for i in range(start, len(texts))), **options)
        first = numbers[start]
        try:
            row = next(reader)
        except csv.Error as error:
            end = start + reader.line_num
            if "unexpected end of data" in str(error):
                self._open_from = start
                return None, len(texts)
            if end == start + 1:
                self._fault([first], "fields", f"broken CSV: {error}")
            elif "field larger" in str(error):  # no field is so long: skip to the closing quote
                end = self._skip(numbers, texts, start, first)
            else:
                self._mark_lost(numbers[start:end], first)
            return None, end
        end = start + reader.line_num
        if self._contains_rows(texts[start:end]):
            self._mark_lost(numbers[start:end], first)
            return None, end
        last = numbers[end - 1]
        if last - first >= MANY_LINES:
            self._warn(f"a quoted field spans lines {first} to {last}; is a quote missing?")
        return row, end

    def _skip(self, numbers: list[int], texts: list[str], start: int, first: int) -> int:
        """Skip the lines from ``start`` to the one that closes the quote of line ``first``."""
        self._lost_from, end = first, len(texts)
        for index in range(start, end):
            if numbers[index] > first and '"' in texts[index].replace('""', ""):
                self._lost_from, end = None, index + 1
                break
        self._mark_lost(numbers[start:end], first)
        return end

    def _mark_lost(self, numbers: list[int], first: int) -> None:
        """Count the lines inside the quotes that open in line ``first`` as malformed."""
        self._fault(numbers, "quotes", f"inside a quoted field that opens in line {first}")
        if self._lost_from is None:
            self._warn(
                f"the quoted field from line {first} to line {numbers[-1]} contains whole rows, "
                "which are skipped; fix its quotes"
            )

    def _fault(self, numbers: list[int], fault: str, reason: str) -> None:
        texts = (pl.lit(fault).alias("fault"), pl.lit(reason).alias("reason"))
        lines = pl.DataFrame({"line": pl.Series(numbers, dtype=pl.Int64)})
        self._faults.append(lines.with_columns(*texts))

    def _warn(self, message: str) -> None:
        self._warnings += 1
        if self._warnings <= SHOWN:
            log.warning("%s: %s", self.path, message)

    def _detect_types(self, lines: pl.DataFrame) -> None:
        """Detect which requested fields hold numbers or dates, from lines without quotes."""
        rows = [text.split(self.layout.separator) for text in lines["text"].head(SAMPLED)]
        rows = [row for row in rows if len(row) == self.width]
        if rows:
            self._typed = [
                place for place in self.places.values()
                if sum(_is_typed(row[place]) for row in rows) >= TYPED_SHARE * len(rows)
            ]  # fmt: skip

    def _contains_rows(self, texts: list[str]) -> bool:
        """Return whether first and last line of a record, or most between, look like rows."""
        rows = [self._is_row(text) for text in texts if text.strip()]
        between = rows[1:-1]
        return (rows[0] and rows[-1]) or 2 * sum(between) >= max(len(between), 1)

    def _is_row(self, text: str) -> bool:
        fields = text.split(self.layout.separator)
        return len(fields) == self.width and all(
            _is_typed(fields[place]) for place in self._typed or ()
        )


def _is_typed(text: str) -> bool:
    return TYPED.fullmatch(text.strip().strip('"')) is not None
