"""The calibration set: training histories on which activations are measured.

The sample is stratified by the two properties in which histories differ most: their length, and
the popularity of their items.
"""

import logging

import numpy as np
from numpy.typing import NDArray

from slmc.data.dataset import Dataset
from slmc.errors import UndecidedError

BANDS = 4
"""Number of bands of history length; within a band, histories are ordered by popularity."""

log = logging.getLogger("slmc.data")


def histories(data: Dataset, *, count: int, seed: int) -> list[NDArray[np.int32]]:
    """Draw calibration histories, stratified by length and by popularity of their items.

    Users are ordered by length band, then by the mean log training count of their items, and
    divided into ``count`` strata of equal size; one history is drawn from each.

    Args:
        data: The dataset; only its training part is used.
        count: Histories to draw. If there are fewer users, all are used, with a warning.
        seed: The same seed draws the same histories.

    Returns:
        Rows of each user's newest ``data.history`` training items, oldest first, in the order
        of the strata: short histories before long ones.

    Raises:
        UndecidedError: No user has a training history.
    """
    newest = [rows[-data.history :] for rows in data.train_sequences()]
    if not newest:
        raise UndecidedError(
            "calibration: no user has a training history.",
            "Prepare a dataset with interactions before the validation targets.",
        )
    if len(newest) < count:
        log.warning("calibration: %d histories requested, but there are %d", count, len(newest))
    strata = np.array_split(_ordered(newest, data.counts), min(count, len(newest)))
    rng = np.random.default_rng(seed)
    return [newest[rng.choice(stratum)] for stratum in strata]


def _ordered(histories: list[NDArray[np.int32]], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return indices of histories by length band, then by popularity."""
    lengths = np.array([rows.size for rows in histories])
    popularity = np.array([np.log1p(counts[rows]).mean() for rows in histories])
    edges = np.quantile(lengths, np.linspace(0, 1, BANDS + 1)[1:-1])
    band = np.searchsorted(edges, lengths, side="left")
    return np.lexsort((popularity, band))
