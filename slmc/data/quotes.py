"""Rows of a CSV file that has quotes (RFC 4180), block by block, as fast as polars allows.

Lines whose quotes stand around whole fields, without a separator or quote inside, are as good as
lines without quotes: polars splits them. The others go through Python's ``csv``, one record at a
time, and may go over several lines and blocks.

A lone quote (``24" screen`` at the beginning of a field) would take every line up to the next
one into its field. So the lines of a record are looked at: where they are rows by themselves,
each of them is a malformed row.
"""

import csv
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from slmc.data.config import BLANKS
from slmc.data.files import MALFORMED
from slmc.errors import DataError

log = logging.getLogger("slmc.data")

MANY_LINES = 10
"""Lines of one quoted field above which it is warned of."""
SHOWN = 3
"""Warnings of a kind that one file gives."""
TYPED = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?|\d{4}-\d\d-\d\d.*")
"""A number, or an ISO date."""
TYPED_SHARE = 0.9
"""Share of a column's values that are numbers or dates from which on all should be."""
SAMPLED = 200
"""Rows that the types of the columns are told from."""


def split(lines: pl.DataFrame, separator: str) -> pl.DataFrame:
    """Lines that are not blank as ``line`` and ``fields`` (a list of texts), quotes as they are."""
    text = pl.col("text")
    parts = text.str.extract_all(r"\S+") if separator == BLANKS else text.str.split(separator)
    return lines.filter(text.str.strip_chars() != "").select("line", parts.alias("fields"))


