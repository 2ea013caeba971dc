"""Rank by the index of an engine: most of the best items, without scoring all.

Masks need exact scores: a history with too few items left, and ``allow`` and ``deny``, are ranked
by the engine itself, which is opened when it is first needed.
"""

from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slmc.export.runtime.engine import cores, read_description
from slmc.export.runtime.vector_index import UserVectors, VectorIndex
from slmc.serving.histories import Ints
from slmc.serving.ranking import Best, EngineRanker, Mask, batch_of


class IndexRanker:
    """A :class:`slmc.serving.ranking.Ranker` that searches the index of an engine."""

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        """Open the graph of user vectors and the index.

        Args:
            folder: Folder of an engine whose hashes have been checked.
            threads: Cores to use; default: all.

        Raises:
            UsageError: The engine was exported without an index.
            MissingError: faiss or onnxruntime is not installed.
        """
        description = read_description(folder)
        self.num_items, self.history = description.num_items, description.history
        self.top_k, self.batch, self.workers = description.top_k, batch_of(self.num_items), 1
        self._index = VectorIndex.open(folder, threads or cores())
        self._users = UserVectors(folder, threads or cores())
        self._folder, self._threads = folder, threads

    def top(self, item_ids: Ints, k: int, allowed: Mask | None) -> Best:
        """See :class:`slmc.serving.ranking.Ranker`."""
        if allowed is not None:
            return self._exact.top(item_ids, k, allowed)
        return self._index.search(self._users(item_ids), k)

    def vectors(self, item_ids: Ints) -> NDArray[np.float32]:
        """See :class:`slmc.serving.ranking.Ranker`."""
        return self._users(item_ids)

    @cached_property
    def _exact(self) -> EngineRanker:
        return EngineRanker(self._folder, self._threads)
