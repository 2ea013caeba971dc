"""How the models rank rare items: users whose target is cold, and users whose target is new.

A new target has no training interactions: on ids alone no model can know it, and texts can. The
table is shown where items have texts, and for a temporal split with new targets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from slmc.evaluation.gates import COLD, Segment
from slmc.report import numbers
from slmc.report.advice import sasrec_tables, with_and_without_texts
from slmc.report.tables import Kind, Row, change_between, mean_and_half, mean_of, user_tables

if TYPE_CHECKING:
    from slmc.pipeline import RunResult

GROUPS: dict[Segment, str] = {
    "cold-items": f"at most {COLD} training interactions",
    "new-items": "no training interactions",
}
"""Segments of the table, and what their targets have."""


@dataclass(frozen=True)
class Group:
    """Users of a segment."""

    segment: Segment
    n: int
    share: float
    """Share of all users."""

    @property
    def heading(self) -> str:
        """Name, condition and share of users."""
        return f"{self.segment} ({GROUPS[self.segment]}; {_share(self)})"


@dataclass(frozen=True)
class TargetRow:
    """The metric of a model over all users, and over those of each group."""

    step: str
    kind: Kind
    values: list[str]
    """With half of the 95 % interval."""


@dataclass(frozen=True)
class TargetTable:
    """The metric of every model by how often the targets occur in training."""

    metric: str
    groups: list[Group]
    rows: list[TargetRow]
    sentences: list[str]
    """SASRec with texts against SASRec on ids in each group, paired over users."""

    @property
    def headings(self) -> list[str]:
        """Columns of the table."""
        return ["step", "all", *(group.heading for group in self.groups)]


def target_table(result: "RunResult", metric: str, rows: "Sequence[Row]") -> TargetTable | None:
    """Return the table of a run; None if it has nothing to show.

    Args:
        result: The run.
        metric: Name of the metric.
        rows: Rows of the main table.
    """
    tables = {row.step: user_tables(result, row.step) for row in rows}
    measured = [row for row in rows if tables[row.step]]
    first = tables[measured[0].step][0] if measured else None
    if first is None or first.height == 0 or not _is_shown(result, first):
        return None
    masks = _masks(first)
    if not masks:
        return None
    groups = [
        Group(segment, int(mask.sum()), float(mask.mean())) for segment, mask in masks.items()
    ]
    shown = [
        TargetRow(row.step, row.kind, _values(result, metric, tables[row.step], groups))
        for row in measured
    ]
    sentences = [one for group in groups if (one := _sentence(result, metric, group)) is not None]
    return TargetTable(metric, groups, shown, sentences)


def _is_shown(result: "RunResult", table: pl.DataFrame) -> bool:
    data = result.recipe.data
    return data.items is not None or (data.split.by == "time" and bool(table["new"].any()))


def _masks(table: pl.DataFrame) -> dict[Segment, NDArray[np.bool_]]:
    """Mask ``[U]`` of each group with users."""
    from slmc.evaluation.results import segment_mask

    masks = {segment: segment_mask(table, segment) for segment in GROUPS}
    return {segment: mask for segment, mask in masks.items() if mask.any()}


def _values(
    result: "RunResult", metric: str, tables: Sequence[pl.DataFrame], groups: Sequence[Group]
) -> list[str]:
    parts = [tables, *(_of_group(tables, group) for group in groups)]
    return [numbers.value(*mean_and_half(part, metric, result)) for part in parts]


def _of_group(tables: Sequence[pl.DataFrame], group: Group) -> list[pl.DataFrame]:
    """The tables with the users of a group only."""
    return [table.filter(pl.Series(_masks(table)[group.segment])) for table in tables]


def _sentence(result: "RunResult", metric: str, group: Group) -> str | None:
    """SASRec with texts against SASRec on ids, with popularity, on the targets of a group."""
    texts, ids = with_and_without_texts(result)
    if texts is None or ids is None:
        return None
    ours, theirs, popular = (
        _of_group(tables, group)
        for tables in (
            sasrec_tables(result, texts),
            sasrec_tables(result, ids),
            user_tables(result, "popularity"),
        )
    )
    interval = change_between(ours, theirs, metric, result)
    if interval is None:
        return None
    bounds = interval.relative or interval.absolute
    change = numbers.change(bounds, relative=interval.relative is not None)
    with_texts, on_ids, popularity = (
        numbers.value(mean_of(tables, metric, result)) for tables in (ours, theirs, popular)
    )
    return (
        f"Targets with {GROUPS[group.segment]} ({_share(group)}): {metric.upper()} {with_texts} of "
        f"SASRec with texts ({texts}) against {on_ids} on ids ({ids}), {change}; popularity "
        f"{popularity}."
    )


def _share(group: Group) -> str:
    return f"n = {group.n:,}, {100 * group.share:.1f} % of users"
