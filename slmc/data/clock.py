"""The clock of a log: the unit of its times, decided by most of the rows, and what is outside.

The unit of a number is told by its size: from 10^8 (1973) and below 10^11 (the year 5138) it is
seconds since 1970, then up to 10^14 milliseconds, and so on; a smaller number has no unit. The
unit that most rows have is the log's. A number that has another unit is no time of this log: one
row in milliseconds among seconds would lie in the year 55,000. Dates have no unit to decide.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import polars as pl

from slmc.data.config import TimeUnit
from slmc.data.times import Times, joined, scaled

UNITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}
"""``10**UNITS[unit]`` of a unit are a second."""
NAMES = {
    "s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds",
}  # fmt: skip
SMALLEST, LARGEST = 10**8, 10**11
"""Seconds since 1970 that tell their unit: 1973 to 5138."""
EARLIEST, LATEST = date(1980, 1, 1), date(2100, 1, 1)
"""Days between which an interaction is plausible."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Clock:
    """What the integer times of a log mean."""

    unit: str | None
    """``s``, ``ms``, ``us`` or ``ns`` of numbers, ``date`` of dates, null of numbers that only
    order the rows."""
    digits: int
    """``10**digits`` of the integers are 1 of the unit (of dates: a second)."""

    @property
    def per_second(self) -> int:
        """How many of the integers are a second."""
        return int(10 ** (self.digits + UNITS.get(self.unit or "", 0)))

    def at(self, day: date) -> int:
        """The integer at which a day (UTC) begins."""
        return (day - EPOCH.date()).days * 86400 * self.per_second

    def text(self, time: int) -> str:
        """The day (UTC) of a time; the number itself where it has no unit or no such day."""
        if self.unit is not None:
            try:
                return (EPOCH + timedelta(seconds=time // self.per_second)).date().isoformat()
            except OverflowError:
                pass
        return number_text(time, self.digits)

    def numbers(self, times: pl.Series) -> pl.Series:
        """``[N]`` float64: the times as numbers of the log's own unit, nearest where inexact.

        Only to hash them (:func:`slmc.data.split.tie_keys`): two times that fall together here
        have been ordered before, by their integers.
        """
        return times.cast(pl.Float64) / 10**self.digits

    def __str__(self) -> str:
        """What the times are, for messages."""
        if self.unit == "date":
            return "dates"
        if self.unit is None:
            return "numbers without a unit, which only order the rows"
        return f"numbers, {NAMES[self.unit]} since 1970"


@dataclass(frozen=True)
class Settled:
    """The times of all files on one clock."""

    clock: Clock
    values: list[pl.Series]
    """Of each file: the times as integers of the clock; null where there is none."""
    outside: list[pl.DataFrame]
    """Of each file: ``at`` (place in the file's rows, from 0) and ``reason`` of the times that
    do not belong to the clock."""
    strangers: int
    """Numbers that have a unit in a log whose numbers have none."""


def settle(parts: Sequence[Times], unit: TimeUnit = "auto") -> Settled:
    """One clock for the times of several files.

    Args:
        parts: The times of each file.
        unit: The unit of numbers; ``auto`` decides by most of the rows. Dates have none.
    """
    digits = max((part.digits for part in parts), default=0)
    values = [scaled(part.values, digits - part.digits) for part in parts]
    kinds: Counter[str | None] = Counter()
    for part, times in zip(parts, values, strict=True):
        kinds.update(_kinds(times.filter(~part.dates), digits))
    dates = sum(int((part.dates & part.values.is_not_null()).sum()) for part in parts)
    chosen = _most(kinds) if unit == "auto" else None if unit == "none" else unit
    as_dates = dates > kinds.total()
    mixed = min(dates, kinds.total()) > 0
    outside = [
        _outside(times, part.dates, Clock(chosen, digits), unit, as_dates if mixed else None)
        for part, times in zip(parts, values, strict=True)
    ]
    if mixed and chosen is not None:  # both in parts of a second
        power = UNITS[chosen]
        values = [
            times if not part.dates.any() else _with_dates(times, part.dates, power)
            for part, times in zip(parts, values, strict=True)
        ]
        digits += power if as_dates else 0
    strangers = kinds.total() - kinds[None] if chosen is None and unit == "auto" else 0
    return Settled(Clock("date" if as_dates else chosen, digits), values, outside, strangers)


def literal(time: int) -> pl.Expr:
    """A time to compare with, in the shorter type where it fits."""
    return pl.lit(time, pl.Int64 if -(2**63) <= time < 2**63 else pl.Int128)


def number_text(time: int, digits: int) -> str:
    """``time / 10**digits``, exactly."""
    return _numbers(pl.Series([time], dtype=pl.Int128), digits)[0]


def _kinds(numbers: pl.Series, digits: int) -> dict[str | None, int]:
    """How many numbers have each unit; under null, those that have none."""
    frame = numbers.drop_nulls().to_frame("time")
    counted = frame.select(_has_unit(unit, digits).sum().alias(unit) for unit in UNITS).row(0)
    return {**dict(zip(UNITS, counted, strict=True)), None: frame.height - sum(counted)}


def _most(kinds: Counter[str | None]) -> str | None:
    """The unit that most rows have; null if most have none."""
    dated = {unit: kinds[unit] for unit in UNITS}
    if kinds[None] >= sum(dated.values()):
        return None
    return max(dated, key=lambda unit: dated[unit])


def _has_unit(unit: str, digits: int) -> pl.Expr:
    factor = 10 ** (UNITS[unit] + digits)
    return _below(LARGEST * factor) & ~_below(SMALLEST * factor)


def _below(bound: int) -> pl.Expr:
    """Whether a time is nearer to 1970 than a bound."""
    return (pl.col("time") < literal(bound)) & (pl.col("time") > literal(-bound))


def _outside(
    times: pl.Series, dates: pl.Series, clock: Clock, unit: TimeUnit, as_dates: bool | None
) -> pl.DataFrame:
    """``at`` and ``reason`` of the times that are not of this clock.

    Args:
        times: Times of a file.
        dates: Which of them are dates.
        clock: The clock of the numbers.
        unit: What the settings say.
        as_dates: Where there are dates and numbers: whether most times are dates.
    """
    digits, frame = clock.digits, pl.DataFrame({"time": times, "date": dates})
    told = pl.lit(None, pl.String)
    if clock.unit is not None:
        factor = 10 ** (UNITS[clock.unit] + digits)
        small = _below((LARGEST if unit != "auto" else 0) * factor)
        fits = small | _below(SMALLEST * 10**digits) | _has_unit(clock.unit, digits)
        main = f"{NAMES[clock.unit]} since 1970"
        told = pl.when(~pl.col("date") & ~fits).then(
            _told(clock, main) if unit == "auto" else pl.lit(f", too large for {main}")
        )
    elif as_dates:
        told = pl.when(~pl.col("date")).then(
            pl.lit(", a number without a unit where most times are dates")
        )
    elif as_dates is not None:
        told = pl.when("date").then(pl.lit(", a date where most times are numbers without a unit"))
    found = frame.with_row_index("at").with_columns(told=told)
    found = found.filter(pl.col("time").is_not_null() & pl.col("told").is_not_null())
    second = (pl.col("time") // literal(10**digits)).cast(pl.Int64, strict=False)
    day = (second * 1000).cast(pl.Datetime("ms")).dt.to_string("%Y-%m-%d")
    given = pl.when("date").then(day).otherwise(_numbers(found["time"], digits))
    return found.select("at", reason=pl.concat_str(given, "told"))


def _told(clock: Clock, main: str) -> pl.Expr:
    """What a number is that has another unit than the log."""
    told = pl.lit(f", too large for {main}")
    for unit in UNITS:
        told = (
            pl.when(_has_unit(unit, clock.digits))
            .then(pl.lit(f", {NAMES[unit]} where most times are {main}"))
            .otherwise(told)
        )
    return told


def _with_dates(times: pl.Series, dates: pl.Series, power: int) -> pl.Series:
    """Dates on the scale of numbers of which ``10**power`` are a second."""
    moments = scaled(times, power)
    wide, plain = joined([moments, times]).dtype, times
    return moments.cast(wide).zip_with(dates, plain.cast(wide))


def _numbers(times: pl.Series, digits: int) -> pl.Series:
    """Integers over ``10**digits`` as texts."""
    if digits == 0:
        return times.cast(pl.String)
    text = pl.col("text").str.strip_prefix("-").str.zfill(digits + 1)
    sign = pl.when(pl.col("text").str.starts_with("-")).then(pl.lit("-")).otherwise(pl.lit(""))
    part = text.str.tail(digits).str.strip_chars_end("0")
    point = pl.when(part == "").then(pl.lit("")).otherwise(pl.lit("."))
    number = pl.concat_str(sign, text.str.head(-digits), point, part)
    return times.cast(pl.String).to_frame("text").select(number=number)["number"]
