"""The unit of the times of a log, decided by most of its rows; other times are malformed.

The size of a number shows its unit: from 10^8 (1973) and below 10^11 (the year 5138) it is
seconds since 1970, then up to 10^14 milliseconds, and so on; a smaller number has no unit. The
most frequent unit is that of the log. Numbers with another unit are malformed: one row in
milliseconds among seconds would lie in the year 55,000. Dates have no unit.
"""

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Self

import polars as pl

from slmc.data.calendar import Forms
from slmc.data.config import TimeUnit
from slmc.data.times import Times, concatenated, scaled

UNITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}
"""Unit -> n: a second has ``10**n`` of it."""
NAMES = {
    "s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds",
}  # fmt: skip
SMALLEST, LARGEST = 10**8, 10**11
"""Range of numbers that count as seconds since 1970: the years 1973 to 5138."""
EARLIEST, LATEST = date(1980, 1, 1), date(2100, 1, 1)
"""Days between which an interaction is plausible."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Clock:
    """What the integer times of a log mean."""

    unit: str | None
    """``s``, ``ms``, ``us`` or ``ns`` for numbers, ``date`` for dates, None for numbers that only
    order the rows."""
    digits: int
    """One unit (for dates: one second) is ``10**digits`` in these integers."""

    @property
    def per_second(self) -> int:
        """The integer that one second is."""
        return int(10 ** (self.digits + UNITS.get(self.unit or "", 0)))

    def at(self, day: date) -> int:
        """Return the integer at which a day (UTC) begins."""
        return (day - EPOCH.date()).days * 86400 * self.per_second

    def text(self, time: int) -> str:
        """Return the day (UTC) of a time, or the number itself if it has no unit or no day."""
        if self.unit is not None:
            try:
                return (EPOCH + timedelta(seconds=time // self.per_second)).date().isoformat()
            except OverflowError:
                pass
        return number_text(time, self.digits)

    def numbers(self, times: pl.Series) -> pl.Series:
        """Return the times in the unit of the log, ``[N]`` float64, rounded where inexact.

        Used only as input of a hash (:func:`slmc.data.split.tie_keys`): rows are sorted by the
        exact integers first.
        """
        return times.cast(pl.Float64) / 10**self.digits

    def __str__(self) -> str:
        """Return a description of the times for messages."""
        if self.unit == "date":
            return "dates"
        if self.unit is None:
            return "numbers without a unit, which only order the rows"
        return f"numbers, {NAMES[self.unit]} since 1970"


@dataclass
class Tally:
    """The times that were read so far, counted by unit."""

    digits: int = 0
    """Digits after the point of the finest time."""
    numbers: Counter[str | None] = field(default_factory=Counter)
    """Unit -> how many numbers have its size; None for numbers without a unit."""
    dates: int = 0
    forms: Forms = field(default_factory=Forms)

    def add(self, times: Times) -> None:
        """Count the times of the next rows."""
        self.digits = max(self.digits, times.digits)
        self.forms.add(times)
        self.dates += int((times.dates & times.values.is_not_null()).sum())
        self.numbers.update(_count_units(times.values.filter(~times.dates), times.digits))

    @property
    def total(self) -> int:
        """Times that could be read."""
        return self.numbers.total() + self.dates


@dataclass(frozen=True)
class Alignment:
    """How all times of a log get on the same clock."""

    clock: Clock
    numbers: Clock
    """Unit and scale of the numbers, before dates are scaled to it."""
    unit: TimeUnit
    """The setting ``columns.time_unit``."""
    as_dates: bool | None
    """Whether most times are dates; None if all times are numbers, or all dates."""
    timestamp_like: int
    """How many numbers look like time stamps in a log whose numbers have no unit."""

    @classmethod
    def of(cls, tally: Tally, unit: TimeUnit = "auto") -> Self:
        """Choose the clock of the times of a log.

        Args:
            tally: All its times.
            unit: The unit of numbers; ``auto`` takes the most frequent one. Dates have no unit.
        """
        counts, digits = tally.numbers, tally.digits
        chosen = _most_frequent(counts) if unit == "auto" else None if unit == "none" else unit
        as_dates = tally.dates > counts.total()
        mixed = min(tally.dates, counts.total()) > 0
        # Dates among numbers get the unit of the numbers.
        power = UNITS[chosen] if mixed and as_dates and chosen is not None else 0
        unlike = chosen is None and unit == "auto"
        return cls(
            clock=Clock("date" if as_dates else chosen, digits + power),
            numbers=Clock(chosen, digits),
            unit=unit,
            as_dates=as_dates if mixed else None,
            timestamp_like=counts.total() - counts[None] if unlike else 0,
        )

    def align(self, times: Times) -> tuple[pl.Series, pl.DataFrame]:
        """Return times as integers of the clock, and the malformed ones.

        Returns:
            ``[N]`` integers, null for unreadable and malformed times; and ``at`` (row, from 0)
            and ``reason`` of the malformed ones.
        """
        values = scaled(times.values, self.numbers.digits - times.digits)
        outside = _outside(values, times.dates, self.numbers, self.unit, self.as_dates)
        if self.as_dates is not None and self.numbers.unit is not None and times.dates.any():
            values = _with_dates(values, times.dates, UNITS[self.numbers.unit])
        if not outside.is_empty():
            values = values.scatter(outside["at"], None)
        return values, outside


def literal(time: int) -> pl.Expr:
    """Return a time as an expression of Int64, or of Int128 if it is too large."""
    return pl.lit(time, pl.Int64 if -(2**63) <= time < 2**63 else pl.Int128)


def number_text(time: int, digits: int) -> str:
    """Return ``time / 10**digits`` as an exact text."""
    return _number_texts(pl.Series([time], dtype=pl.Int128), digits)[0]


def _count_units(numbers: pl.Series, digits: int) -> dict[str | None, int]:
    """Count the numbers of each unit; the key None counts numbers without a unit."""
    frame = numbers.drop_nulls().to_frame("time")
    counted = frame.select(_has_unit(unit, digits).sum().alias(unit) for unit in UNITS).row(0)
    return {**dict(zip(UNITS, counted, strict=True)), None: frame.height - sum(counted)}


def _most_frequent(counts: Counter[str | None]) -> str | None:
    """Return the most frequent unit; None if most numbers have none."""
    dated = {unit: counts[unit] for unit in UNITS}
    if counts[None] >= sum(dated.values()):
        return None
    return max(dated, key=lambda unit: dated[unit])


def _has_unit(unit: str, digits: int) -> pl.Expr:
    factor = 10 ** (UNITS[unit] + digits)
    return _nearer_than(LARGEST * factor) & ~_nearer_than(SMALLEST * factor)


def _nearer_than(bound: int) -> pl.Expr:
    """Return whether a time is nearer to 1970 than a bound."""
    return (pl.col("time") < literal(bound)) & (pl.col("time") > literal(-bound))


def _outside(
    times: pl.Series, dates: pl.Series, clock: Clock, unit: TimeUnit, as_dates: bool | None
) -> pl.DataFrame:
    """Return ``at`` and ``reason`` of the malformed times of a file.

    Args:
        times: Times of the file.
        dates: Which of them are dates.
        clock: The clock of the numbers.
        unit: The setting ``columns.time_unit``.
        as_dates: Whether most times are dates; None if all times are numbers, or all dates.
    """
    digits, frame = clock.digits, pl.DataFrame({"time": times, "date": dates})
    reason = pl.lit(None, pl.String)
    if clock.unit is not None:
        factor = 10 ** (UNITS[clock.unit] + digits)
        small = _nearer_than((LARGEST if unit != "auto" else 0) * factor)
        fits = small | _nearer_than(SMALLEST * 10**digits) | _has_unit(clock.unit, digits)
        main = f"{NAMES[clock.unit]} since 1970"
        reason = pl.when(~pl.col("date") & ~fits).then(
            _wrong_unit(clock, main) if unit == "auto" else pl.lit(f", too large for {main}")
        )
    elif as_dates:
        reason = pl.when(~pl.col("date")).then(
            pl.lit(", a number without a unit where most times are dates")
        )
    elif as_dates is not None:
        reason = pl.when("date").then(
            pl.lit(", a date where most times are numbers without a unit")
        )
    rows = frame.with_row_index("at").with_columns(reason=reason)
    rows = rows.filter(pl.col("time").is_not_null() & pl.col("reason").is_not_null())
    second = (pl.col("time") // literal(10**digits)).cast(pl.Int64, strict=False)
    day = (second * 1000).cast(pl.Datetime("ms")).dt.to_string("%Y-%m-%d")
    text = pl.when("date").then(day).otherwise(_number_texts(rows["time"], digits))
    return rows.select("at", reason=pl.concat_str(text, "reason"))


def _wrong_unit(clock: Clock, main: str) -> pl.Expr:
    """Return the reason for a number that has another unit than the log."""
    reason = pl.lit(f", too large for {main}")
    for unit in UNITS:
        reason = (
            pl.when(_has_unit(unit, clock.digits))
            .then(pl.lit(f", {NAMES[unit]} where most times are {main}"))
            .otherwise(reason)
        )
    return reason


def _with_dates(times: pl.Series, dates: pl.Series, power: int) -> pl.Series:
    """Scale the dates to numbers of which ``10**power`` are a second."""
    moments = scaled(times, power)
    wide, plain = concatenated([moments, times]).dtype, times
    return moments.cast(wide).zip_with(dates, plain.cast(wide))


def _number_texts(times: pl.Series, digits: int) -> pl.Series:
    """Return integers divided by ``10**digits`` as texts."""
    if digits == 0:
        return times.cast(pl.String)
    text = pl.col("text").str.strip_prefix("-").str.zfill(digits + 1)
    sign = pl.when(pl.col("text").str.starts_with("-")).then(pl.lit("-")).otherwise(pl.lit(""))
    part = text.str.tail(digits).str.strip_chars_end("0")
    point = pl.when(part == "").then(pl.lit("")).otherwise(pl.lit("."))
    number = pl.concat_str(sign, text.str.head(-digits), point, part)
    return times.cast(pl.String).to_frame("text").select(number=number)["number"]
