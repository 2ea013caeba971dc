"""Times that are dates written as numbers: 14112023, 14.11 (day and month), 2023111422 (an hour).

One such number may be a sequence number or a time stamp. If all times of a log have the form, this
is no coincidence.
"""

import logging
from dataclasses import dataclass, field

import polars as pl

from slmc.data.times import Times
from slmc.errors import DataError

log = logging.getLogger("slmc.data")

FEWEST = 10
"""Times from which on their form is taken as proof."""
DAY_FIRST = "days with the year last (such as 14112023)"
DAY_MONTH = "days and months (such as 14.11)"
DAY = "days (such as 20231114)"
HOUR = "hours (such as 2023111422)"


@dataclass
class Forms:
    """The forms of dates that all times so far have."""

    possible: set[str] = field(default_factory=lambda: {DAY_FIRST, DAY_MONTH, DAY, HOUR})
    times: int = 0

    def add(self, times: Times) -> None:
        """Look at the next times."""
        values = times.values.drop_nulls()
        if not self.possible or values.is_empty():
            return
        self.times += values.len()
        tests = {} if times.dates.any() else _tests(times.digits)
        self.possible &= tests.keys()
        if self.possible:
            chosen = [tests[form].all().alias(form) for form in sorted(self.possible)]
            row = values.to_frame("time").select(chosen).row(0, named=True)
            self.possible = {form for form, holds in row.items() if holds}

    @property
    def known(self) -> str | None:
        """The form of the times; None if there is none, or too few times to know."""
        return min(self.possible, default=None) if self.times >= FEWEST else None

    def check(self, column: str) -> None:
        """Refuse dates that sort wrongly as numbers, and warn of those read in a wrong unit.

        Args:
            column: The column of the times, for messages.

        Raises:
            DataError: Numbers with the day before the year do not sort by time.
        """
        if self.known in (DAY_FIRST, DAY_MONTH):
            raise DataError(
                f"{column}: all times look like {self.known}, which do not sort by time.",
                "Write them as 2023-11-14, or set columns.time_unit: none if they are numbers that "
                "only order the rows.",
            )
        if self.known == HOUR:
            log.warning(
                "%s: all times look like %s; as seconds since 1970 their order is right, but not "
                "their dates. Write them as 2023-11-14 22:00 to split by time",
                column, self.known,
            )  # fmt: skip


def _tests(digits: int) -> dict[str, pl.Expr]:
    """Return form -> whether a time, an integer of ``digits`` decimals, has it."""
    time = pl.col("time")
    if digits > 2:
        return {}
    hundredths = time * 10 ** (2 - digits)
    tests = {DAY_MONTH: _is_day(hundredths // 100, hundredths % 100)}
    if digits == 0:
        first, second = time // 1_000_000, time // 10_000 % 100
        tests[DAY_FIRST] = (time % 10_000).is_between(1900, 2099) & (
            _is_day(first, second) | _is_day(second, first)
        )
        tests[DAY] = _is_date(time)
        tests[HOUR] = _is_date(time // 100) & (time % 100).is_between(0, 23)
    return tests


def _is_day(day: pl.Expr, month: pl.Expr) -> pl.Expr:
    return day.is_between(1, 31) & month.is_between(1, 12)


def _is_date(number: pl.Expr) -> pl.Expr:
    """Return whether a number is a date such as 20231114."""
    return (number // 10_000).is_between(1900, 2099) & _is_day(number % 100, number // 100 % 100)
