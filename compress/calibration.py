"""Histories that a compression method looks at: from the training part alone.

What a layer is measured on decides what it keeps, so the sample follows the data in the two
ways in which histories differ most: how long they are, and how popular their items.
"""

import logging

import numpy as np
from numpy.typing import NDArray

from slmc.data.dataset import Dataset
from slmc.errors import UndecidedError

BANDS = 4
"""Bands of history length; within each, histories are ordered by the popularity of their items."""

log = logging.getLogger("slmc.compress")


def histories(data: Dataset, *, count: int, seed: int) -> list[NDArray[np.int32]]:
    """Draw calibration histories, stratified by length and by popularity of their items.

    Users are ordered by length band, then by the mean logarithm of their items' training
    counts, and cut into ``count`` strata of like size; one is drawn from each.

    Args:
        data: The dataset; validation and test targets are never looked at.
        count: Histories to draw. If there are fewer users, all are taken, with a warning.
        seed: The same seed draws the same histories.

    Returns:
        Rows of each user's newest ``data.history`` training items, oldest first, in the order
        of the strata: short histories before long ones.

    Raises:
        UndecidedError: No user has a training history.
    """
    found = [rows[-data.history :] for rows in data.train_sequences()]
    if not found:
        raise UndecidedError(
            "calibration: no user has a training history.",
            "Prepare a dataset with interactions before the validation targets.",
        )
    if len(found) < count:
        log.warning("calibration: %d histories are asked for, there are %d", count, len(found))
    strata = np.array_split(_ordered(found, data.counts), min(count, len(found)))
    rng = np.random.default_rng(seed)
    return [found[rng.choice(stratum)] for stratum in strata]


def _ordered(found: list[NDArray[np.int32]], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of histories by length band, then by popularity."""
    lengths = np.array([rows.size for rows in found])
    popularity = np.array([np.log1p(counts[rows]).mean() for rows in found])
    edges = np.quantile(lengths, np.linspace(0, 1, BANDS + 1)[1:-1])
    band = np.searchsorted(edges, lengths, side="left")
    return np.lexsort((popularity, band))