class QuotedRows:
    """Splits the blocks of one file, and remembers a record that a block leaves open."""

    def __init__(self, path: Path, separator: str, width: int, places: Sequence[int]) -> None:
        """Start a file.

        Args:
            path: The file, for messages.
            separator: One character.
            width: Fields of a row.
            places: Fields that are asked for, from 0.
        """
        self.path, self.separator, self.width, self.places = path, separator, width, places
        field = rf'(?:"[^"{re.escape(separator)}]*"|[^"{re.escape(separator)}]*)'
        self._regular = f"^{field}(?:{re.escape(separator)}{field}){{{width - 1}}}$"
        self._typed: list[int] | None = None
        self._open: pl.DataFrame | None = None  # the lines of a record that has not ended
        self._lost_from: int | None = None  # first line of one that is too long to be one
        self._rows: list[tuple[int, list[str]]] = []
        self._faults: list[pl.DataFrame] = []
        self._warnings = 0

    def rows(self, lines: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Split the next lines: ``line`` and ``fields`` of the rows; and the malformed rows."""
        self._rows, self._faults = [], []
        if self._open is not None:
            lines, self._open = pl.concat([self._open, lines]), None
        texts: list[str] = []
        end = 0
        if self._lost_from is not None:
            texts = lines["text"].to_list()
            end = self._skip(lines["line"], texts, 0, self._lost_from)
        taken = [(0, end)]
        quote = pl.col("text").str.contains('"', literal=True)
        plain = lines.select(simple=~quote | pl.col("text").str.contains(self._regular))["simple"]
        if not plain.all():
            texts = texts or lines["text"].to_list()
            if self._typed is None:
                self._learn(lines.filter(plain))
            for start in (~plain).arg_true():
                if start >= end:
                    end = self._record(lines, texts, start)
                    taken.append((start, end))
        simple = _without(lines, taken).with_columns(
            pl.when(quote).then(pl.col("text").str.replace_all('"', "", literal=True))
            .otherwise(pl.col("text")).alias("text")
        )  # fmt: skip
        if self._typed is None:
            self._learn(simple)
        fields = split(simple, self.separator)
        if self._rows:
            records = pl.DataFrame(self._rows, fields.schema, orient="row")
            fields = pl.concat([fields, records]).sort("line")
        return fields, pl.concat([pl.DataFrame(schema=MALFORMED), *self._faults])

    def close(self) -> None:
        """End the file; raises :class:`DataError` if a quote is still open."""
        start = self._open["line"][0] if self._open is not None else self._lost_from
        if start is not None:
            raise DataError(
                f"{self.path}, line {start}: a quoted field does not end.",
                "Close the quote, or set format: tsv if the file is tab-separated.",
            )

    def _record(self, lines: pl.DataFrame, texts: list[str], start: int) -> int:
        """Read the record that begins at index ``start``; returns the index after it."""
        later = (f"{texts[index]}\n" for index in range(start, len(texts)))
        reader = csv.reader(later, delimiter=self.separator, strict=True)
        first = lines["line"][start]
        try:
            row = next(reader)
        except csv.Error as error:
            end = start + reader.line_num
            if "unexpected end of data" in str(error):
                self._open = lines.slice(start)
                return len(texts)
            if end == start + 1:
                self._fault(lines["line"].slice(start, 1), "fields", f"broken CSV: {error}")
                return end
            if "field larger" in str(error):  # no field is so long: find where it closes
                return self._skip(lines["line"], texts, start, first)
            self._lose(lines["line"].slice(start, end - start), first)
            return end
        end = start + reader.line_num
        if end > start + 1 and self._swallows(texts[start:end]):
            self._lose(lines["line"].slice(start, end - start), first)
            return end
        last = lines["line"][end - 1]
        if last - first >= MANY_LINES:
            self._warn(f"a quoted field goes from line {first} to line {last}; is a quote missing?")
        self._rows.append((first, row))
        return end

    def _skip(self, numbers: pl.Series, texts: list[str], start: int, first: int) -> int:
        """Lose the lines from ``start`` to the one that closes the quote of line ``first``."""
        self._lost_from = first
        end = len(texts)
        for index in range(start, len(texts)):
            if numbers[index] > first and '"' in texts[index].replace('""', ""):
                self._lost_from, end = None, index + 1
                break
        self._lose(numbers.slice(start, end - start), first)
        return end

    def _lose(self, numbers: pl.Series, first: int) -> None:
        """Count lines as malformed that the quote of line ``first`` takes in."""
        self._fault(numbers, "quotes", f"lost in a quoted field that opens in line {first}")
        if self._lost_from is None:
            self._warn(
                f"a quote that opens in line {first} and closes in line {numbers[-1]} takes in "
                "whole rows, which are left out; mend it"
            )

    def _fault(self, numbers: pl.Series, fault: str, reason: str) -> None:
        texts = (pl.lit(fault).alias("fault"), pl.lit(reason).alias("reason"))
        self._faults.append(pl.DataFrame({"line": numbers}).with_columns(*texts))

    def _warn(self, message: str) -> None:
        self._warnings += 1
        if self._warnings <= SHOWN:
            log.warning("%s: %s", self.path, message)

    def _learn(self, lines: pl.DataFrame) -> None:
        """Note which fields that are asked for hold numbers or dates, in lines without a catch."""
        rows = [
            fields for fields in split(lines.head(SAMPLED), self.separator)["fields"]
            if len(fields) == self.width
        ]  # fmt: skip
        if rows:
            self._typed = [
                place for place in self.places
                if sum(map(_is_typed, (row[place] for row in rows))) >= TYPED_SHARE * len(rows)
            ]  # fmt: skip

    def _swallows(self, texts: list[str]) -> bool:
        """Whether the lines of one record are rows by themselves: the ends, or most between."""
        rows = [self._is_row(text) for text in texts if text.strip()]
        between = rows[1:-1]
        return (rows[0] and rows[-1]) or 2 * sum(between) >= max(len(between), 1)

    def _is_row(self, text: str) -> bool:
        fields = text.split(self.separator)
        return len(fields) == self.width and all(
            _is_typed(fields[place]) for place in self._typed or ()
        )


def _is_typed(text: str) -> bool:
    return TYPED.fullmatch(text.strip().strip('"')) is not None


def _without(lines: pl.DataFrame, taken: list[tuple[int, int]]) -> pl.DataFrame:
    """The lines outside of ranges of indices."""
    if not any(end for _, end in taken):
        return lines
    left = np.ones(lines.height, dtype=np.bool_)
    for start, end in taken:
        left[start:end] = False
    return lines.filter(pl.Series(left))
