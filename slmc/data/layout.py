"""How a file of a log is laid out: its format, its separator, whether it has a header."""

import csv
from dataclasses import dataclass

from slmc.data.config import BLANKS, Format

SEPARATORS = {
    ",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars", "::": "'::'",
    BLANKS: "blanks",
}  # fmt: skip
"""What is looked for where no separator is said, and how it is called."""
USUAL: dict[Format, str] = {"csv": ",", "tsv": "\t", "recbole": "\t"}
"""Formats with a separator, and the one that is meant where none is said."""
KINDS: dict[Format, str] = {
    "csv": "CSV", "tsv": "TSV", "jsonl": "JSON lines", "parquet": "Parquet",
    "recbole": "RecBole's atomic file", "sequences": "sequences (a user and its items a line)",
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """What one file is. Separator and header mean nothing where a format has neither."""

    format: Format
    separator: str = ","
    header: bool = True

    @property
    def delimited(self) -> bool:
        """Whether rows are cut by a separator."""
        return self.format in USUAL

    @property
    def quoted(self) -> bool:
        """Whether quotes may stand around a field."""
        return self.format == "csv" and len(self.separator) == 1 and self.separator != BLANKS

    @property
    def kind(self) -> str:
        """The format as a text calls it."""
        return KINDS[self.format]

    def fields(self, line: str) -> list[str]:
        """The fields of one line; raises ``csv.Error`` where its quotes are broken."""
        if self.separator == BLANKS:
            return line.split()
        if self.quoted and '"' in line:
            return next(csv.reader([line], delimiter=self.separator, strict=True))
        return line.split(self.separator)

    def __str__(self) -> str:
        """As in ``CSV, separated by semicolons, without a header``."""
        if self.format not in ("csv", "tsv"):
            return self.kind
        separator = SEPARATORS.get(self.separator, repr(self.separator))
        return f"{self.kind}, separated by {separator}" + ", without a header" * (not self.header)
