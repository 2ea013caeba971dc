"""The best items for many histories, by a model or an engine, without excluded items.

The best items are asked for once, and excluded ones are removed from the answer. Only for a history
with too few items left are its own items masked inside of the ranking, which costs more.

Letters: B histories, V items, k items that are returned, K items that are asked for.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from slmc.errors import UsageError
from slmc.export.runtime.engine import Engine, read_description
from slmc.export.runtime.sessions import CHUNK, candidates
from slmc.serving.histories import Histories, Ints

if TYPE_CHECKING:
    from torch import Tensor

    from slmc.model.loading import Recommender as Model

Mask = NDArray[np.bool_]
Best = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Rows ``[B, k]``, best first, and their scores; after the last item 0 and -inf."""
MOST_SCORES = 1 << 25
"""Largest number of scores, histories times items, that one call computes: 128 MB."""
SHORT = 256
"""Longest histories that are compared with the answer item by item."""


class Ranker(Protocol):
    """Returns the best rows of a catalogue."""

    num_items: int
    history: int
    """Number of newest items that it uses."""
    top_k: int
    """Largest K."""
    batch: int
    """Histories of one call."""
    workers: int
    """Calls that run at once."""

    def top(self, item_ids: Ints, k: int, allowed: Mask | None) -> Best:
        """The K >= k best rows of padded histories ``[B, L]``; ``allowed`` is ``[1 or B, V+1]``."""
        ...

    def vectors(self, item_ids: Ints) -> NDArray[np.float32]:
        """User vectors ``[B, d]`` of padded histories."""
        ...


