"""Rows of a CSV file that has quotes (RFC 4180), block by block, as fast as polars allows.

Lines whose quotes stand around whole fields, without a separator or quote inside, are as good as
lines without quotes. Other lines that are whole records are cut by a regular expression. What is
left (a record over several lines, a broken one) goes through Python's ``csv``, one at a time, and
may go over several blocks.

A lone quote (``24" screen`` at the beginning of a field) would take every line up to the next
one into its field. So the lines of a record are looked at: where they are rows by themselves,
each of them is a malformed row.
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
"""Lines of one quoted field above which it is warned of."""
BARE, WHOLE, OTHER = range(3)
"""Lines without quotes or with ones that may be dropped, other whole records, and the rest."""
SHOWN = 3
"""Warnings of a kind that one file gives."""
TYPED = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?|\d{4}-\d\d-\d\d.*")
"""A number, or an ISO date."""
TYPED_SHARE = 0.9
"""Share of a column's values that are numbers or dates from which on all should be."""
SAMPLED = 200
"""Rows that the types of the columns are told from."""


@dataclass(frozen=True)
class Separated:
    """A block of lines, those with a catch set apart."""

    lines: pl.DataFrame
    """``line`` and ``text`` of rows that any separator cuts, their quotes taken away."""
    records: pl.DataFrame
    """``line``, and a column for each role, of the other rows."""
    malformed: pl.DataFrame
    """Rows that are none."""


def uneven(rows: pl.DataFrame, width: int, header: bool) -> pl.DataFrame:
    """Rows (``line``, and their ``count`` of fields) as malformed rows."""
    first = "header" if header else "first row"
    fields = pl.when(pl.col("count") == 1).then(pl.lit("field")).otherwise(pl.lit("fields"))
    reason = pl.format(f"{{}} {{}}, the {first} has {width}", "count", fields)
    return rows.select("line", pl.lit("fields").alias("fault"), reason.alias("reason"))


class QuotedRows:
    """Sets the rows of one file apart, and remembers a record that a block leaves open."""

    def __init__(self, path: Path, layout: Layout, width: int, places: Mapping[str, int]) -> None:
        """Start a file.

        Args:
            path: The file, for messages.
            layout: Its separator, one character, and its header.
            width: Fields of a row.
            places: Role -> field that is asked for, from 0.
        """
        self.path, self.layout, self.width, self.places = path, layout, width, places
        separator = re.escape(layout.separator)
        bare = rf'(?:"[^"{separator}]*"|[^"{separator}]*)'
        self._bare = f"^{bare}(?:{separator}{bare}){{{width - 1}}}$"
        self._field = rf'{separator}(?:"(?:[^"]|"")*"|[^"{separator}]*)'
        self._typed: list[int] | None = None
        self._open: pl.DataFrame | None = None  # the lines of a record that has not ended
        self._open_from: int | None = None  # its index in the block that is read
        self._lost_from: int | None = None  # first line of one that is too long to be one
        self._faults: list[pl.DataFrame] = []
        self._warnings = 0

    def separate(self, lines: pl.DataFrame) -> Separated:
        """Set the rows of the next lines apart."""
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
            self._learn(bare)
        unquoted = pl.when(quote).then(text.str.replace_all('"', "", literal=True)).otherwise(text)
        records = [self._extracted(lines.filter(pl.col("kind") == WHOLE)), self._even(rows)]
        return Separated(
            bare.with_columns(unquoted.alias("text")), pl.concat(records), pl.concat(self._faults)
        )

    def _read_others(self, lines: pl.DataFrame) -> tuple[pl.DataFrame, list[tuple[int, list[str]]]]:
        """Read the records that polars cannot; the lines that are left, and their rows."""
        if self._typed is None:
            self._learn(lines.filter(pl.col("kind") == BARE))
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

    def _extracted(self, lines: pl.DataFrame) -> pl.DataFrame:
        """The fields that are asked for, of lines that are whole records."""
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
        """The fields that are asked for, of the rows that have as many as they should."""
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
                f"{self.path}, line {start}: a quoted field does not end.",
                "Close the quote, or set format: tsv if the file is tab-separated.",
            )

    def _record(
        self, numbers: list[int], texts: list[str], start: int
    ) -> tuple[list[str] | None, int]:
        """The record that begins at index ``start``, if it is one, and the index after it."""
        options: dict[str, Any] = {"delimiter": self.layout.separator, "strict": True}
        try:
            return next(csv.reader((texts[start],), **options)), start + 1
        except csv.Error:
            pass  # it may go on in the next line
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
            elif "field larger" in str(error):  # no field is so long: find where it closes
                end = self._skip(numbers, texts, start, first)
            else:
                self._lose(numbers[start:end], first)
            return None, end
        end = start + reader.line_num
        if self._swallows(texts[start:end]):
            self._lose(numbers[start:end], first)
            return None, end
        last = numbers[end - 1]
        if last - first >= MANY_LINES:
            self._warn(f"a quoted field goes from line {first} to line {last}; is a quote missing?")
        return row, end

    def _skip(self, numbers: list[int], texts: list[str], start: int, first: int) -> int:
        """Lose the lines from ``start`` to the one that closes the quote of line ``first``."""
        self._lost_from, end = first, len(texts)
        for index in range(start, end):
            if numbers[index] > first and '"' in texts[index].replace('""', ""):
                self._lost_from, end = None, index + 1
                break
        self._lose(numbers[start:end], first)
        return end

    def _lose(self, numbers: list[int], first: int) -> None:
        """Count lines as malformed that the quote of line ``first`` takes in."""
        self._fault(numbers, "quotes", f"lost in a quoted field that opens in line {first}")
        if self._lost_from is None:
            self._warn(
                f"a quote that opens in line {first} and closes in line {numbers[-1]} takes in "
                "whole rows, which are left out; mend it"
            )

    def _fault(self, numbers: list[int], fault: str, reason: str) -> None:
        texts = (pl.lit(fault).alias("fault"), pl.lit(reason).alias("reason"))
        lines = pl.DataFrame({"line": pl.Series(numbers, dtype=pl.Int64)})
        self._faults.append(lines.with_columns(*texts))

    def _warn(self, message: str) -> None:
        self._warnings += 1
        if self._warnings <= SHOWN:
            log.warning("%s: %s", self.path, message)

    def _learn(self, lines: pl.DataFrame) -> None:
        """Note which fields that are asked for hold numbers or dates, in lines without a catch."""
        rows = [text.split(self.layout.separator) for text in lines["text"].head(SAMPLED)]
        rows = [row for row in rows if len(row) == self.width]
        if rows:
            self._typed = [
                place for place in self.places.values()
                if sum(_is_typed(row[place]) for row in rows) >= TYPED_SHARE * len(rows)
            ]  # fmt: skip

    def _swallows(self, texts: list[str]) -> bool:
        """Whether the lines of one record are rows by themselves: the ends, or most between."""
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
