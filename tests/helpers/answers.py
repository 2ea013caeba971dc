"""Histories to ask an engine with, and how far its answers are from those of a model."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from slmc.model.loading import Recommender


def histories(batch: int, length: int, items: int) -> NDArray[np.int64]:
    """Random rows of 1 to ``items``, ``[batch, length]``, some padded on the left."""
    rng = np.random.default_rng(batch)
    rows = rng.integers(1, items + 1, (batch, length))
    for row in rows:
        row[: rng.integers(0, length)] = 0
    return rows


def error(
    best: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    model: Recommender,
    shapes: Sequence[tuple[int, int]],
    items: int,
) -> float:
    """Largest difference of a best score, in standard deviations of the scores.

    Args:
        best: Histories ``[B, L]`` to the scores ``[B, k]`` of an engine's best items.
        model: What it should compute.
        shapes: B and L of what both are asked.
        items: Of the catalogue.
    """
    found = []
    for shape in shapes:
        rows = histories(*shape, items)
        with torch.inference_mode():
            scores = model(torch.from_numpy(rows))[:, 1:].numpy()
        given = best(rows)
        expected = -np.sort(-scores, axis=1)[:, : given.shape[1]]
        found.append(np.abs(given - expected).max() / scores.std())
    return float(max(found))
