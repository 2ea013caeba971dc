"""Detect the layout of a file of a log from its first lines and its name.

A name can be wrong and a separator unknown, so the lines decide. If they do not match the name or
the recipe, a warning is logged. If reading would lose or mix up rows (a table without a header, a
JSON array), the file is refused with the setting that fixes it.
"""

import csv
import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from slmc.data.columns import KEYS
from slmc.data.config import BLANKS, Format
from slmc.data.documents import refuse_documents, refuse_other_texts
from slmc.data.files import has_parquet_magic, head_lines
from slmc.data.layout import DEFAULT_SEPARATORS, SEPARATORS, Layout
from slmc.data.partitions import inside
from slmc.data.preamble import preamble, uncommented
from slmc.errors import DataError

log = logging.getLogger("slmc.data")

SUFFIXES: dict[str, Format] = {
    ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet",
    ".pq": "parquet", ".inter": "recbole", ".item": "recbole", ".txt": "sequences",
}  # fmt: skip
MOST = 0.9
"""Share of the lines that have to agree."""
MANY_LINES = 10
"""From this number of lines on, users on several lines make the sequence format doubtful."""
SHOWN_CHARS = 60
"""Characters of a line that a message shows."""
QUOTED = re.compile(r'"(?:[^"]|"")*"')
NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?")
DATE = re.compile(r"\d{4}-\d\d-\d\d([T ].*)?")
EARLIEST_S, LATEST_S = 3e8, 4.2e9
"""1979 and 2103 in seconds since 1970: numbers between them look like time stamps."""
TYPED_NAME = re.compile(r"[^\s:]+:(token|token_seq|float|float_seq)")
"""A column in the header of RecBole's atomic files."""


Header = bool | Literal["auto"]


def detect_layouts(
    paths: Sequence[Path],
    columns: Mapping[str, str],
    format: Format = "auto",
    separator: str | None = None,
    header: Header = "auto",
) -> list[Layout]:
    """Detect and log the layouts of the files of a source; see :func:`detect_layout`.

    Raises:
        DataError: As :func:`detect_layout`, or the files have different formats.
    """
    warnings: dict[str, list[Path]] = {}
    kinds: dict[str, list[Path]] = {}
    layouts: list[Layout] = []
    for path in paths:
        sought = inside(path, columns)
        layout, warning = detect_layout(path, sought, format, separator, header)
        if len(sought) < len(columns) and not layouts:
            named = ", ".join(column for role, column in columns.items() if role not in sought)
            log.info("%s: read from the names of the folders", named)
        layouts.append(layout)
        kinds.setdefault(str(layout), []).append(path)
        if layout.skip:
            what = "1 line" if layout.skip == 1 else f"{layout.skip} lines"
            log.info("%s: %s before the table skipped", path, what)
        if warning is not None:
            warnings.setdefault(warning, []).append(path)
        if layout.format != layouts[0].format:
            raise DataError(
                f"{paths[0]} is {layouts[0].format}, but {path} is {layout.format}.",
                "Name files of one format.",
            )
    for kind, files in kinds.items():
        log.info("%s: read as %s", _listed(files), kind)
    for warning, files in warnings.items():
        log.warning("%s: %s", _listed(files), warning)
    return layouts


def detect_layout(
    path: Path,
    columns: Mapping[str, str],
    format: Format = "auto",
    separator: str | None = None,
    header: Header = "auto",
) -> tuple[Layout, str | None]:
    """Return the layout of a file, and a warning if settings and lines do not match.

    Args:
        path: A local file.
        columns: Role -> column: they are searched in the first line.
        format: Its format, if it is set.
        separator: Its separator, if it is set.
        header: Whether its first line names the columns, if it is set.

    Raises:
        DataError: The format cannot be detected, there seems to be no header, or it is JSON over
            several lines.
    """
    named = _format_of_name(path) if format == "auto" else format
    if has_parquet_magic(path) and format in ("auto", "parquet"):
        return Layout("parquet"), _mismatch(Layout("parquet"), named, format)
    if format == "parquet":
        return Layout("parquet"), None  # reading it raises the error
    try:
        lines = head_lines(path)
    except DataError:
        if named == "parquet":
            return Layout("parquet"), None
        raise
    before = preamble(lines, () if header is False else columns.values())
    head = Head(lines[before.lines :], columns)
    layout, warning = _layout(path, head, named, format, separator or before.separator, header)
    return replace(layout, skip=before.lines), warning


