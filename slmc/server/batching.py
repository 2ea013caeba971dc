"""From requests to calls of the engine: a bounded queue, small batches, worker threads.

Everything here runs on the event loop, but :func:`compute`, which runs in a worker thread.
"""

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from slmc.server.answering import Opened
from slmc.server.metrics import Metrics
from slmc.server.requests import RequestError
from slmc.server.settings import Settings

Compute = Callable[[Opened, Sequence[Any]], Sequence[Any]]
"""Answers requests of one key; an error of a request is in its place."""


@dataclass(eq=False)
class Job:
    """A request that waits for its answer."""

    key: Hashable
    """Jobs with equal keys can share a call."""
    compute: Compute
    request: Any
    histories: int
    deadline: float
    """Time of the event loop."""
    answer: asyncio.Future[Any]
    arrived: float = field(default_factory=time.monotonic)


class Batcher:
    """The queue of an engine, and its worker threads."""

    def __init__(
        self, name: str, opened: Callable[[], Opened], settings: Settings, metrics: Metrics,
        workers: int,
    ) -> None:  # fmt: skip
        """Take what to call for the engine that is served now; :meth:`start` begins."""
        self.name, self._opened, self._settings, self._metrics = name, opened, settings, metrics
        self.pending = 0
        """Requests that are computed or wait for it."""
        self._waiting: dict[Job, None] = {}
        self._changed = asyncio.Event()
        self._idle = asyncio.Semaphore(workers)
        self._computing = 0
        self._threads = ThreadPoolExecutor(workers, f"slmc-serve-{name}")
        self._loop: asyncio.Task[None] | None = None
        metrics.watch_queue(name, lambda: self.pending)

    def start(self) -> None:
        """Begin to compute."""
        self._loop = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """End; requests that still wait are not answered."""
        if self._loop is not None:
            self._loop.cancel()
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)

    async def answer(
        self, compute: Compute, key: Hashable, request: Any, histories: int, seconds: float
    ) -> Any:
        """The answer to a request.

        Args:
            compute: Answers several requests of one key.
            key: Requests with equal keys can share a call.
            request: What ``compute`` is called with.
            histories: Its number of histories.
            seconds: Time for the answer.

        Raises:
            RequestError: The queue is full (429), the time is over (504), or the request cannot
                be answered.
        """
        if self.pending >= self._settings.queue:
            self._metrics.rejected.labels("queue_full").inc()
            message = f"{self.pending} requests wait; try again"
            raise RequestError(429, message, **{"Retry-After": "1"})
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        job = Job(key, compute, request, histories, deadline, loop.create_future())
        self._waiting[job] = None
        self.pending += 1
        self._changed.set()
        try:
            async with asyncio.timeout_at(deadline):
                return await job.answer
        except TimeoutError:
            self._metrics.rejected.labels("deadline").inc()
            raise RequestError(504, f"no answer within {seconds * 1000:g} ms") from None
        finally:
            self.pending -= 1
            self._waiting.pop(job, None)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._idle.acquire()
            while not self._waiting:
                await self._next_change(None)
            await self._fill()
            jobs = self._take()
            if not jobs:
                self._idle.release()
                continue
            self._computing += 1
            call = loop.run_in_executor(self._threads, _timed, self._opened(), jobs)
            call.add_done_callback(partial(self._deliver, jobs))

    async def _fill(self) -> None:
        """Wait for more jobs while another call is computed; an idle engine does not wait."""
        until = next(iter(self._waiting)).arrived + self._settings.wait_ms / 1000
        while self._computing and self._waiting and len(self._waiting) < self._settings.batch:
            left = until - time.monotonic()
            if left <= 0 or not await self._next_change(left):
                return

    async def _next_change(self, seconds: float | None) -> bool:
        """Wait for the next request or the end of a call; return whether one came in time."""
        self._changed.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def _take(self) -> list[Job]:
        """The oldest job and others that can share its call, oldest first."""
        now = asyncio.get_running_loop().time()
        jobs: list[Job] = []
        histories = 0
        for job in list(self._waiting):
            if job.deadline <= now:  # its own time-out answers it
                del self._waiting[job]
                continue
            if jobs and (
                job.key != jobs[0].key or histories + job.histories > self._settings.batch
            ):
                continue
            jobs.append(job)
            del self._waiting[job]
            histories += job.histories
            if histories >= self._settings.batch:
                break
        return jobs

    def _deliver(
        self, jobs: list[Job], done: "asyncio.Future[tuple[Sequence[Any], float]]"
    ) -> None:
        self._computing -= 1
        self._idle.release()
        self._changed.set()
        if done.cancelled():
            return
        error = done.exception()
        if error is not None:
            answers: Sequence[Any] = [error] * len(jobs)
        else:
            answers, seconds = done.result()
            self._metrics.compute.labels(self.name).observe(seconds)
            self._metrics.histories.labels(self.name).observe(sum(job.histories for job in jobs))
        for job, answer in zip(jobs, answers, strict=True):
            if job.answer.done():
                continue
            if isinstance(answer, BaseException):
                job.answer.set_exception(answer)
            else:
                job.answer.set_result(answer)


def _timed(opened: Opened, jobs: list[Job]) -> tuple[Sequence[Any], float]:
    """Answers of jobs of one key, and the seconds that they took; runs in a worker thread."""
    begin = time.perf_counter()
    answers = jobs[0].compute(opened, [job.request for job in jobs])
    return answers, time.perf_counter() - begin
