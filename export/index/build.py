"""Build an index of faiss over the item vectors.

The score of an item is the inner product of user and item vector, so the indices rank by it. A
graph of neighbours needs distances, where a vector is its own nearest. So each item vector x gets
one coordinate more, sqrt(M^2 - |x|^2), M being the largest norm, and each user vector a 0: then the
nearest items are those of the largest inner product (Bachrach et al., RecSys 2014).
Letters: V items, d item width.
"""

import logging
import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from slmc.export.runtime.engine import cores
from slmc.export.runtime.vector_index import VectorIndex, import_faiss

Kind = Literal["faiss", "hnsw"]
LINKS = 32
"""Links of an item in the graph of hnsw; twice as many in its lowest layer."""
BUILD_DEPTH = 80
"""Candidates that are compared when an item is linked."""
PER_LIST = 39
"""Training vectors for each inverted list: the fewest that faiss takes without a warning."""
CHUNK = 1 << 18
"""Items that are added at once."""
FEWEST_LISTS, FEWEST_CANDIDATES = 1, 16
"""Smallest efforts of a search: lists that are visited, candidates of the graph."""

log = logging.getLogger("slmc.export")


def build(kind: Kind, vectors: NDArray[np.float32], threads: int | None = None) -> VectorIndex:
    """Build an index. It keeps the vectors as they are, since rounding changes which are best.

    Args:
        kind: ``faiss``: inverted lists around the means of clusters. ``hnsw``: a graph of
            neighbours (Malkov and Yashunin, arXiv 1603.09320).
        vectors: ``[V, d]``, of the rows 1..V.
        threads: Cores to use; default: all of this process. With several, the links of a graph
            depend on their order.
    """
    faiss = import_faiss()
    faiss.omp_set_num_threads(threads or cores())
    number, width = vectors.shape
    largest = None
    if kind == "hnsw":
        largest = largest_norm(vectors)
        index = faiss.index_factory(width + 1, f"HNSW{LINKS},Flat", faiss.METRIC_L2)
        index.hnsw.efConstruction = BUILD_DEPTH
    else:
        lists = lists_of(number)
        index = faiss.index_factory(width, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
        index.train(_sample(vectors, lists * PER_LIST))
    for start in range(0, number, CHUNK):
        part = vectors[start : start + CHUNK]
        index.add(part if largest is None else with_length(part, largest))
        done = {"task": f"index {kind}", "done": min(start + CHUNK, number), "total": number}
        log.debug("progress", extra={"progress": done | {"unit": "items"}})
    return VectorIndex(index, largest)


def largest_norm(vectors: NDArray[np.float32]) -> float:
    """Return the largest norm of vectors ``[V, d]``."""
    parts = (vectors[start : start + CHUNK] for start in range(0, len(vectors), CHUNK))
    return float(max(np.linalg.norm(part, axis=1).max() for part in parts))


def with_length(vectors: NDArray[np.float32], largest: float) -> NDArray[np.float32]:
    """Return vectors ``[V, d + 1]``, all of the norm ``largest``."""
    rest = np.maximum(largest**2 - np.square(vectors).sum(axis=1, keepdims=True), 0)
    return np.hstack([vectors, np.sqrt(rest)]).astype(np.float32)


def lists_of(number: int) -> int:
    """Number of inverted lists: about 4 times the root of the items, so that a list is short."""
    return max(1, min(round(4 * math.sqrt(number)), number // PER_LIST))


def efforts(index: VectorIndex) -> Iterator[int]:
    """Efforts of a search, from the smallest, each twice the one before."""
    most = getattr(index.index, "nlist", 4096)
    effort = FEWEST_LISTS if hasattr(index.index, "nlist") else FEWEST_CANDIDATES
    while effort < most:
        yield effort
        effort *= 2
    yield most


def set_effort(index: VectorIndex, effort: int) -> dict[str, int]:
    """Set the effort of a search, which is stored with the index; return it by faiss's name."""
    if hasattr(index.index, "nlist"):
        index.index.nprobe = effort
        return {"nprobe": effort}
    index.index.hnsw.efSearch = effort
    return {"efSearch": effort}


def _sample(vectors: NDArray[np.float32], number: int) -> NDArray[np.float32]:
    if number >= len(vectors):
        return vectors
    rows = np.random.default_rng(0).choice(len(vectors), number, replace=False)
    return vectors[np.sort(rows)]


def save(index: VectorIndex, file: Any) -> None:
    """Write an index."""
    import_faiss().write_index(index.index, str(file))
