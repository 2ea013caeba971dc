"""Choose the number of parallel sessions of an engine, and the threads of each.

Usually one session on all cores has the lowest latency, and parallel sessions with one thread each
have the highest throughput, since no core waits for another. The best choice depends on the model,
the batch size and the machine, so a short probe measures it.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from slmc.export.runtime.engine import Engine, Histories

ROUNDS = 5
"""Rounds of a probe, candidates interleaved; the first round is a warm-up."""
BUDGET_S = 4.0
"""Seconds after which a probe starts no further round."""
SETTLE_S = 0.1
"""Seconds for which calls are repeated; the last pass counts. After the calls of another candidate
the caches hold that one's weights, but in service they hold the engine's own."""
CLEAR = 0.95
"""A policy is chosen over a simpler one only if it takes less than this share of its time."""
CHUNK = 64
"""Largest number of histories per call when a batch is split over sessions."""
MOST_SESSIONS = 16
"""Limit of parallel sessions: each has its own copy of the weights."""

T = TypeVar("T")
Top = tuple[NDArray[np.int64], NDArray[np.float32]]
Runners = Mapping["Policy", Callable[[list[Histories]], object]]
"""For each policy, a function that answers batches."""


@dataclass(frozen=True)
class Policy:
    """``sessions`` parallel sessions with ``threads`` threads each."""

    sessions: int
    threads: int

    def __str__(self) -> str:
        """Return the form in reports."""
        return f"{self.sessions} x {self.threads}"


def candidates(threads: int) -> tuple[Policy, ...]:
    """Return the policies to measure on ``threads`` cores, the simplest first."""
    sessions = min(threads, MOST_SESSIONS)
    policies = (Policy(1, threads), Policy(1, 1), Policy(sessions, threads // sessions))
    return tuple(dict.fromkeys(policies))


class Pool:
    """Parallel sessions on one engine; ONNX Runtime releases Python's global lock."""

    def __init__(self, folder: Path, policy: Policy, *, spinning: bool = False) -> None:
        """Open the sessions; raises the same errors as :class:`Engine`."""
        self.policy = policy
        self.engines = [
            Engine(folder, threads=policy.threads, spinning=spinning)
            for _ in range(policy.sessions)
        ]
        self._workers = ThreadPoolExecutor(policy.sessions)

    def top(self, histories: Histories) -> Top:
        """As :meth:`Engine.top`; a batch is split by length over the sessions."""
        if self.policy.sessions == 1 or len(histories) == 1:
            return self.engines[0].top(histories)
        # Histories of similar length share a call, so that its attention windows are short.
        order = np.argsort([rows.size for rows in histories], kind="stable")
        calls = max(self.policy.sessions, -(-len(histories) // CHUNK))
        parts = [part for part in np.array_split(order, calls) if part.size]
        answers = self.top_concurrent([[histories[user] for user in part] for part in parts])
        original_order = np.argsort(np.concatenate(parts))
        items, scores = (np.concatenate(o)[original_order] for o in zip(*answers, strict=True))
        return items, scores

    def top_sequential(self, batches: Sequence[Histories]) -> list[Top]:
        """Answer several batches, one after the other."""
        return [self.top(histories) for histories in batches]

    def top_concurrent(self, batches: Sequence[Histories]) -> list[Top]:
        """Answer several batches, one per session at a time."""
        sessions = self.policy.sessions
        shares = [batches[first::sessions] for first in range(sessions)]
        answers = list(
            self._workers.map(
                lambda engine, share: [engine.top(batch) for batch in share],
                self.engines,
                shares,
            )
        )
        return [answers[n % sessions][n // sessions] for n in range(len(batches))]


@dataclass(frozen=True)
class BestPolicies:
    """The policies with the lowest latency and with the highest throughput."""

    latency: Policy
    throughput: Policy


class Probe:
    """Chooses policies for one engine; the sessions of each policy are opened once."""

    def __init__(self, folder: Path, threads: int, *, spinning: bool = False) -> None:
        """Take the number of cores; sessions are opened on first use."""
        self.candidates = candidates(threads)
        self.pool: Callable[[Policy], Pool] = cache(
            lambda policy: Pool(folder, policy, spinning=spinning)
        )

    def choose(self, draw: Callable[[], list[Histories]]) -> BestPolicies:
        """Time all candidates, interleaved, on the same batches, and return the best.

        Args:
            draw: Returns batches of the size to choose for.
        """
        pools = {policy: self.pool(policy) for policy in self.candidates}
        if len(pools) == 1:
            return BestPolicies(self.candidates[0], self.candidates[0])
        # One thread leaves cores idle: it can have the lowest latency, not the best throughput.
        busy = {p: pool for p, pool in pools.items() if p.sessions * p.threads > 1}
        enough = 2 * max(policy.sessions for policy in pools)
        return BestPolicies(
            latency=_fastest({p: pool.top_sequential for p, pool in pools.items()}, draw, enough),
            throughput=_fastest({p: pool.top_concurrent for p, pool in busy.items()}, draw, enough),
        )


def seconds_of(answer: Callable[[], object]) -> float:
    """Time one call, in seconds."""
    start = time.perf_counter()
    answer()
    return time.perf_counter() - start


def repeat_until_settled(call: Callable[[], T]) -> T:
    """Repeat a call for :data:`SETTLE_S`, and return its last result."""
    start = time.perf_counter()
    while True:
        result = call()
        if time.perf_counter() - start >= SETTLE_S:
            return result


def repeated(batches: list[Histories], number: int) -> list[Histories]:
    """Repeat the list of batches until it has at least ``number``."""
    return batches * -(-number // len(batches))


def _fastest(runners: Runners, draw: Callable[[], list[Histories]], number: int) -> Policy:
    """Time the policies on at least ``number`` batches, and return the simplest of the fastest."""
    seconds: dict[Policy, list[float]] = {policy: [] for policy in runners}
    start = time.perf_counter()
    for round_number in range(ROUNDS):
        batches = repeated(draw(), number)
        for policy, answer in runners.items():
            took = repeat_until_settled(partial(seconds_of, partial(answer, batches)))
            if round_number:
                seconds[policy].append(took)
        if round_number and time.perf_counter() - start > BUDGET_S:
            break
    medians = {policy: statistics.median(times) for policy, times in seconds.items()}
    best = min(medians.values())
    return next(policy for policy, median in medians.items() if CLEAR * median <= best)
