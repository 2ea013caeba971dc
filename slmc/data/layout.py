"""The layout of a file of a log: its format, its separator, and whether it has a header."""

import csv
from dataclasses import dataclass

from slmc.data.config import BLANKS, Format

SEPARATORS = {
    ",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars", "::": "'::'",
    BLANKS: "blanks",
}  # fmt: skip
"""Separators that are detected, and their names in messages."""
DEFAULT_SEPARATORS: dict[Format, str] = {"csv": ",", "tsv": "\t", "recbole": "\t"}
"""Formats with a separator, and their default."""
KINDS: dict[Format, str] = {
    "csv": "CSV", "tsv": "TSV", "jsonl": "JSON lines", "parquet": "Parquet",
    "recbole": "RecBole's atomic file", "sequences": "sequences (user and items on each line)",
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """Layout of one file. Formats without separator or header ignore these fields."""

    format: Format
    separator: str = ","
    header: bool = True
    skip: int = 0
    """Lines before the table, blank ones not counted (see :mod:`slmc.data.preamble`)."""

    @property
    def delimited(self) -> bool:
        """Whether rows are split by a separator."""
        return self.format in DEFAULT_SEPARATORS

    @property
    def quoted(self) -> bool:
        """Whether fields may be quoted."""
        return self.format == "csv" and len(self.separator) == 1 and self.separator != BLANKS

    @property
    def kind(self) -> str:
        """Name of the format in messages."""
        return KINDS[self.format]

    def fields(self, line: str) -> list[str]:
        """Split a line into fields; raises ``csv.Error`` if its quotes are broken."""
        if self.separator == BLANKS:
            return line.split()
        if self.quoted and '"' in line:
            return next(csv.reader([line], delimiter=self.separator, strict=True))
        return line.split(self.separator)

    def __str__(self) -> str:
        """Return for example ``CSV, separated by semicolons, without a header``."""
        if self.format not in ("csv", "tsv"):
            return self.kind
        separator = SEPARATORS.get(self.separator, repr(self.separator))
        return f"{self.kind}, separated by {separator}" + ", without a header" * (not self.header)