def _layout(
    path: Path,
    head: "Head",
    named: Format | None,
    format: Format,
    separator: str | None,
    header: Header,
) -> tuple[Layout, str | None]:
    """Return the layout of a text file and a warning; see :func:`detect_layout`."""
    refuse_other_texts(path, head.lines)
    if format in ("auto", "jsonl"):
        refuse_documents(path, head.lines)
    if (
        (separator is not None or header != "auto")
        and format == "auto"
        and named not in DEFAULT_SEPARATORS
    ):
        named = "csv"  # only tables have these settings
    looks = head.layout(named)
    if looks is None:
        raise DataError(
            f"Neither the name nor the first lines of {path} show its format.",
            "Set format to csv, tsv, jsonl, parquet, recbole or sequences.",
        )
    layout, warning = looks, _mismatch(looks, named, format)
    if format not in ("auto", looks.format):
        layout = Layout(format, DEFAULT_SEPARATORS.get(format, ","))
    if layout.format == "sequences" and warning is None and head.users_recur():
        warning = (
            "all lines have the same number of entries, and users have several lines; if it is a "
            "table, set separator: space"
        )
    if layout.format not in ("csv", "tsv"):
        return layout, warning
    layout = Layout(layout.format, separator or layout.separator)
    if header == "auto":
        _refuse_headless(path, head, layout)
    return Layout(layout.format, layout.separator, header is not False), warning


def _listed(paths: Sequence[Path]) -> str:
    more = len(paths) - 1
    return f"{paths[0]}{f' and {more} more files' if more > 1 else ' and 1 more file' * more}"


@dataclass(frozen=True)
class Head:
    """The first lines of a file that are not blank, and the columns to find in them."""

    lines: Sequence[str]
    columns: Mapping[str, str]
    """Role -> column."""

    def layout(self, named: Format | None) -> Layout | None:
        """Return the layout of the lines, or that of the name if the lines do not contradict."""
        opens = named == "jsonl" and self.lines[0].lstrip().startswith("{")
        if opens or any(map(_is_object, self.lines[:3])):
            return Layout("jsonl")
        separator = self.separator(named)
        if separator is None:
            separator = BLANKS if self.has_times() else None
        if separator is not None:
            return Layout(self._format(separator, named), separator)
        if named is not None and named != "parquet":
            return Layout(named, DEFAULT_SEPARATORS.get(named, ","))
        words = [line.split() for line in self.lines]
        numbers = all(NUMBER.fullmatch(word) for line in words for word in line)
        if numbers and all(len(line) > 1 for line in words):
            return Layout("sequences")
        return Layout("parquet") if named else None

    def separator(self, named: Format | None) -> str | None:
        """Return the separator that yields the columns, or equally many fields in all lines.

        The separator that the name suggests is tried first. Blanks and tabs, which sequences
        have too, must split the first line into the columns.
        """
        default = DEFAULT_SEPARATORS.get(named or "auto")
        order = sorted(SEPARATORS, key=lambda separator: separator != default)
        for separator in order:
            names = _names(Layout("csv", separator), self.lines[0])
            if len(names) > 1 and self.columns and {*self.columns.values()} <= {*names}:
                return separator
        even: dict[str, tuple[int, int]] = {}
        for separator in order:
            if separator != BLANKS and not (separator == "\t" and named == "sequences"):
                counts = Counter(QUOTED.sub("", line).count(separator) for line in self.lines)
                count, lines = counts.most_common(1)[0]
                if count and lines >= MOST * len(self.lines):
                    even[separator] = (lines, count)
        if default in even:
            return default
        return max(even, key=lambda separator: even[separator], default=None)

    def has_times(self) -> bool:
        """Return whether blanks split the lines into a table: equal widths, some times."""
        rows = [line.split() for line in self.lines]
        width, even = Counter(map(len, rows)).most_common(1)[0]
        if width < 3 or len(rows) < 2 or even < MOST * len(rows):
            return False
        later = rows[1:] if len(rows) > 2 else rows  # the first may name the columns
        return 0 < len(_times([row for row in later if len(row) == width])) < width - 1

    def users_recur(self) -> bool:
        """Return whether lines have equal widths of 3 or more, and users have several lines."""
        rows = [line.split() for line in self.lines]
        users = {row[0] for row in rows}
        many = len(rows) >= MANY_LINES and len(users) < MOST * len(rows)
        return many and len({len(row) for row in rows}) == 1 and len(rows[0]) > 2

    def rows(self, layout: Layout) -> list[list[str]]:
        """Split the lines into fields, without lines with broken quotes."""
        rows = []
        for line in self.lines:
            try:
                rows.append([field.strip() for field in layout.fields(line)])
            except csv.Error:
                continue
        return rows

    def _format(self, separator: str, named: Format | None) -> Format:
        """Return the format of a table with this separator."""
        names = self.lines[0].split(separator)
        if separator == "\t" and all(map(TYPED_NAME.fullmatch, names)):
            return "recbole"
        if separator == "\t" and all(map(QUOTED.fullmatch, names)):
            return "csv"  # TSV has no quotes, but R and pandas may write them
        if named in DEFAULT_SEPARATORS and (
            named == "csv" or DEFAULT_SEPARATORS[named] == separator
        ):
            return named
        return "tsv" if separator == "\t" else "csv"


