"""Scorers: the interface of everything that can be evaluated, and that of recommenders."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slmc.data.batches import pad_left

CHUNK = 65_536
"""Items per block of scores: 34 MB for 128 users."""

Histories = Sequence[NDArray[np.int32]]


class Scorer(Protocol):
    """Scores all items of a catalogue for histories."""

    num_items: int
    """V; the item rows are 1..V."""

    def blocks(self, histories: Histories) -> Iterator[tuple[int, Tensor]]:
        """Yield the first row and the scores ``[n, width]`` of each block, in the order of rows.

        If the catalogue takes several blocks, it is called twice with the same histories and
        must return the same values.
        """
        ...


class VectorScorer:
    """Scores that are dot products of user and item vectors."""

    def __init__(
        self, user_vectors: Callable[[Tensor], Tensor], items: Tensor, *, chunk: int = CHUNK
    ) -> None:
        """Keep references to the function and the item vectors.

        Args:
            user_vectors: ``[n, L]`` int64 rows, padded with 0 on the left, to ``[n, d]``.
            items: ``[V + 1, d]`` on the device to compute on; row 0 is not scored.
            chunk: Items per block.
        """
        self.user_vectors, self.items, self.chunk = user_vectors, items, chunk
        self.num_items = len(items) - 1
        self._last: tuple[Histories, Tensor] | None = None

    @classmethod
    def of(cls, model: Any) -> Self:
        """Wrap a recommender (``user_vectors``, ``item_vectors``) that is in evaluation mode."""
        return cls(model.user_vectors, model.item_vectors().detach())

    @torch.inference_mode()
    def vectors(self, histories: Histories) -> Tensor:
        """Return user vectors ``[n, d]``; the last result is cached for the second pass."""
        if self._last is None or self._last[0] is not histories:
            padded = torch.from_numpy(pad_left(histories)).to(self.items.device)
            self._last = histories, self.user_vectors(padded)
        return self._last[1]

    def blocks(self, histories: Histories) -> Iterator[tuple[int, Tensor]]:
        """See :class:`Scorer`."""
        users = self.vectors(histories)
        for first in range(1, self.num_items + 1, self.chunk):
            with torch.inference_mode():
                scores = users @ self.items[first : first + self.chunk].T
            yield first, scores
