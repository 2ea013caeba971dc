"""Ranking metrics of one relevant item a user, from its rank: HR@k, NDCG@k, MRR.

A rank is 1-based and may be fractional: where scores tie, it is the expectation over all
orders of the tied items (1 + items above + half the other items of the same score).
"""

import re

import numpy as np
from numpy.typing import NDArray

METRIC = re.compile(r"(hr|ndcg)@([1-9]\d*)|mrr|ce")
LOWER_IS_BETTER = frozenset({"ce"})


def check_metric(name: str) -> str:
    """Return ``name`` if it is a metric's; raises ``ValueError`` naming what there is."""
    if METRIC.fullmatch(name) is None:
        raise ValueError(f"there is no metric {name!r}; there are hr@K, ndcg@K, mrr, ce")
    return name


def of_ranks(name: str, ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    """The metric ``hr@K``, ``ndcg@K`` or ``mrr`` of each user.

    Args:
        name: Metric; with one relevant item the ideal DCG is 1, hence
            ``ndcg@K = 1 / log2(1 + rank)`` within the first K and 0 beyond
            (Järvelin & Kekäläinen 2002).
        ranks: ``[U]`` expected ranks, at least 1.

    Returns:
        ``[U]`` in [0, 1].
    """
    match = METRIC.fullmatch(name)
    if match is None or name == "ce":
        raise ValueError(f"{name!r} is no metric of ranks")
    if name == "mrr":
        return 1.0 / ranks
    inside = ranks <= int(match[2])
    if match[1] == "hr":
        return inside.astype(np.float64)
    return np.where(inside, 1.0 / np.log2(1.0 + ranks), 0.0)
