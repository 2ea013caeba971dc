"""Lines before a table: Excel's ``sep=;``, comments, and the rules of a drawn table."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

EXCEL = re.compile(r'\s*"?sep=(?P<separator>\\t|.)"?[,;\t]*\s*', re.IGNORECASE)
"""The line by which Excel is told the separator."""
COMMENT = re.compile(r"\s*(#|%|//)")
RULE = re.compile(r"\s*[-+=|]*-{3}[-+=|: ]*")
"""A line of dashes, as mysql and psql draw above or below the names of columns."""
FIELDS = re.compile(r'[,;|"\s]+')


@dataclass(frozen=True)
class Preamble:
    """The lines to skip before a table."""

    lines: int = 0
    """How many lines, without blank ones."""
    separator: str | None = None
    """The separator that Excel's line names."""


def preamble(lines: Sequence[str], columns: Iterable[str]) -> Preamble:
    """Return what stands before the table of a file.

    A line such as ``#user_id,item_id`` names the columns. Where all lines look like comments, they
    are rows whose ids begin so.

    Args:
        lines: First lines of the file that are not blank.
        columns: Columns that are sought.
    """
    separator, wanted = None, {*columns}
    for skipped, line in enumerate(lines):
        excel = EXCEL.fullmatch(line) if skipped == 0 else None
        if excel is not None:
            separator = "\t" if excel["separator"] == "\\t" else excel["separator"]
        elif RULE.fullmatch(line) is None:
            names = {*FIELDS.split(uncommented(line).strip())}
            if COMMENT.match(line) is None or names & wanted:
                return Preamble(skipped, separator)
    return Preamble(0 if separator is None else 1, separator)


def uncommented(line: str) -> str:
    """Return a line without the mark of a comment before it."""
    return re.sub(r"^\s*(#|%|//)+\s*", "", line)
