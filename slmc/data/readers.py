"""Read an interaction log as one table of users, items and times, and its malformed rows."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from slmc.config import parse_budget
from slmc.data.clock import Alignment, Clock, Tally
from slmc.data.config import Columns, Format, Titles
from slmc.data.doubts import warn_of_one_for_many
from slmc.data.formats import check_columns, read_blocks, read_table
from slmc.data.ids import Ids, invalid
from slmc.data.parts import IDS, Part, Sorter, place
from slmc.data.repeats import Copy, find_copies
from slmc.data.sniff import Header, detect_layouts
from slmc.data.spool import Spool
from slmc.errors import DataError

log = logging.getLogger("slmc.data")

SHOWN = 5
"""Malformed rows that are logged one by one."""
REMEDIES = {
    "unit": "Write all times in one unit; for sequence numbers set columns.time_unit: none.",
    "encoding": "Save the file as UTF-8; if it is Latin-1: `iconv -f latin1 -t utf-8 FILE`.",
    "time": "Write times as numbers or as dates such as 2023-11-14 22:30:00, or set columns.time "
    "to another column (null if the rows are already in time order).",
    "fields": "Quote fields that contain the separator, or set separator to the real one.",
}
"""Kind of fault -> what to do if most rows have it."""


@dataclass(frozen=True)
class Log:
    """An interaction log, and its malformed rows."""

    good: Spool
    """``user``, ``item`` (codes of categories) and ``time`` (integers of the clock; null without
    time stamps) of the good rows, in the order of the log."""
    ids: dict[str, Ids]
    """``user``, ``item`` -> the different ids, with the number of their good rows."""
    malformed: pl.DataFrame
    """``file``, ``line``, ``fault`` (kind of fault), ``reason``, in the order of the log."""
    format: Format
    """Format of the files."""
    clock: Clock | None = None
    """Unit and scale of the times; None without time stamps."""
    form: str | None = None
    """The form of dates that all times have although they are numbers (``slmc.data.calendar``)."""
    copies: tuple[Copy, ...] = ()
    """Parts of the log with the same rows as an earlier part."""

    @property
    def frame(self) -> pl.DataFrame:
        """All good rows in memory, with ids as categories."""
        ids = pl.col("user", "item").cat.to(pl.Categorical())
        return self.good.frame().with_columns(ids)

    @property
    def rows(self) -> int:
        """Rows read, malformed ones included."""
        return self.good.height + self.malformed.height

    @property
    def timed(self) -> bool:
        """Whether the rows have time stamps; otherwise they are in time order."""
        return self.clock is not None


def read(
    paths: Sequence[Path],
    format: Format = "auto",
    columns: Columns | None = None,
    separator: str | None = None,
    header: Header = "auto",
) -> Log:
    """Read the files of a log, in the order of ``paths``.

    Args:
        paths: Local files, all of the same format.
        format: Their format; ``auto`` detects it from the first lines and the names.
        columns: Columns of user, item and time; the sequence format has none.
        separator: Separator of the columns; None detects it from the first lines.
        header: Whether first lines name the columns.

    Raises:
        DataError: A file as a whole cannot be read, or the log has no rows.
    """
    columns = columns or Columns()
    wanted = columns.roles
    layouts = detect_layouts(paths, wanted, format, separator, header)
    format = layouts[0].format
    if format == "recbole":
        _refuse_one_column(columns)
    names = wanted if format != "sequences" else {"user": "the user", "item": "an item"}
    log_ids, tally = {role: Ids() for role in IDS}, Tally()
    parts = []
    for path, layout in zip(paths, layouts, strict=True):
        parts.append(part := Part(path))
        for table in read_blocks(path, layout, wanted):
            part.add(table, names, log_ids, tally)
    alignment = None
    if "time" in names:
        if columns.time_unit == "auto":
            tally.forms.check(names["time"])
        alignment = Alignment.of(tally, columns.time_unit)
        _log_clock(alignment, tally, names["time"])
    good, heights = _sorted_apart(parts, Sorter.of(names, log_ids, alignment))
    warn_of_one_for_many(log_ids, names)
    result = Log(
        good=good,
        ids=log_ids,
        malformed=pl.concat([table for part in parts for table in part.malformed]),
        format=format,
        clock=alignment.clock if alignment is not None else None,
        form=tally.forms.known,
        copies=find_copies([str(part.path) for part in parts], good, heights),
    )
    if result.rows == 0:
        raise DataError(
            f"{paths[0]} has a header but no rows."
            if format not in ("jsonl", "parquet")
            else f"{paths[0]} has no rows.",
            "Export the log again, or name another file.",
        )
    return result


def check_head(
    paths: Sequence[Path],
    columns: Mapping[str, str],
    format: Format = "auto",
    separator: str | None = None,
    header: Header = "auto",
) -> None:
    """Check the format and the columns of files by their first lines.

    Args:
        paths: Local files, but no pipes, which can be read only once.
        columns: Role -> column.
        format: As for :func:`read`.
        separator: As for :func:`read`.
        header: As for :func:`read`.

    Raises:
        DataError: As :func:`read`, as far as the first lines show.
    """
    layouts = detect_layouts(paths, columns, format, separator, header)
    for path, layout in zip(paths, layouts, strict=True):
        check_columns(path, layout, columns)


def _refuse_one_column(columns: Columns) -> None:
    """Raise :class:`DataError` if two roles name the same column, with or without its type."""
    roles: dict[str, str] = {}
    for role, column in columns.roles.items():
        name = column.partition(":")[0]
        if name in roles:
            raise DataError(
                f"columns.{roles[name]} and columns.{role} are the same column, {name!r}.",
                "Name a different column for each.",
            )
        roles[name] = role


def read_titles(paths: Sequence[Path], titles: Titles) -> pl.DataFrame:
    """Read titles of items: columns ``item`` and ``title``, the first title of each item.

    Rows without an id or a title are skipped; the number of malformed rows is logged.
    """
    wanted = titles.roles
    layouts = detect_layouts(paths, wanted, titles.format, titles.separator, titles.header)
    if layouts[0].format == "sequences":
        raise DataError(
            f"{paths[0]} is in the sequence format, which has no titles.",
            "Set titles.source to a table with a column of titles.",
        )
    frames = []
    for path, layout in zip(paths, layouts, strict=True):
        table = read_table(path, layout, wanted)
        items = pl.col("item").cast(pl.String)
        faults = invalid(table.frame.select(items)["item"].drop_nulls().unique(), titles.item)
        good = table.frame.filter(items.is_not_null() & ~items.is_in([*faults]))
        lost = table.malformed.height + table.frame.height - good.height
        if lost:
            first = table.malformed.select("line", "reason").head(1).rows()
            log.warning(
                "%s: %d malformed rows were skipped, with their titles%s", path, lost,
                "".join(f"; the first: line {line}: {reason}" for line, reason in first),
            )  # fmt: skip
        frames.append(good.select(items, "title"))
    rows = pl.concat(frames).filter(pl.col("title").str.strip_chars() != "")
    return rows.unique("item", keep="first", maintain_order=True)


def refuse_malformed(log_: Log, budget: str | float) -> None:
    """Raise :class:`DataError` if more rows are malformed than ``budget`` allows."""
    limit, relative = parse_budget(budget)
    bad = log_.malformed.height
    if bad > (limit * log_.rows if relative else limit):
        first = log_.malformed.row(0, named=True)
        counts = dict(log_.malformed["fault"].value_counts().iter_rows())
        most = max(counts, key=lambda fault: counts[fault])
        many = counts[most] > (bad if most in ("unit", "encoding") else log_.rows) / 2
        raise DataError(
            f"{bad} of {log_.rows} rows are malformed, more than max_malformed ({budget}) "
            f"allows; the first: {place(first['file'], first['line'])}: {first['reason']}.",
            (REMEDIES.get(most) if many else None)
            or "Fix the rows (`slmc data check` lists them), or raise max_malformed.",
        )


def warn_malformed(log_: Log) -> None:
    """Log the first malformed rows, and the number of the others."""
    for row in log_.malformed.head(SHOWN).iter_rows(named=True):
        log.warning("%s: %s; skipped", place(row["file"], row["line"]), row["reason"])
    if log_.malformed.height > SHOWN:
        log.warning(
            "%d more malformed rows were skipped, of %d rows",
            log_.malformed.height - SHOWN, log_.rows,
        )  # fmt: skip


def _log_clock(alignment: Alignment, tally: Tally, name: str) -> None:
    """Log the unit of the times."""
    if tally.total:
        log.info("Times (%s) are %s", name, alignment.clock)
    if alignment.timestamp_like:
        log.warning(
            "%s: %d of the times %s, but most are small numbers; all are sorted as numbers "
            "without a unit",
            name, alignment.timestamp_like, "looks like a time stamp"
            if alignment.timestamp_like == 1
            else "look like time stamps",
        )  # fmt: skip


def _sorted_apart(parts: Sequence[Part], sorter: Sorter) -> tuple[Spool, list[int]]:
    """Return the good rows of all parts, and their number in each part; count the ids."""
    good, heights = Spool(), []
    for part in parts:
        before = good.height
        for chunk in sorter.good_rows(part):
            good.append(chunk)
            for role in IDS:
                sorter.ids[role].count(chunk[role])
        heights.append(good.height - before)
        part.read.close()
    sorter.warn_of_span()
    return good, heights
