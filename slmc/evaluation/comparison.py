"""The paired change of a metric between two evaluations of the same users. No torch here."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from slmc.evaluation.bootstrap import (
    UNCHANGED,
    Bounds,
    Interval,
    paired_bootstrap,
    paired_over_seeds,
)
from slmc.evaluation.metrics import LOWER_IS_BETTER
from slmc.evaluation.results import identical, values


def paired_change(
    candidate: pl.DataFrame,
    baseline: pl.DataFrame,
    metric: str,
    protocol: Mapping[str, Any],
    *,
    seed: int,
    confidence: float,
    users: NDArray[np.bool_] | None = None,
) -> Interval:
    """Return the change of a metric between two tables of the same users, with its bounds.

    Identical ranks have no change, and no uncertainty. Equal values of a metric with a cutoff do
    have an interval (see :func:`slmc.evaluation.bootstrap.paired_bootstrap`).

    Args:
        candidate: Table of an evaluation, ``[U]`` rows.
        baseline: Table of the same users and targets.
        metric: hr@K, ndcg@K, mrr or ce.
        protocol: Of both.
        seed: Of the bootstrap.
        confidence: One-sided, of each bound.
        users: ``[U]`` mask of the users to compare; all if None.

    Raises:
        UndecidedError: A table does not hold the metric.
    """
    ours, theirs = (values(table, metric, protocol) for table in (candidate, baseline))
    if identical(candidate, baseline, metric, protocol):
        return UNCHANGED
    if users is not None:
        ours, theirs = ours[users], theirs[users]
    return paired_bootstrap(ours, theirs, seed=seed, confidence=confidence)


def change_over_seeds(
    candidates: Sequence[pl.DataFrame],
    baselines: Sequence[pl.DataFrame],
    metric: str,
    protocol: Mapping[str, Any],
    *,
    seed: int,
    confidence: float,
    users: NDArray[np.bool_] | None = None,
) -> Interval:
    """Return the change of the mean over seeds; users and seeds are resampled.

    With one table on each side it is :func:`paired_change`.

    Args:
        candidates: A table for each seed, or one that all seeds share.
        baselines: The same, for the same seeds.
        metric: hr@K, ndcg@K, mrr or ce.
        protocol: Of all tables.
        seed: Of the bootstrap.
        confidence: One-sided, of each bound.
        users: ``[U]`` mask of the users to compare; all if None.

    Raises:
        UndecidedError: A table does not hold the metric.
        ValueError: The numbers of seeds differ.
    """
    seeds = max(len(candidates), len(baselines))
    if {len(candidates), len(baselines)} - {1, seeds}:
        raise ValueError(f"{len(candidates)} seeds against {len(baselines)}")
    pairs = list(zip(_repeated(candidates, seeds), _repeated(baselines, seeds), strict=True))
    if seeds == 1:
        return paired_change(
            *pairs[0], metric, protocol, seed=seed, confidence=confidence, users=users
        )
    if all(identical(ours, theirs, metric, protocol) for ours, theirs in pairs):
        return UNCHANGED
    mask = slice(None) if users is None else users
    ours, theirs = (
        np.stack([values(table, metric, protocol)[mask] for table in tables])
        for tables in zip(*pairs, strict=True)
    )
    return paired_over_seeds(ours, theirs, seed=seed, confidence=confidence)


def _repeated(tables: Sequence[pl.DataFrame], seeds: int) -> list[pl.DataFrame]:
    return list(tables) * (seeds // len(tables))


def better_is_positive(bounds: Bounds, metric: str) -> Bounds:
    """Return the change with opposite sign if a lower value of the metric is better."""
    if metric not in LOWER_IS_BETTER:
        return bounds
    return Bounds(0.0 - bounds.change, 0.0 - bounds.high, 0.0 - bounds.low)  # never -0.0
