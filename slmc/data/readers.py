"""Read an interaction log: who took what, when, and in which rows that could not be told."""

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from slmc.config import parse_budget
from slmc.data.config import Columns, Format, Titles
from slmc.data.files import MALFORMED
from slmc.data.formats import read_table
from slmc.data.sniff import Header, layouts_of
from slmc.errors import DataError

log = logging.getLogger("slmc.data")

NO_ID = ("nan", "null", "none")
"""Texts (in any case) that stand for a missing id: what NaN and null become in a text file."""
UTC_NAME = re.compile(r" ?(UTC|GMT)$")
SHOWN = 5
"""Malformed rows that are logged one by one."""


@dataclass(frozen=True)
class Log:
    """An interaction log, and what was wrong with it."""

    frame: pl.DataFrame
    """``user``, ``item`` (text), ``time`` (Float64, null without time stamps), ``order``
    (0-based place in the log)."""
    malformed: pl.DataFrame
    """``file``, ``line``, ``fault`` (its kind), ``reason``, in the order of the log."""
    format: Format
    """What the files were."""

    @property
    def rows(self) -> int:
        """Rows read, malformed ones included."""
        return self.frame.height + self.malformed.height

    @property
    def timed(self) -> bool:
        """Whether the rows have time stamps; else they stand in time order."""
        return self.frame["time"].null_count() == 0


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
    wanted = {"user": columns.user, "item": columns.item}
    if columns.time is not None:
        wanted["time"] = columns.time
    layouts = layouts_of(paths, wanted, format, separator, header)
    format = layouts[0].format
    if format == "sequences":
        wanted.pop("time", None)
    frames, faults = [], []
    for path, layout in zip(paths, layouts, strict=True):
        table = read_table(path, layout, wanted)
        names = wanted if format != "sequences" else {"user": "the user", "item": "an item"}
        good, bad = _checked(table.frame, names)
        bad = pl.concat([table.malformed, bad]).sort("line", maintain_order=True)
        frames.append(good)
        faults.append(bad.select(pl.lit(str(path)).alias("file"), *MALFORMED))
    frame = pl.concat(frames).with_row_index("order")
    result = Log(
        frame.select("user", "item", "time", pl.col("order").cast(pl.Int64)),
        pl.concat(faults),
        format,
    )
    if result.rows == 0:
        raise DataError(
            f"{paths[0]} has a header and no rows."
            if format != "jsonl"
            else f"{paths[0]} has no rows.",
            "Write the log again, or name another file.",
        )
    return result


def read_titles(paths: Sequence[Path], titles: Titles) -> pl.DataFrame:
    """Titles of items: columns ``item`` and ``title``, one row an item, the first one's.

    Rows without an id or a title are left out; how many were malformed is logged.
    """
    wanted = {"item": titles.item, "title": titles.title}
    layouts = layouts_of(paths, wanted, titles.format, titles.separator, titles.header)
    if layouts[0].format == "sequences":
        raise DataError(
            f"{paths[0]} is in the sequence format, which has no titles.",
            "Set titles.source to a table with a column of titles.",
        )
    frames = []
    for path, layout in zip(paths, layouts, strict=True):
        table = read_table(path, layout, wanted)
        good = table.frame.filter(_id_reason("item", titles.item).is_null())
        lost = table.malformed.height + table.frame.height - good.height
        if lost:
            log.warning("%s: %d malformed rows, their titles are left out", path, lost)
        frames.append(good.select(pl.col("item").cast(pl.String), "title"))
    found = pl.concat(frames).filter(pl.col("title").str.strip_chars() != "")
    return found.unique("item", keep="first", maintain_order=True)


def refuse_malformed(log_: Log, budget: str | float) -> None:
    """Raise :class:`DataError` if more rows are malformed than ``budget`` allows."""
    limit, relative = parse_budget(budget)
    bad = log_.malformed.height
    if bad > (limit * log_.rows if relative else limit):
        first = log_.malformed.row(0, named=True)
        raise DataError(
            f"{bad} of {log_.rows} rows are malformed, more than max_malformed ({budget}) "
            f"allows; the first: {place(first['file'], first['line'])}: {first['reason']}.",
            "Mend the rows (`slmc data check` lists them), or raise max_malformed.",
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


def _checked(frame: pl.DataFrame, names: dict[str, str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows with ids and a time (columns user, item, time), and the others with their reasons."""
    faults = {role: _id_reason(role, names[role]) for role in ("user", "item")}
    if "time" in names:
        seconds = frame["time"] if frame["time"].dtype == pl.Float64 else _seconds(frame["time"])
        given = pl.col("time").cast(pl.String).fill_null("null")
        frame = frame.with_columns(given.alias("given"), seconds.alias("time"))
        told = pl.format(f"{names['time']} is {{}}, neither a number nor an ISO date", "given")
        absent = pl.col("given").is_in(["", "null"])
        missing = pl.when(pl.col("given") == "").then(pl.lit("empty")).otherwise(pl.lit("null"))
        known = pl.col("time").is_finite().fill_null(False)
        faults["time"] = (
            pl.when(known)
            .then(None)
            .when(absent)
            .then(pl.format(f"{names['time']} is {{}}", missing))
            .otherwise(told)
        )
    else:
        frame = frame.with_columns(pl.lit(None, pl.Float64).alias("time"))
    reason = pl.coalesce(*faults.values())
    fault = pl.coalesce(
        *(pl.when(found.is_not_null()).then(pl.lit(role)) for role, found in faults.items())
    )
    marked = frame.with_columns(fault.alias("fault"), reason.alias("reason"))
    good = marked.filter(pl.col("reason").is_null()).select("user", "item", "time")
    return good, marked.filter(pl.col("reason").is_not_null()).select(*MALFORMED)


def _id_reason(role: str, name: str) -> pl.Expr:
    """Why an id is none, or null."""
    value = pl.col(role).cast(pl.String)
    return (
        pl.when(value.is_null())
        .then(pl.lit(f"{name} is null"))
        .when(value == "")
        .then(pl.lit(f"{name} is empty"))
        .when(value.str.to_lowercase().is_in(NO_ID))
        .then(pl.format(f"{name} is {{}}", role))
        .otherwise(None)
    )


def _seconds(texts: pl.Series) -> pl.Series:
    """Numbers as they are, ISO 8601 dates as seconds since 1970 (UTC unless they say), or null."""
    numbers = texts.cast(pl.Float64, strict=False)
    if numbers.null_count() == 0:
        return numbers
    others = texts.filter(numbers.is_null()).drop_nulls().unique()
    dates = {text: _epoch(text) for text in others}
    return (
        numbers.fill_null(
            texts.replace_strict([*dates], [*dates.values()], default=None, return_dtype=pl.Float64)
        )
        if dates
        else numbers
    )


def _epoch(text: str) -> float:
    """Seconds since 1970 of an ISO 8601 date, also as BigQuery writes it; NaN if it is none."""
    try:
        moment = datetime.fromisoformat(UTC_NAME.sub("Z", text))
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return math.nan
