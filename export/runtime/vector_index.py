"""The index of an engine: approximate search in the item vectors, by faiss. No torch here.

Letters: B histories, L their padded length, V items, d item width, k items.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from slmc.errors import ArtefactError, MissingError, UsageError
from slmc.export.graph.interface import INPUT, USER_VECTORS
from slmc.export.runtime.engine import artefact_errors, import_extra, session_options

USERS, INDEX, ABOUT = "onnx/users.onnx", "index/items.faiss", "index/index.json"
"""The graph of user vectors, which uses the weights of the engine; the index; what was measured."""
Best = tuple[NDArray[np.int64], NDArray[np.float32]]


class UserVectors:
    """A session on the graph that computes user vectors and scores no item."""

    def __init__(self, folder: Path, threads: int) -> None:
        """Open a session; raises ``ArtefactError`` if the graph cannot run."""
        self.file = folder / USERS
        with artefact_errors(self.file):
            self.session = import_extra("onnxruntime").InferenceSession(
                str(self.file), session_options(threads), providers=["CPUExecutionProvider"]
            )

    def __call__(self, item_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return vectors ``[B, d]`` of rows ``[B, L]``, padded with 0 on the left."""
        with artefact_errors(self.file):
            (vectors,) = self.session.run([USER_VECTORS], {INPUT: item_ids})
        return vectors[: len(item_ids)]


class VectorIndex:
    """Finds most of the items with the highest scores, without scoring all."""

    def __init__(self, index: Any, largest: float | None = None, threads: int = 1) -> None:
        """Take an index of faiss whose entry ``p`` is the item of row ``p + 1``.

        Args:
            index: Of inner products; or of squared distances, with one coordinate more.
            largest: Norm of the vectors with that coordinate; None for inner products.
            threads: Cores of a search.
        """
        self.index, self.largest, self.threads = index, largest, threads

    @classmethod
    def open(cls, folder: Path, threads: int = 1) -> Self:
        """Open the index of an engine, to be searched with so many cores.

        Raises:
            UsageError: The engine was exported without one.
            ArtefactError: The file is damaged.
            MissingError: faiss is not installed.
        """
        file = folder / INDEX
        if not file.is_file():
            raise UsageError(
                f"{folder} has no index.", "Export it with --index hnsw, or load it without index."
            )
        faiss = import_faiss()
        try:
            return cls(faiss.read_index(str(file)), read_about(folder)["largest_norm"], threads)
        except (RuntimeError, OSError, ValueError, KeyError):
            raise ArtefactError(f"{file} is not an index.", "Run `slmc export` again.") from None

    def search(self, vectors: NDArray[np.float32], k: int) -> Best:
        """Return rows ``[B, k]``, best first, and scores; 0 and -inf after the last that is found.

        Args:
            vectors: User vectors ``[B, d]``.
            k: Number of items; to leave seen ones out, ask for so many more.
        """
        import_faiss().omp_set_num_threads(self.threads)  # of the calling thread
        scores, places = self.index.search(self._queries(vectors), k)
        if self.largest is not None:  # |u - x|^2 = |u|^2 + M^2 - 2 u x
            lengths = np.square(vectors).sum(axis=1, keepdims=True) + self.largest**2
            scores = (lengths - scores) / 2
        lowest = np.float32(-np.inf)
        return places + 1, np.where(places >= 0, scores, lowest).astype(np.float32)

    def _queries(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.largest is None:
            return np.ascontiguousarray(vectors)
        return np.pad(vectors, ((0, 0), (0, 1)))


def read_about(folder: Path) -> Mapping[str, Any]:
    """Return what was measured when the index was written."""
    about: dict[str, Any] = json.loads((folder / ABOUT).read_bytes())
    return about


def import_faiss() -> ModuleType:
    """Import faiss; raises :class:`MissingError` if it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise MissingError(
            f"faiss cannot be imported ({error}).", "Install it with `pip install 'slmc[faiss]'`."
        ) from None
    module: ModuleType = faiss
    return module
