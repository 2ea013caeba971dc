"""Read an interaction log: who took what, when, and in which rows that could not be told."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from slmc.config import parse_budget
from slmc.data import ids
from slmc.data.clock import EARLIEST, LATEST, Clock, literal, settle
from slmc.data.config import Columns, Format, TimeUnit, Titles
from slmc.data.files import MALFORMED
from slmc.data.formats import Table, check_columns, read_table
from slmc.data.repeats import Copy, copies
from slmc.data.sniff import Header, layouts_of
from slmc.data.times import NUMBER, Times, exact, joined, narrowed
from slmc.errors import DataError

log = logging.getLogger("slmc.data")

SHOWN = 5
"""Malformed rows that are logged one by one."""


@dataclass(frozen=True)
class Log:
    """An interaction log, and what was wrong with it."""

    frame: pl.DataFrame
    """``user``, ``item`` (categories), ``time`` (integers of the clock; null without time
    stamps), ``order`` (0-based place in the log)."""
    malformed: pl.DataFrame
    """``file``, ``line``, ``fault`` (its kind), ``reason``, in the order of the log."""
    format: Format
    """What the files were."""
    clock: Clock | None = None
    """What the times mean; null without time stamps."""
    copies: tuple[Copy, ...] = ()
    """Parts of the log that hold the same rows as a part before them."""

    @property
    def rows(self) -> int:
        """Rows read, malformed ones included."""
        return self.frame.height + self.malformed.height

    @property
    def timed(self) -> bool:
        """Whether the rows have time stamps; else they stand in time order."""
        return self.clock is not None


@dataclass
class _Part:
    """One file while the log is read."""

    path: Path
    frame: pl.DataFrame
    """``line``, ``user``, ``item`` and, where there are time stamps, ``time``, null where there
    is none."""
    times: Times | None
    malformed: list[pl.DataFrame] = field(default_factory=list)


def read(
    paths: Sequence[Path],
    format: Format = "auto",
    columns: Columns | None = None,
    separator: str | None = None,
    header: Header = "auto",
) -> Log:
    """Read the files of a log, in the order given.

    Args:
        paths: Local files, all of one format.
        format: That format; ``auto`` goes by the files' first lines and names.
        columns: Which column is what; the sequence format has none.
        separator: What stands between columns; None goes by the first lines.
        header: Whether first lines name the columns.

    Raises:
        DataError: A file as a whole cannot be read, or there is no row in the log.
    """
    columns = columns or Columns()
    wanted = columns.roles
    layouts = layouts_of(paths, wanted, format, separator, header)
    format = layouts[0].format
    if format == "recbole":
        _refuse_one_column(columns)
    names = wanted if format != "sequences" else {"user": "the user", "item": "an item"}
    parts = [
        _part(path, read_table(path, layout, wanted), names)
        for path, layout in zip(paths, layouts, strict=True)
    ]
    clock = _set_clock(parts, names["time"], columns.time_unit) if "time" in names else None
    _leave_out_ids(parts, names)
    result = _joined(parts, format, clock)
    if result.rows == 0:
        raise DataError(
            f"{paths[0]} has a header and no rows."
            if format != "jsonl"
            else f"{paths[0]} has no rows.",
            "Write the log again, or name another file.",
        )
    return result


def check_head(
    paths: Sequence[Path],
    columns: Mapping[str, str],
    format: Format = "auto",
    separator: str | None = None,
    header: Header = "auto",
) -> None:
    """See from the first lines of files that they are what is said and have the columns.

    Args:
        paths: Local files; pipes, which can be read once, are left out by the caller.
        columns: Role -> column.
        format: As for :func:`read`.
        separator: As there.
        header: As there.

    Raises:
        DataError: As :func:`read` does, as far as the first lines tell.
    """
    layouts = layouts_of(paths, columns, format, separator, header)
    for path, layout in zip(paths, layouts, strict=True):
        check_columns(path, layout, columns)


def _refuse_one_column(columns: Columns) -> None:
    """Raise :class:`DataError` if two roles are one column, with its type or without."""
    roles: dict[str, str] = {}
    for role, column in columns.roles.items():
        name = column.partition(":")[0]
        if name in roles:
            raise DataError(
                f"columns.{roles[name]} and columns.{role} are one column, {name!r}.",
                "Name a column of its own for each.",
            )
        roles[name] = role


def read_titles(paths: Sequence[Path], titles: Titles) -> pl.DataFrame:
    """Titles of items: columns ``item`` and ``title``, one row an item, the first one's.

    Rows without an id or a title are left out; how many were malformed is logged.
    """
    wanted = titles.roles
    layouts = layouts_of(paths, wanted, titles.format, titles.separator, titles.header)
    if layouts[0].format == "sequences":
        raise DataError(
            f"{paths[0]} is in the sequence format, which has no titles.",
            "Set titles.source to a table with a column of titles.",
        )
    frames = []
    for path, layout in zip(paths, layouts, strict=True):
        table = read_table(path, layout, wanted)
        items = pl.col("item").cast(pl.String)
        faults = ids.faults(table.frame.select(items)["item"].drop_nulls().unique(), titles.item)
        good = table.frame.filter(items.is_not_null() & ~items.is_in([*faults]))
        lost = table.malformed.height + table.frame.height - good.height
        if lost:
            log.warning("%s: %d malformed rows, their titles are left out", path, lost)
        frames.append(good.select(items, "title"))
    found = pl.concat(frames).filter(pl.col("title").str.strip_chars() != "")
    return found.unique("item", keep="first", maintain_order=True)


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
            else "Mend the rows (`slmc data check` lists them), or raise max_malformed.",
        )


def warn_malformed(log_: Log) -> None:
    """Log the first malformed rows, and how many more there are."""
    for row in log_.malformed.head(SHOWN).iter_rows(named=True):
        log.warning("%s: %s; left out", place(row["file"], row["line"]), row["reason"])
    if log_.malformed.height > SHOWN:
        log.warning(
            "%d more malformed rows were left out, of %d rows",
            log_.malformed.height - SHOWN, log_.rows,
        )  # fmt: skip


def place(file: str, line: int) -> str:
    """Where a row stands: a Parquet file has rows, any other lines."""
    return f"{file}, {'row' if file.endswith(('.parquet', '.pq')) else 'line'} {line}"


def _part(path: Path, table: Table, names: dict[str, str]) -> _Part:
    """A file with ids as categories, its times apart; times that cannot be read are malformed."""
    frame = table.frame.with_columns(
        pl.col("line").cast(pl.Int64), pl.col("user", "item").cast(pl.Categorical)
    )
    if "time" not in names:
        return _Part(path, frame.select("line", "user", "item"), None, [table.malformed])
    given, frame = frame["time"].alias(names["time"]), frame.select("line", "user", "item")
    times = exact(given)
    unread = times.values.is_null()
    faults = frame.filter(unread).select("line", given=given.filter(unread).cast(pl.String))
    text = pl.col("given")
    reason = (
        pl.when(text.is_null() | (text == "null"))
        .then(pl.lit(" is null"))
        .when(text == "")
        .then(pl.lit(" is empty"))
        .when(text.str.contains(NUMBER))
        .then(pl.format(" is {}, a number of too many digits", text))
        .otherwise(pl.format(" is {}, neither a number nor an ISO date", text))
    )
    bad = faults.select(
        "line", fault=pl.lit("time"), reason=pl.concat_str(pl.lit(names["time"]), reason)
    )
    return _Part(path, frame, times, [table.malformed, bad])


def _set_clock(parts: Sequence[_Part], name: str, unit: TimeUnit) -> Clock:
    """Give every part its times on one clock, and tell which; those outside are malformed."""
    settled = settle([part.times for part in parts if part.times is not None], unit)
    clock = settled.clock
    for part, values, outside in zip(parts, settled.values, settled.outside, strict=True):
        bad = part.frame["line"].gather(outside["at"]).to_frame()
        part.malformed.append(
            bad.select(
                "line", fault=pl.lit("unit"),
                reason=pl.format(f"{_braces(name)} is {{}}", outside["reason"]),
            )
        )  # fmt: skip
        if not outside.is_empty():
            values = values.scatter(outside["at"], None)
        part.frame = part.frame.with_columns(values.alias("time"))
        part.times = None
    if any(part.frame["time"].count() for part in parts):
        log.info("Times (%s) are %s", name, clock)
    if settled.strangers:
        log.warning(
            "%s: %d of the times %s of a size that dates have, most are small numbers; all are "
            "ordered as numbers",
            name, settled.strangers, "is" if settled.strangers == 1 else "are",
        )  # fmt: skip
    if clock.unit is not None:
        _warn_of_span(parts, clock)
    return clock


def _warn_of_span(parts: Sequence[_Part], clock: Clock) -> None:
    """Warn of times at which nobody can have taken anything."""
    first, last = literal(clock.at(EARLIEST)), literal(clock.at(LATEST))
    outside = ~pl.col("time").is_between(first, last, closed="left")
    found = [(part.path, part.frame.filter(outside)) for part in parts]
    count = sum(rows.height for _, rows in found)
    if count:
        path, rows = next((path, rows) for path, rows in found if rows.height)
        line, time = rows.select("line", "time").row(0)
        log.warning(
            "%d %s a time before %d or from %d on; the first: %s: %s",
            count, "row has" if count == 1 else "rows have", EARLIEST.year, LATEST.year,
            place(str(path), line), clock.text(time),
        )  # fmt: skip


def _leave_out_ids(parts: Sequence[_Part], names: dict[str, str]) -> None:
    """Set rows without a user or an item apart, and warn of ids that look doubtful."""
    faults = {}
    for role in ("user", "item"):
        unique = pl.concat([part.frame[role].unique() for part in parts]).unique()
        texts = unique.cast(pl.String).drop_nulls()
        faults[role] = ids.faults(texts, names[role])
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
    """Why an id of a row is none, or null."""
    value = pl.col(role)
    known = [pl.when(value == token).then(pl.lit(reason)) for token, reason in faults.items()]
    return pl.coalesce(pl.when(value.is_null()).then(pl.lit(f"{name} is null")), *known)


def _joined(parts: Sequence[_Part], format: Format, clock: Clock | None) -> Log:
    """The log of all files in one."""
    frames, faults = [], []
    for part in parts:
        good = part.frame.drop("line")
        if clock is None:
            good = good.with_columns(pl.lit(None, pl.Int64).alias("time"))
        frames.append(good.filter(pl.col("time").is_not_null()) if clock is not None else good)
        bad = pl.concat(part.malformed).sort("line", maintain_order=True)
        faults.append(bad.select(pl.lit(str(part.path)).alias("file"), *MALFORMED))
    times = narrowed(joined([frame["time"] for frame in frames]))
    frame = pl.concat([frame.select("user", "item") for frame in frames])
    frame = frame.with_columns(times.alias("time"), order=pl.int_range(pl.len(), dtype=pl.UInt32))
    found = copies([str(part.path) for part in parts], frame, [part.height for part in frames])
    return Log(frame, pl.concat(faults), format, clock, found)


def _braces(name: str) -> str:
    """A column's name inside a format string of polars."""
    return name.replace("{", "{{").replace("}", "}}")
