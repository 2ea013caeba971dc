"""Write the index of an engine, or say why it is withheld.

An engine with an index has two files more, and a graph that computes user vectors alone.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slmc.data.batches import pad_left
from slmc.errors import VerdictError
from slmc.export.config import ExportConfig
from slmc.export.graph.serialize import save_user_vectors
from slmc.export.index import build, measure
from slmc.export.runtime.engine import GRAPH, Engine, Histories
from slmc.export.runtime.vector_index import ABOUT, INDEX, USERS, UserVectors, VectorIndex

MOST = 2000
"""Largest number of histories that tune and measure the index."""


def write(
    folder: Path, config: ExportConfig, vectors: NDArray[np.float32], histories: Histories
) -> dict[str, Any]:
    """Write the graph of user vectors and the index, and measure it with one thread.

    Args:
        folder: Folder of an engine whose graph is written.
        config: ``index`` is set.
        vectors: Item vectors ``[V + 1, d]``, with the row of padding.
        histories: Real histories.

    Returns:
        The content of ``index.json``.

    Raises:
        VerdictError: The index misses too many items, or is not faster than exact search.
        MissingError: faiss is not installed.
    """
    assert config.index is not None
    save_user_vectors(folder / GRAPH, folder / USERS, vectors.shape[1])
    drawn = np.random.default_rng(config.seed).permutation(len(histories))[:MOST]
    chosen = [histories[place] for place in drawn]
    engine, users = Engine(folder, threads=1), UserVectors(folder, threads=1)
    index = build.build(config.index, vectors[1:])
    exact = _in_batches(chosen, engine.description.history, lambda ids: engine.answer(ids)[0])
    queries = _in_batches(chosen, engine.description.history, users)
    setting = measure.tune(index, queries, exact, config.index_recall)
    best, all_items = exact[:, : measure.K], exact.shape[1]
    found = index.search(queries, all_items)[0]
    about = {
        "kind": config.index,
        "setting": setting,
        "largest_norm": index.largest,
        "items": len(vectors) - 1,
        "histories": len(queries),
        f"recall@{best.shape[1]}": round(measure.recall(found, best), 4),
        f"recall@{all_items}": round(measure.recall(found, exact), 4),
        "latency": _latency(engine, users, index, chosen),
    }
    _check(about, config, best.shape[1])
    file = folder / INDEX
    file.parent.mkdir()
    build.save(index, file)
    about["size_mb"] = round(file.stat().st_size / 1e6, 3)
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
    return about


def _in_batches(histories: Histories, longest: int, answer: Any) -> Any:
    """The answers for histories, in batches of a bounded size."""
    size = 64
    parts = (histories[start : start + size] for start in range(0, len(histories), size))
    return np.concatenate([answer(pad_left(part, longest)) for part in parts])


def _latency(
    engine: Engine, users: UserVectors, index: VectorIndex, histories: Histories
) -> dict[str, dict[str, float]]:
    """Batch size -> times of exact search and of the index, from histories to items."""

    def approximate(item_ids: NDArray[np.int64]) -> object:
        return index.search(users(item_ids), engine.description.top_k)

    rows = {}
    for batch in measure.BATCHES:
        starts = range(0, max(1, len(histories) - batch + 1), batch)
        inputs = [engine.padded(histories[start : start + batch]) for start in starts]
        rows[str(batch)] = measure.time_both(engine.answer, approximate, inputs)
    return rows


def _check(about: dict[str, Any], config: ExportConfig, k: int) -> None:
    """Raise ``VerdictError`` if the index is of no use; its recall counts the ``k`` best items."""
    reached = about[f"recall@{k}"]
    if reached < config.index_recall:
        raise VerdictError(
            f"index {config.index}: the engine was withheld: the index finds {reached:.1%} of the "
            f"{k} best items at its largest effort; index_recall is "
            f"{config.index_recall:.1%}.",
            "Lower index_recall, use the other kind of index, or export without --index.",
        )
    one = about["latency"][str(measure.BATCHES[0])]
    if not measure.faster(about["latency"]):
        raise VerdictError(
            f"index {config.index}: the engine was withheld: the index is not {measure.FASTER} "
            f"times as fast as exact search: {one['index_ms']:.2f} against {one['exact_ms']:.2f} "
            f"ms for a history, over {about['items']:,} items.",
            "Export without --index; an index is for large catalogues.",
        )
