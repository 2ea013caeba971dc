"""How many sessions of an engine answer side by side, and with how many threads each.

One session on all cores answers a call soonest, as a rule; sessions of one thread each, side by
side, answer most histories a second, since no core waits for another. What is best hangs on the
model, the batch and the machine, so a short probe chooses.
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
"""Rounds of a probe, all candidates in turn; the first is not counted."""
BUDGET_S = 4.0
"""Seconds after which a probe asks no further round."""
SETTLE_S = 0.1
"""Seconds of a turn, before its last calls. In service an engine is asked again and again; after
another one's turn its first answers find the caches full of the other's weights."""
CLEAR = 0.95
"""Share of a simpler policy's time that another must stay below to be chosen."""
CHUNK = 64
"""Histories of a call that a session is given at most, where a batch is cut."""
MOST_SESSIONS = 16
"""Sessions side by side: each holds the weights once more."""

T = TypeVar("T")
Top = tuple[NDArray[np.int64], NDArray[np.float32]]
Ways = Mapping["Policy", Callable[[list[Histories]], object]]
"""How batches are answered, by policy."""


@dataclass(frozen=True)
class Policy:
    """So many sessions side by side, of so many threads each."""

    sessions: int
    threads: int

    def __str__(self) -> str:
        """As reports show it."""
        return f"{self.sessions} x {self.threads}"


def candidates(threads: int) -> tuple[Policy, ...]:
    """What may be best on so many cores, the simplest first."""
    sessions = min(threads, MOST_SESSIONS)
    found = (Policy(1, threads), Policy(1, 1), Policy(sessions, threads // sessions))
    return tuple(dict.fromkeys(found))


class Pool:
    """Sessions on one engine that answer side by side: ONNX Runtime lets Python's lock go."""

    def __init__(self, folder: Path, policy: Policy, *, spinning: bool = False) -> None:
        """Open the sessions; raises as :class:`Engine` does."""
        self.policy = policy
        self.engines = [
            Engine(folder, threads=policy.threads, spinning=spinning)
            for _ in range(policy.sessions)
        ]
        self._workers = ThreadPoolExecutor(policy.sessions)

    def top(self, histories: Histories) -> Top:
        """As :meth:`Engine.top`; a batch is cut by length and shared out among the sessions."""
        if self.policy.sessions == 1 or len(histories) == 1:
            return self.engines[0].top(histories)
        # Histories of like length share a call, so that its windows of attention are short.
        order = np.argsort([rows.size for rows in histories], kind="stable")
        calls = max(self.policy.sessions, -(-len(histories) // CHUNK))
        parts = [part for part in np.array_split(order, calls) if part.size]
        found = self.top_each([[histories[user] for user in part] for part in parts])
        back = np.argsort(np.concatenate(parts))
        items, scores = (np.concatenate(one)[back] for one in zip(*found, strict=True))
        return items, scores

    def top_in_turn(self, batches: Sequence[Histories]) -> list[Top]:
        """Answer several batches, one after the other."""
        return [self.top(histories) for histories in batches]

    def top_each(self, batches: Sequence[Histories]) -> list[Top]:
        """Answer several batches, as many at a time as there are sessions."""
        ways = self.policy.sessions
        shares = [batches[way::ways] for way in range(ways)]
        answered = self._workers.map(
            lambda engine, share: [engine.top(batch) for batch in share],
            self.engines,
            shares,
        )
        by_way = list(answered)
        return [by_way[place % ways][place // ways] for place in range(len(batches))]


@dataclass(frozen=True)
class Chosen:
    """The policies that answer one call soonest and most histories a second."""

    latency: Policy
    throughput: Policy


class Probe:
    """Chooses for batches of one engine; sessions are opened once for each policy."""

    def __init__(self, folder: Path, threads: int, *, spinning: bool = False) -> None:
        """Take the cores that there are; sessions are opened when they are first asked."""
        self.candidates = candidates(threads)
        self.pool: Callable[[Policy], Pool] = cache(
            lambda policy: Pool(folder, policy, spinning=spinning)
        )

    def choose(self, draw: Callable[[], list[Histories]]) -> Chosen:
        """Time every candidate on the same batches, in turn.

        Args:
            draw: Gives batches of the size that is asked about.
        """
        pools = {policy: self.pool(policy) for policy in self.candidates}
        if len(pools) == 1:
            return Chosen(self.candidates[0], self.candidates[0])
        # One thread alone leaves cores idle: it can be the soonest, never the most.
        busy = {p: pool for p, pool in pools.items() if p.sessions * p.threads > 1}
        enough = 2 * max(policy.sessions for policy in pools)
        return Chosen(
            latency=_fastest({p: pool.top_in_turn for p, pool in pools.items()}, draw, enough),
            throughput=_fastest({p: pool.top_each for p, pool in busy.items()}, draw, enough),
        )


def seconds_of(answer: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    answer()
    return time.perf_counter() - start


def settled(once: Callable[[], T]) -> T:
    """What the last pass gives, of as many as take :data:`SETTLE_S`."""
    begun = time.perf_counter()
    while True:
        found = once()
        if time.perf_counter() - begun >= SETTLE_S:
            return found


def repeated(batches: list[Histories], number: int) -> list[Histories]:
    """The batches, again and again, until there are ``number`` of them at least."""
    return batches * -(-number // len(batches))


def _fastest(ways: Ways, draw: Callable[[], list[Histories]], batches: int) -> Policy:
    taken: dict[Policy, list[float]] = {policy: [] for policy in ways}
    begun = time.perf_counter()
    for number in range(ROUNDS):
        drawn = repeated(draw(), batches)
        for policy, answer in ways.items():
            took = settled(partial(seconds_of, partial(answer, drawn)))
            if number:
                taken[policy].append(took)
        if number and time.perf_counter() - begun > BUDGET_S:
            break
    typical = {policy: statistics.median(took) for policy, took in taken.items()}
    best = min(typical.values())
    return next(policy for policy, took in typical.items() if CLEAR * took <= best)
