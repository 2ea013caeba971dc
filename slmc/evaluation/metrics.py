"""Ranking metrics of one relevant item a user, from its rank: HR@k, NDCG@k, MRR; list overlap.

A rank is 1-based and may be fractional: where scores tie, it is the expectation over all
orders of the tied items (1 + items above + half the other items of the same score).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slmc.config import CROSS_ENTROPIES, METRIC

LOWER_IS_BETTER = CROSS_ENTROPIES


def of_ranks(name: str, ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    """The metric ``hr@K``, ``ndcg@K``, ``ndcg`` or ``mrr`` of each user.

    Args:
        name: Metric; with one relevant item the ideal DCG is 1, hence
            ``ndcg@K = 1 / log2(1 + rank)`` within the first K and 0 beyond
            (Järvelin & Kekäläinen 2002); ``ndcg`` has no cutoff.
        ranks: ``[U]`` expected ranks, at least 1; infinite where the target cannot be ranked.

    Returns:
        ``[U]`` in [0, 1].
    """
    match = METRIC.fullmatch(name)
    if match is None or name in CROSS_ENTROPIES:
        raise ValueError(f"{name!r} is no metric of ranks")
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
    """Share of the first ``k`` items that two top lists have in common, ties equal.

    Items whose score equals that of a list's k-th item may stand in its first k or not: of all
    such choices the one with the most common items counts, so that neither a rule of ties nor
    a last bit is taken for a difference. Ties that go on beyond a list's end cannot be seen.

    Args:
        items: ``[U, w]`` rows of the best items, best first, ``w >= k``.
        scores: ``[U, w]`` their scores.
        other_items: ``[U, v]`` the other list, ``v >= k``.
        other_scores: ``[U, v]``.
        k: Length that is compared.
        tolerance: Scores are equal within this share of the k-th score (of 1 if that is less).

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

    # Places of the first k that are left for tied items, in either list.
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
    """Which items are surely among the first k, and which tie with the k-th."""
    wide = scores.astype(np.float64)
    edge = wide[:, k - 1 : k]
    margin = tolerance * np.maximum(1.0, np.abs(edge))
    return wide > edge + margin, np.abs(wide - edge) <= margin
