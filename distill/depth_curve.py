"""The metric by depth: changes against all layers, and the smallest depth within a budget.

No torch here. Letters: ``L`` layers of the teacher, ``U`` users.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl

from slmc.config import parse_budget
from slmc.distill.depth_config import DepthConfig
from slmc.evaluation.bootstrap import Bounds
from slmc.evaluation.comparison import better_is_positive, paired_change
from slmc.evaluation.metrics import LOWER_IS_BETTER
from slmc.evaluation.results import values

TRAINED = "trained"
"""Name of the curve of the fitted students."""
Layers = tuple[int, ...]


@dataclass(frozen=True)
class Point:
    """The teacher with some of its layers only, or a student of as many, against all layers."""

    depth: int
    """Number of layers."""
    layers: Layers
    """Their numbers, from 0."""
    parameters: int
    value: float
    change: Bounds
    """Absolute, with one-sided bounds, paired over users; negative is worse, also for ce."""
    relative: Bounds | None
    """The same as a share of the teacher's value; None for ce, or if that is 0."""
    within: bool
    """Whether the lower bound is within the budget."""


@dataclass(frozen=True)
class Choice:
    """The smallest depth within the budget."""

    way: str
    point: Point

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict."""
        return {"way": self.way, **asdict(self.point)}


def point(
    config: DepthConfig,
    layers: Layers,
    parameters: int,
    candidate: pl.DataFrame,
    whole: pl.DataFrame,
    protocol: Mapping[str, Any],
) -> Point:
    """Compare a choice of layers with the teacher on the same users.

    Args:
        config: Metric, budget, confidence and seed.
        layers: The kept layers.
        parameters: Of the model that has only these.
        candidate: Its table, ``[U]`` rows, as :func:`slmc.evaluation.evaluate.rank` returns it.
        whole: Table of the teacher.
        protocol: Of both.
    """
    metric = config.metric
    interval = paired_change(
        candidate, whole, metric, protocol, seed=config.seed, confidence=config.confidence
    )
    change = better_is_positive(interval.absolute, metric)
    relative = None if metric in LOWER_IS_BETTER else interval.relative
    budget, is_share = parse_budget(config.max_drop)
    bounds = relative if is_share else change
    return Point(
        depth=len(layers),
        layers=layers,
        parameters=parameters,
        value=float(values(candidate, metric, protocol).mean()),
        change=change,
        relative=relative,
        within=bounds is not None and bounds.low >= -budget,
    )


def smallest(points: Iterable[Point]) -> Point | None:
    """Return the point of the smallest depth within the budget; None if there is none."""
    return min((one for one in points if one.within), key=lambda one: one.depth, default=None)


def best(curves: Mapping[str, Sequence[Point]]) -> Choice | None:
    """Return the smallest depth of all ways; at the same depth, the one that loses least."""
    candidates = [Choice(way, one) for way, points in curves.items() if (one := smallest(points))]
    return min(
        candidates, key=lambda one: (one.point.depth, -one.point.change.change), default=None
    )


def nearest(curves: Mapping[str, Sequence[Point]]) -> Choice | None:
    """Return the point with the highest lower bound: what would be the first within a budget."""
    every = [Choice(way, one) for way, points in curves.items() for one in points]
    return max(every, key=lambda one: (one.point.change.low, -one.point.depth), default=None)


def as_numbers(curves: Mapping[str, Sequence[Point]]) -> dict[str, Any]:
    """Return the points of each way and its smallest depth within the budget, JSON-able."""
    return {
        way: {
            "depths": [asdict(one) for one in points],
            "smallest": asdict(one) if (one := smallest(points)) is not None else None,
        }
        for way, points in curves.items()
    }