def batch_of(num_items: int) -> int:
    """Histories of one call, so that their scores stay below :data:`MOST_SCORES`."""
    return max(1, min(CHUNK, MOST_SCORES // (num_items + 1)))


class EngineRanker:
    """An engine, with one session for each of its worker threads."""

    def __init__(self, engine: Engine | Path, threads: int | None = None) -> None:
        """Open the sessions.

        Args:
            engine: A running engine, whose session is used as it is; or the folder of one whose
                hashes have been checked.
            threads: Cores to use, by as many parallel sessions, or calls of the running engine;
                default: one session on all cores, which answers a single history fastest, or one
                call.
        """
        folder = engine.folder if isinstance(engine, Engine) else engine
        self.description = read_description(folder)
        self.num_items, self.history = self.description.num_items, self.description.history
        self.top_k, self.batch = self.description.top_k, batch_of(self.num_items)
        if isinstance(engine, Engine):
            self._engines = [engine] * (threads or 1)
        elif threads is None:
            self._engines = [Engine(folder)]
        else:
            policy = candidates(threads)[-1]  # the most sessions
            self._engines = [Engine(folder, threads=policy.threads) for _ in range(policy.sessions)]
        self.workers = len(self._engines)
        self._free = list(self._engines)
        self._idle = threading.Semaphore(self.workers)

    def top(self, item_ids: Ints, k: int, allowed: Mask | None) -> Best:
        """See :class:`Ranker`."""
        with self._idle:
            engine = self._free.pop()
            try:
                return engine.answer(item_ids, allowed=allowed)
            finally:
                self._free.append(engine)

    def vectors(self, item_ids: Ints) -> NDArray[np.float32]:
        """See :class:`Ranker`."""
        return self._engines[0].user_vectors(item_ids)


class ModelRanker:
    """A model in PyTorch."""

    def __init__(self, model: "Model") -> None:
        """Take a model in evaluation mode."""
        vectors = model.item_vectors()
        self._model, self._items = model, vectors.detach()
        self.num_items, self.history = len(vectors) - 1, int(model.config.history)
        self.top_k, self.batch, self.workers = self.num_items, batch_of(self.num_items), 1

    def top(self, item_ids: Ints, k: int, allowed: Mask | None) -> Best:
        """See :class:`Ranker`."""
        import torch

        from slmc.evaluation.ranking import top_of

        with torch.inference_mode():
            scores = self._user_vectors(item_ids) @ self._items[1:].T
            if allowed is not None:
                barred = torch.from_numpy(~allowed[:, 1:]).to(scores.device)
                scores = scores.masked_fill(barred, -torch.inf)
            values, columns = top_of(scores.float(), min(k, self.num_items))
        return columns.cpu().numpy() + 1, values.cpu().numpy()

    def vectors(self, item_ids: Ints) -> NDArray[np.float32]:
        """See :class:`Ranker`."""
        import torch

        with torch.inference_mode():
            vectors: NDArray[np.float32] = self._user_vectors(item_ids).float().cpu().numpy()
        return vectors

    def _user_vectors(self, item_ids: Ints) -> "Tensor":
        import torch

        return self._model.user_vectors(torch.from_numpy(item_ids).to(self._items.device))


@dataclass(frozen=True)
class Wish:
    """What is asked for, besides the histories."""

    k: int
    exclude_seen: bool = False
    allowed: Mask | None = None
    """``[V + 1]``; None allows all items."""


def check_k(ranker: Ranker, k: int) -> int:
    """Return k, at most the number of items.

    Raises:
        UsageError: k is below 1, or above the list that an engine returns.
    """
    if k < 1 or k > ranker.top_k < ranker.num_items:
        raise UsageError(
            f"k: {k} items were requested; the engine returns 1 to {ranker.top_k}."
            if ranker.top_k < ranker.num_items
            else f"k: {k} items were requested.",
            "Choose a number in this range, or export with a larger --top-k."
            if ranker.top_k < ranker.num_items
            else "Choose a number from 1 on.",
        )
    return min(k, ranker.num_items)


class Batches:
    """Ranks many histories, in calls of similar length, on all workers of a ranker."""

    def __init__(self, ranker: Ranker) -> None:
        """Start a thread per worker."""
        self.ranker = ranker
        self._threads = ThreadPoolExecutor(ranker.workers, "slmc-rank")

    def start(self, histories: Histories, wish: Wish) -> Callable[[], Best]:
        """Begin to rank; the returned function waits for the answer.

        Histories without items have no answer: rows 0 and scores -inf.
        """
        filled = np.flatnonzero(histories.lengths)
        groups = histories.by_length(filled, self.ranker.batch)
        calls: list[tuple[Ints, Future[Best]]] = [
            (group, self._threads.submit(rank, self.ranker, histories, group, wish))
            for group in groups
        ]

        def answer() -> Best:
            items = np.zeros((len(histories), wish.k), dtype=np.int64)
            scores = np.full((len(histories), wish.k), -np.inf, dtype=np.float32)
            for group, call in calls:
                items[group], scores[group] = call.result()
            return items, scores

        return answer

    def close(self) -> None:
        """End the threads, without the calls that have not begun."""
        self._threads.shutdown(cancel_futures=True)


def rank(ranker: Ranker, histories: Histories, chosen: Ints, wish: Wish) -> Best:
    """The best k items for some histories with items, ``[b, k]``."""
    shared = None if wish.allowed is None else wish.allowed[None]
    seen = histories.padded(chosen) if wish.exclude_seen else None
    most = wish.k + (0 if seen is None else seen.shape[1])
    item_ids = histories.padded(chosen, ranker.history)
    asked = min(most, ranker.top_k)
    rows, scores = ranker.top(item_ids, asked, shared)
    rows, scores, left = _without(rows[:, :asked], scores[:, :asked], seen, wish.k)
    if seen is None:
        return rows, scores
    free = int(wish.allowed.sum()) if wish.allowed is not None else ranker.num_items
    # Fewer than k remain, although others could be ranked. A history with n items has at most n
    # different ones, so `free - n` items are certainly left.
    short = np.flatnonzero((left < wish.k) & (asked < free))
    for part in np.array_split(short, -(-short.size // batch_of(ranker.num_items)) or 1):
        if part.size:
            own = np.repeat(shared, part.size, 0) if shared is not None else None
            mask = np.ones((part.size, ranker.num_items + 1), bool) if own is None else own
            mask[np.arange(part.size)[:, None], seen[part]] = False
            answer = ranker.top(item_ids[part], wish.k, mask)
            items, values = answer[0][:, : wish.k], answer[1][:, : wish.k]
            rows[part], scores[part], _ = _without(items, values, None, wish.k)
    return rows, scores


def _without(
    rows: NDArray[np.int64], scores: NDArray[np.float32], seen: Ints | None, k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], Ints]:
    """The first k of answers ``[b, K]`` without seen and masked items, and how many are left."""
    kept = scores > -np.inf
    if seen is not None:
        kept &= ~_contains(seen, rows)
    order = np.argsort(~kept, axis=1, kind="stable")[:, :k]
    kept = np.take_along_axis(kept, order, 1)
    best = np.where(kept, np.take_along_axis(rows, order, 1), 0)
    values = np.where(kept, np.take_along_axis(scores, order, 1), np.float32(-np.inf))
    if best.shape[1] < k:
        pad = ((0, 0), (0, k - best.shape[1]))
        best = np.pad(best, pad)
        values = np.pad(values, pad, constant_values=-np.inf)
    return best, values, kept.sum(axis=1)


def _contains(seen: Ints, rows: NDArray[np.int64]) -> Mask:
    """Whether each of ``rows [b, K]`` is in the same line of ``seen [b, L]``."""
    if seen.shape[1] <= SHORT:
        found: Mask = (rows[:, :, None] == seen[:, None, :]).any(axis=2)
        return found
    found = np.empty(rows.shape, dtype=bool)
    for one, (line, history) in enumerate(zip(rows, seen, strict=True)):
        found[one] = np.isin(line, history)
    return found
