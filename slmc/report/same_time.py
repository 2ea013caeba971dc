"""The metric on targets with the same time as the item before them, and on later targets.

The order within a tie is not known, so a target of the same time is one of a basket, and easier:
what was bought together is often alike. A mean over both can hide that a model is worse on the
targets that come later.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from slmc.evaluation.gates import Segment
from slmc.report import numbers
from slmc.report.tables import mean_and_half, user_tables

if TYPE_CHECKING:
    from slmc.pipeline import RunResult

SEGMENTS: tuple[Segment, Segment] = ("same-time", "later")


@dataclass(frozen=True)
class TiedTargets:
    """A row for each model, engine and baseline."""

    metric: str
    users: tuple[int, int]
    """Users with a target of the same time, and with a later one."""
    rows: list[tuple[str, list[tuple[float, float | None]]]]
    """Step, and for both the value and half of its 95 % interval (None for a single user)."""

    @property
    def headings(self) -> list[str]:
        """Columns: the step, and both kinds of targets with their share of users."""
        total = sum(self.users)
        shares = (
            f"{self.metric.upper()}, {segment} ({100 * count / total:.1f} % of users)"
            for segment, count in zip(SEGMENTS, self.users, strict=True)
        )
        return ["step", *shares]

    @property
    def cells(self) -> list[list[str]]:
        """The rows as text."""
        return [[step, *(numbers.value(*one) for one in values)] for step, values in self.rows]

    @property
    def caption(self) -> str:
        """Explains the table."""
        return (
            f"same-time: {self.users[0]:,} users whose target has the time of the item before it; "
            f"later: the other {self.users[1]:,}. Ties stand in the order of `data.ties`. "
            "± is half of a two-sided 95 % interval."
        )


def tied_targets(result: "RunResult", metric: str, names: Sequence[str]) -> TiedTargets | None:
    """Return the metric of models, engines and baselines on both kinds of targets.

    Args:
        result: The run.
        metric: Name of the metric.
        names: Steps and baselines.

    Returns:
        None without times, without targets of one kind, or if the metric was not measured.
    """
    from slmc.evaluation.results import segment_mask

    rows: list[tuple[str, list[tuple[float, float | None]]]] = []
    users = (0, 0)
    for name in names:
        tables = user_tables(result, name)
        if not tables:
            continue
        if not all("same_time" in table.columns for table in tables):
            return None  # measured by an older version
        parts = [
            [table.filter(pl.Series(segment_mask(table, segment))) for table in tables]
            for segment in SEGMENTS
        ]
        if not all(part[0].height for part in parts):
            return None
        users = (parts[0][0].height, parts[1][0].height)
        values = []
        for part in parts:
            value, half = mean_and_half(part, metric, result)
            if value is None:
                return None
            values.append((value, half))
        rows.append((name, values))
    return TiedTargets(metric, users, rows) if rows else None
