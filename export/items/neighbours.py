"""The vector of a new item from the vectors of its neighbours. Does not import torch.

Letters: R rows of the item table, d item width, N new items.
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray

Floats = NDArray[np.float32]
TINY = 1e-12
"""Smallest norm; avoids a division by 0."""
CHUNK = 1 << 20
"""Neighbours whose vectors are in memory at once."""


def vectors(table: Floats, neighbours: pl.DataFrame) -> Floats:
    """Return the weighted mean of the vectors of each item's neighbours, ``[N, d]``.

    A mean of vectors is shorter than the vectors are, so an item with that vector would hardly ever
    be recommended. It is scaled to the weighted mean of the neighbours' norms: then the item
    competes with its neighbours, neither above nor below them.

    Args:
        table: ``[R, d]``.
        neighbours: ``rows`` and ``weights``, lists of the same length of at least 1, for each of
            the N items.
    """
    lengths = neighbours["rows"].list.len().to_numpy().astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    rows = neighbours["rows"].explode().to_numpy()
    weights = neighbours["weights"].explode().to_numpy().astype(np.float64)
    means = np.empty((len(lengths), table.shape[1]), dtype=np.float32)
    norms = np.linalg.norm(table, axis=1)
    for begin, end in _parts(starts):
        here = slice(starts[begin], starts[end])
        cuts, share = starts[begin:end] - starts[begin], weights[here]
        total = np.add.reduceat(share, cuts)
        mean = np.add.reduceat(table[rows[here]] * share[:, None], cuts) / total[:, None]
        length = np.add.reduceat(norms[rows[here]] * share, cuts) / total
        own = np.linalg.norm(mean, axis=1).clip(TINY)
        means[begin:end] = mean * (length / own)[:, None]
    return means


def _parts(starts: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Ranges of items, each with about :data:`CHUNK` neighbours."""
    marks = np.unique(np.searchsorted(starts, np.arange(0, starts[-1] + CHUNK, CHUNK)))
    last = len(starts) - 1
    ends = [int(mark) for mark in marks if 0 < mark < last]
    return list(zip([0, *ends], [*ends, last], strict=True))
