"""Recall and latency of an index, against the exact search of its engine.

Letters: B histories, d item width, k items.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slmc.export.index.build import efforts, set_effort
from slmc.export.runtime.vector_index import VectorIndex

Rows = NDArray[np.int64]
Vectors = NDArray[np.float32]
K = 10
"""Recall is that of the 10 best items, or of all that the engine returns if these are fewer."""
BATCHES = (1, 32)
"""Batch sizes that are timed."""
ROUNDS, BUDGET_S = 30, 10.0
"""Timed rounds of each batch, fewer over this number of seconds."""
FEWEST_ROUNDS = 5
FASTER = 1.1
"""Smallest ratio of times that counts as faster; below it, noise decides."""


def recalls(found: Rows, exact: Rows) -> NDArray[np.float64]:
    """Return the share of the exact items ``[B, k]`` that are found ``[B, k or more]``, ``[B]``."""
    k = exact.shape[1]
    pairs = zip(exact, found, strict=True)
    return np.array([np.isin(best, near[:k]).mean() for best, near in pairs])


def recall(found: Rows, exact: Rows) -> float:
    """Return the mean of :func:`recalls`."""
    return float(recalls(found, exact).mean())


def surely(shares: NDArray[np.float64]) -> float:
    """Return a lower bound of the mean of shares: one-sided 95 %, by the normal distribution."""
    return float(shares.mean() - 1.645 * shares.std() / np.sqrt(len(shares)))


def tune(index: VectorIndex, users: Vectors, exact: Rows, wanted: float) -> dict[str, int]:
    """Set the smallest effort whose recall is surely ``wanted``, or the largest there is.

    Args:
        index: Its effort is changed.
        users: User vectors ``[B, d]``.
        exact: Their best items ``[B, k]``, of which the first :data:`K` count.
        wanted: Recall, in 0..1.
    """
    setting: dict[str, int] = {}
    for effort in efforts(index):
        setting = set_effort(index, effort)
        if surely(recalls(index.search(users, K)[0], exact[:, :K])) >= wanted:
            break
    return setting


def time_both(
    exact: Callable[[Any], object], approximate: Callable[[Any], object], inputs: Sequence[Any]
) -> dict[str, float]:
    """Time two searches, interleaved, on the same inputs.

    Returns:
        Median milliseconds of ``exact_ms`` and ``index_ms``, and the median over rounds of their
        ratio, ``speedup``.
    """
    seconds: dict[str, list[float]] = {"exact": [], "index": []}
    calls = {"exact": exact, "index": approximate}
    for call in calls.values():
        call(inputs[0])
    start = time.perf_counter()
    for number in range(ROUNDS):
        if number >= FEWEST_ROUNDS and time.perf_counter() - start > BUDGET_S:
            break
        one = inputs[number % len(inputs)]
        for name in sorted(calls, reverse=bool(number % 2)):
            before = time.perf_counter()
            calls[name](one)
            seconds[name].append(time.perf_counter() - before)
    ratios = np.divide(seconds["exact"], seconds["index"])
    medians = {f"{name}_ms": 1e3 * float(np.median(each)) for name, each in seconds.items()}
    return {name: round(value, 4) for name, value in medians.items()} | {
        "speedup": round(float(np.median(ratios)), 2)
    }


def faster(latency: Mapping[str, Mapping[str, float]]) -> bool:
    """Return whether the index answers one history surely sooner than exact search."""
    return latency[str(BATCHES[0])]["speedup"] >= FASTER
