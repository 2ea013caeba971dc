"""Ranking metrics with one relevant item per user: HR@k, NDCG@k, MRR; overlap of top lists.

Ranks start at 1 and may be fractional: with ties, the rank is the expectation over all orders of
the tied items (1 + items above + half of the other items with the same score).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slmc.config import CROSS_ENTROPIES, METRIC

LOWER_IS_BETTER = CROSS_ENTROPIES


def rank_metric(name: str, ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the metric ``hr@K``, ``ndcg@K``, ``ndcg`` or ``mrr`` of each user.

    Args:
        name: Metric. With one relevant item the ideal DCG is 1, so
            ``ndcg@K = 1 / log2(1 + rank)`` for ranks up to K and 0 beyond
            (Järvelin & Kekäläinen 2002); ``ndcg`` has no cutoff.
        ranks: ``[U]`` expected ranks, at least 1; infinite if the target cannot be ranked.

    Returns:
        ``[U]`` in [0, 1].
    """
    match = METRIC.fullmatch(name)
    if match is None or name in CROSS_ENTROPIES:
        raise ValueError(f"{name!r} is not a metric of ranks")
    if name == "mrr":
        return 1.0 / ranks
    if name == "ndcg":
        return 1.0 / np.log2(1.0 + ranks)
    inside = ranks <= int(match[2])
    if match[1] == "hr":
        return inside.astype(np.float64)
    return np.where(inside, 1.0 / np.log2(1.0 + ranks), 0.0)


def overlap(
    items: NDArray[np.integer[Any]],
    scores: NDArray[np.floating[Any]],
    other_items: NDArray[np.integer[Any]],
    other_scores: NDArray[np.floating[Any]],
    k: int,
    *,
    tolerance: float = 1e-6,
) -> NDArray[np.float64]:
    """Return the share of the first ``k`` items that two top lists have in common.

    Items that tie with a list's k-th item may or may not be among its first k: the choice with
    the most common items counts, so that neither the order of ties nor rounding appears as a
    difference. Ties beyond the end of a list are unknown.

    Args:
        items: ``[U, w]`` rows of the best items, best first, ``w >= k``.
        scores: ``[U, w]`` their scores.
        other_items: ``[U, v]`` the other list, ``v >= k``.
        other_scores: ``[U, v]``.
        k: Number of items to compare.
        tolerance: Scores tie within this share of the k-th score (of 1 if that is smaller).

    Returns:
        ``[U]`` in [0, 1].
    """
    if min(items.shape[1], other_items.shape[1]) < k:
        raise ValueError(f"lists of {items.shape[1]} and {other_items.shape[1]} items, not {k}")
    sure, tied = _first(scores, k, tolerance)
    other_sure, other_tied = _first(other_scores, k, tolerance)
    same = items[:, :, None] == other_items[:, None, :]

    def common(mine: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> NDArray[np.int64]:
        both = same & mine[:, :, None] & theirs[:, None, :]
        return both.sum(axis=(1, 2))

    # Positions among the first k that are left for tied items, in each list.
    room, other_room = k - sure.sum(axis=1), k - other_sure.sum(axis=1)
    theirs_tied = np.minimum(common(sure, other_tied), other_room)
    mine_tied = np.minimum(common(tied, other_sure), room)
    both_tied = np.minimum(
        common(tied, other_tied), np.minimum(room - mine_tied, other_room - theirs_tied)
    )
    shared = common(sure, other_sure) + theirs_tied + mine_tied + both_tied
    return shared.astype(np.float64) / k


def _first(
    scores: NDArray[np.floating[Any]], k: int, tolerance: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which items are certainly among the first k, and which tie with the k-th."""
    wide = scores.astype(np.float64)
    edge = wide[:, k - 1 : k]
    margin = tolerance * np.maximum(1.0, np.abs(edge))
    return wide > edge + margin, np.abs(wide - edge) <= margin