def _format_of_name(path: Path) -> Format | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes[-1:] == [".gz"]
    if packed:
        suffixes.pop()
    format = SUFFIXES.get(suffixes[-1]) if suffixes else None
    return None if packed and format == "parquet" else format


def _mismatch(looks: Layout, named: Format | None, format: Format) -> str | None:
    """Return a warning if the lines do not match the name or the setting."""
    if named is None or looks.format == named:
        return None
    if format != "auto":
        return f"format is set to {Layout(named).kind}, but the lines look like {looks}"
    return (
        f"the name suggests {Layout(named).kind}, but the lines look like {looks}; "
        "set format if this is wrong"
    )


def _refuse_headless(path: Path, head: Head, layout: Layout) -> None:
    """Raise :class:`DataError` if the first line looks like data instead of names."""
    try:
        names = [name.strip() for name in layout.fields(head.lines[0])]
    except csv.Error:
        return  # reading it raises the error
    rows = [row for row in head.rows(layout)[1:] if len(row) == len(names)]
    if not _is_data(names, rows, {*head.columns.values()}):
        return
    times = _times([names, *rows])
    in_titles = "title" in head.columns
    places: dict[str, int | str] = {"user": 1, "item": 1 if in_titles else 2, "title": 2}
    places["time"] = times[-1] + 1 if times else "N or null"
    keys = KEYS | ({"item": "titles.item"} if in_titles else {})
    setting = "titles.header" if in_titles else "header"
    if "user" not in head.columns and not in_titles:
        setting, keys, places = "items.header", {"item": "items.item"}, {"item": 1}
    numbers = ", ".join(
        f"{keys.get(role, 'items.columns')}: {places.get(role, 'N')}" for role in head.columns
    )
    other = ", or format: sequences if it is a user and its items"
    line = head.lines[0]
    shown = line[:SHOWN_CHARS] + "…" * (len(line) > SHOWN_CHARS)
    raise DataError(
        f"{path} seems to have no header: its first line is {shown!r}.",
        f"Set {setting}: false and number the columns ({numbers}); or {setting}: true if it "
        f"names the columns{other if _format_of_name(path) == 'sequences' else ''}.",
    )


def _is_data(names: list[str], rows: list[list[str]], wanted: set[str]) -> bool:
    """Return whether a first line has numbers, dates or ids in the same columns as the others."""
    if [*map(str, range(len(names)))] == names or [*map(str, range(1, len(names) + 1))] == names:
        return not wanted <= {*names}  # names of unnamed columns in pandas
    if wanted <= {*names} and not any(map(_is_value, wanted)):
        return False
    for place, name in enumerate(names):
        column = [row[place] for row in rows]
        values = sum(map(_is_value, column))
        if _is_value(name) and values >= MOST * len(column):
            return True
    return any(name and name in {row[place] for row in rows} for place, name in enumerate(names))


def _times(rows: list[list[str]]) -> list[int]:
    """Return the indices of columns, without the first, that hold time stamps."""
    return [
        place for place in range(1, len(rows[0]))
        if sum(_is_time(row[place]) for row in rows) >= MOST * len(rows)
    ]  # fmt: skip


def _is_time(text: str) -> bool:
    if not NUMBER.fullmatch(text):
        return DATE.fullmatch(text) is not None
    return any(EARLIEST_S < float(text) * unit < LATEST_S for unit in (1, 1e-3, 1e-6, 1e-9))


def _is_value(text: str) -> bool:
    return (NUMBER.fullmatch(text) or DATE.fullmatch(text)) is not None


def _is_object(line: str) -> bool:
    try:
        return line.lstrip().startswith("{") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _names(layout: Layout, line: str) -> list[str]:
    """Return the names of the columns, with and without RecBole's types; [] if broken."""
    try:
        names = [name.strip() for name in layout.fields(line)]
    except csv.Error:
        return []
    untyped = [name.partition(":")[0] for name in names if TYPED_NAME.fullmatch(name)]
    bare = uncommented(names[0])
    return names + untyped + [bare] * (bare != names[0])
