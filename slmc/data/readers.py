"""Read an interaction log as one table of users, items and times, and its malformed rows."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from slmc.config import parse_budget
from slmc.data import ids
from slmc.data.clock import EARLIEST, LATEST, Clock, align, literal
from slmc.data.config import Columns, Format, TimeUnit, Titles
from slmc.data.files import MALFORMED
from slmc.data.formats import Table, check_columns, read_table
from slmc.data.repeats import Copy, find_copies
from slmc.data.sniff import Header, detect_layouts
from slmc.data.times import NUMBER, Times, concatenated, narrowed, parse
from slmc.errors import DataError

log = logging.getLogger("slmc.data")

SHOWN = 5
"""Malformed rows that are logged one by one."""


@dataclass(frozen=True)
class Log:
    """An interaction log, and its malformed rows."""

    frame: pl.DataFrame
    """``user``, ``item`` (categories), ``time`` (integers of the clock; null without time
    stamps), ``order`` (0-based position in the log)."""
    malformed: pl.DataFrame
    """``file``, ``line``, ``fault`` (kind of fault), ``reason``, in the order of the log."""
    format: Format
    """Format of the files."""
    clock: Clock | None = None
    """Unit and scale of the times; None without time stamps."""
    copies: tuple[Copy, ...] = ()
    """Parts of the log with the same rows as an earlier part."""

    @property
    def rows(self) -> int:
        """Rows read, malformed ones included."""
        return self.frame.height + self.malformed.height

    @property
    def timed(self) -> bool:
        """Whether the rows have time stamps; otherwise they are in time order."""
        return self.clock is not None


@dataclass
class _Part:
    """One file while the log is read."""

    path: Path
    frame: pl.DataFrame
    """``line``, ``user``, ``item`` and, in a log with time stamps, ``time`` (null if missing)."""
    times: Times | None
    malformed: list[pl.DataFrame] = field(default_factory=list)


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
    parts = [
        _part(path, read_table(path, layout, wanted), names)
        for path, layout in zip(paths, layouts, strict=True)
    ]
    clock = _set_clock(parts, names["time"], columns.time_unit) if "time" in names else None
    _check_ids(parts, names)
    result = _concatenated(parts, format, clock)
    if result.rows == 0:
        raise DataError(
            f"{paths[0]} has a header but no rows."
            if format != "jsonl"
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
        faults = ids.invalid(table.frame.select(items)["item"].drop_nulls().unique(), titles.item)
        good = table.frame.filter(items.is_not_null() & ~items.is_in([*faults]))
        lost = table.malformed.height + table.frame.height - good.height
        if lost:
            log.warning("%s: %d malformed rows were skipped, with their titles", path, lost)
        frames.append(good.select(items, "title"))
    rows = pl.concat(frames).filter(pl.col("title").str.strip_chars() != "")
    return rows.unique("item", keep="first", maintain_order=True)


def refuse_malformed(log_: Log, budget: str | float) -> None:
    """Raise :class:`DataError` if more rows are malformed than ``budget`` allows."""
    limit, relative = parse_budget(budget)
    bad = log_.malformed.height
    if bad > (limit * log_.rows if relative else limit):
        first = log_.malformed.row(0, named=True)
        units = log_.malformed.filter(pl.col("fault") == "unit").height > bad / 2
        raise DataError(
            f"{bad} of {log_.rows} rows are malformed, more than max_malformed ({budget}) "
            f"allows; the first: {place(first['file'], first['line'])}: {first['reason']}.",
            "Write all times in one unit; for sequence numbers set columns.time_unit: none."
            if units
            else "Fix the rows (`slmc data check` lists them), or raise max_malformed.",
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


def place(file: str, line: int) -> str:
    """Return file and line of a row (for Parquet: file and row)."""
    return f"{file}, {'row' if file.endswith(('.parquet', '.pq')) else 'line'} {line}"


def _part(path: Path, table: Table, names: dict[str, str]) -> _Part:
    """Read the times of a file, and make its ids categories; unreadable times are malformed."""
    frame = table.frame.with_columns(
        pl.col("line").cast(pl.Int64), pl.col("user", "item").cast(pl.Categorical)
    )
    if "time" not in names:
        return _Part(path, frame.select("line", "user", "item"), None, [table.malformed])
    column, frame = frame["time"].alias(names["time"]), frame.select("line", "user", "item")
    times = parse(column)
    unread = times.values.is_null()
    faults = frame.filter(unread).select("line", text=column.filter(unread).cast(pl.String))
    text = pl.col("text")
    reason = (
        pl.when(text.is_null() | (text == "null"))
        .then(pl.lit(" is null"))
        .when(text == "")
        .then(pl.lit(" is empty"))
        .when(text.str.contains(NUMBER))
        .then(pl.format(" is {}, a number with too many digits", text))
        .otherwise(pl.format(" is {}, neither a number nor an ISO date", text))
    )
    bad = faults.select(
        "line", fault=pl.lit("time"), reason=pl.concat_str(pl.lit(names["time"]), reason)
    )
    return _Part(path, frame, times, [table.malformed, bad])


def _set_clock(parts: Sequence[_Part], name: str, unit: TimeUnit) -> Clock:
    """Put the times of all parts on the same clock; times of other units are malformed."""
    aligned = align([part.times for part in parts if part.times is not None], unit)
    clock = aligned.clock
    for part, values, outside in zip(parts, aligned.values, aligned.outside, strict=True):
        bad = part.frame["line"].gather(outside["at"]).to_frame()
        part.malformed.append(
            bad.select(
                "line", fault=pl.lit("unit"),
                reason=pl.format(f"{_escaped(name)} is {{}}", outside["reason"]),
            )
        )  # fmt: skip
        if not outside.is_empty():
            values = values.scatter(outside["at"], None)
        part.frame = part.frame.with_columns(values.alias("time"))
        part.times = None
    if any(part.frame["time"].count() for part in parts):
        log.info("Times (%s) are %s", name, clock)
    if aligned.timestamp_like:
        log.warning(
            "%s: %d of the times %s, but most are small numbers; all are sorted as numbers "
            "without a unit",
            name, aligned.timestamp_like, "looks like a time stamp"
            if aligned.timestamp_like == 1
            else "look like time stamps",
        )  # fmt: skip
    if clock.unit is not None:
        _warn_of_span(parts, clock)
    return clock


def _warn_of_span(parts: Sequence[_Part], clock: Clock) -> None:
    """Warn of times that are implausible for an interaction."""
    first, last = literal(clock.at(EARLIEST)), literal(clock.at(LATEST))
    outside = ~pl.col("time").is_between(first, last, closed="left")
    implausible = [(part.path, part.frame.filter(outside)) for part in parts]
    count = sum(rows.height for _, rows in implausible)
    if count:
        path, rows = next((path, rows) for path, rows in implausible if rows.height)
        line, time = rows.select("line", "time").row(0)
        log.warning(
            "%d %s a time before %d or from %d on; the first: %s: %s",
            count, "row has" if count == 1 else "rows have", EARLIEST.year, LATEST.year,
            place(str(path), line), clock.text(time),
        )  # fmt: skip


def _check_ids(parts: Sequence[_Part], names: dict[str, str]) -> None:
    """Make rows without a user or an item malformed, and warn of doubtful ids."""
    faults = {}
    for role in ("user", "item"):
        unique = pl.concat([part.frame[role].unique() for part in parts]).unique()
        texts = unique.cast(pl.String).drop_nulls()
        faults[role] = ids.invalid(texts, names[role])
        ids.warn_of_two_spellings(texts, names[role])
    for part in parts:
        reasons = {
            role: _reason(role, names[role], faults[role])
            for role in faults
            if faults[role] or part.frame[role].null_count()
        }
        if not reasons:
            continue
        fault = [pl.when(why.is_not_null()).then(pl.lit(role)) for role, why in reasons.items()]
        bad = pl.any_horizontal(why.is_not_null() for why in reasons.values())
        rows = part.frame.filter(bad).select(
            "line", fault=pl.coalesce(fault), reason=pl.coalesce(reasons.values())
        )
        part.frame = part.frame.filter(~bad)
        others = pl.concat(part.malformed).join(rows, on="line", how="anti")
        part.malformed = [others, rows]


def _reason(role: str, name: str, faults: dict[str, str]) -> pl.Expr:
    """Return why the id of a row is invalid, null if it is valid."""
    value = pl.col(role)
    known = [pl.when(value == token).then(pl.lit(reason)) for token, reason in faults.items()]
    return pl.coalesce(pl.when(value.is_null()).then(pl.lit(f"{name} is null")), *known)


def _concatenated(parts: Sequence[_Part], format: Format, clock: Clock | None) -> Log:
    """Concatenate all files to one log."""
    frames, faults = [], []
    for part in parts:
        good = part.frame.drop("line")
        if clock is None:
            good = good.with_columns(pl.lit(None, pl.Int64).alias("time"))
        frames.append(good.filter(pl.col("time").is_not_null()) if clock is not None else good)
        bad = pl.concat(part.malformed).sort("line", maintain_order=True)
        faults.append(bad.select(pl.lit(str(part.path)).alias("file"), *MALFORMED))
    times = narrowed(concatenated([frame["time"] for frame in frames]))
    frame = pl.concat([frame.select("user", "item") for frame in frames])
    frame = frame.with_columns(times.alias("time"), order=pl.int_range(pl.len(), dtype=pl.UInt32))
    repeated_parts = find_copies(
        [str(part.path) for part in parts], frame, [part.height for part in frames]
    )
    return Log(frame, pl.concat(faults), format, clock, repeated_parts)


def _escaped(name: str) -> str:
    """Escape the name of a column for a format string of polars."""
    return name.replace("{", "{{").replace("}", "}}")
