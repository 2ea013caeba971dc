"""The queue of an engine: shared calls, deadlines, requests that are given up, errors."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from slmc.server.batching import Batcher
from slmc.server.metrics import Metrics
from slmc.server.requests import RequestError
from slmc.server.settings import Settings

LONG_S = 10.0


class Slow:
    """Answers with ten times the request, once it may; notes what was computed together."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.calls: list[list[int]] = []

    def __call__(self, _: Any, requests: Sequence[int]) -> list[Any]:
        self.calls.append(list(requests))
        assert self.may.wait(LONG_S)
        return [ValueError(one) if one < 0 else 10 * one for one in requests]


@asynccontextmanager
async def batcher(**settings: Any) -> Any:
    made = Batcher("hand", lambda: None, Settings(**settings), Metrics(), workers=1)  # type: ignore[arg-type,return-value]
    made.start()
    yield made
    await made.close()


async def until(condition: Any) -> None:
    async with asyncio.timeout(LONG_S):
        while not condition():
            await asyncio.sleep(0.001)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


@pytest.fixture
def slow() -> Iterator[Slow]:
    made = Slow()
    yield made
    made.may.set()


def test_what_waits_shares_a_call_and_keys_stay_apart(slow: Slow) -> None:
    async def test() -> None:
        async with batcher() as made:
            ask = [
                made.answer(slow, key, one, 1, LONG_S) for one, key in enumerate("aaba", start=1)
            ]
            tasks = [asyncio.create_task(ask[0])]
            await until(lambda: slow.calls)
            tasks += [asyncio.create_task(one) for one in ask[1:]]
            await until(lambda: made.pending == 4)
            slow.may.set()
            assert await asyncio.gather(*tasks) == [10, 20, 30, 40]
            assert slow.calls == [[1], [2, 4], [3]]

    run(test())


def test_a_request_whose_time_is_over_is_answered_504_and_not_computed(slow: Slow) -> None:
    async def test() -> None:
        async with batcher() as made:
            first = asyncio.create_task(made.answer(slow, "a", 1, 1, LONG_S))
            await until(lambda: slow.calls)
            with pytest.raises(RequestError, match="no answer within 20 ms") as caught:
                await made.answer(slow, "a", 2, 1, 0.02)
            assert caught.value.status == 504
            slow.may.set()
            assert await first == 10
            assert await made.answer(slow, "a", 3, 1, LONG_S) == 30
            assert slow.calls == [[1], [3]] and made.pending == 0

    run(test())


def test_a_request_that_is_given_up_is_not_computed_and_frees_its_place(slow: Slow) -> None:
    async def test() -> None:
        async with batcher(queue=2) as made:
            first = asyncio.create_task(made.answer(slow, "a", 1, 1, LONG_S))
            await until(lambda: slow.calls)
            second = asyncio.create_task(made.answer(slow, "a", 2, 1, LONG_S))
            await until(lambda: made.pending == 2)
            with pytest.raises(RequestError) as caught:
                await made.answer(slow, "a", 3, 1, LONG_S)
            assert caught.value.status == 429
            second.cancel()
            await until(lambda: made.pending == 1)
            third = asyncio.create_task(made.answer(slow, "a", 4, 1, LONG_S))
            slow.may.set()
            assert await first == 10 and await third == 40
            assert slow.calls == [[1], [4]]

    run(test())


def test_an_error_belongs_to_its_own_request(slow: Slow) -> None:
    async def test() -> None:
        async with batcher() as made:
            first = asyncio.create_task(made.answer(slow, "a", 1, 1, LONG_S))
            await until(lambda: slow.calls)
            asked = (made.answer(slow, "a", one, 1, LONG_S) for one in (-1, 2))
            both = asyncio.gather(*asked, return_exceptions=True)
            await until(lambda: made.pending == 3)
            slow.may.set()
            assert await first == 10
            wrong, right = await both
            assert isinstance(wrong, ValueError) and right == 20
            assert slow.calls == [[1], [-1, 2]]

    run(test())
