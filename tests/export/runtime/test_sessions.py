"""Parallel sessions give the answers of one session, and the probe chooses the fastest policy."""

import numpy as np
import pytest

from slmc.artefact import Artefact
from slmc.data.dataset import Dataset
from slmc.export.parity import real_histories
from slmc.export.runtime import sessions
from slmc.export.runtime.engine import Engine, Histories
from slmc.export.runtime.sessions import Policy, Pool, Probe


@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        (1, ["1 x 1"]),
        (2, ["1 x 2", "1 x 1", "2 x 1"]),
        (64, ["1 x 64", "1 x 1", "16 x 4"]),
    ],
)
def test_candidates(cores: int, expected: list[str]) -> None:
    assert [str(policy) for policy in sessions.candidates(cores)] == expected


@pytest.mark.parametrize("number", [1, 2, 3, 40])
def test_a_split_batch_has_the_answers_of_the_whole(
    number: int, dataset: Artefact, packed: Artefact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "CHUNK", 7)
    histories = (real_histories(Dataset.open(dataset)) * 2)[:number]
    rows, scores = Pool(packed.path, Policy(3, 1)).top(histories)
    expected_rows, expected = Engine.open(packed, threads=1).top(histories)
    assert np.abs(scores - expected).max() < 1e-4
    assert (rows == expected_rows).mean() > 0.99  # rounding can change the order of ties


def test_concurrent_batches_keep_their_order(dataset: Artefact, packed: Artefact) -> None:
    histories = real_histories(Dataset.open(dataset))
    batches = [histories[: 1 + n] for n in range(5)]
    answers = Pool(packed.path, Policy(2, 1)).top_concurrent(batches)
    engine = Engine.open(packed, threads=1)
    for (rows, _), batch in zip(answers, batches, strict=True):
        assert np.array_equal(rows, engine.top(batch)[0])


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "latency", "throughput"),
    [
        # seconds of a call by policy; parallel sessions answer one call each in that time
        ({"1 x 2": 1.0, "1 x 1": 1.8, "2 x 1": 1.8}, "1 x 2", "2 x 1"),
        ({"1 x 2": 1.0, "1 x 1": 0.5, "2 x 1": 0.5}, "1 x 1", "2 x 1"),
        ({"1 x 2": 1.0, "1 x 1": 2.1, "2 x 1": 2.1}, "1 x 2", "1 x 2"),
        ({"1 x 2": 1.0, "1 x 1": 0.97, "2 x 1": 1.96}, "1 x 2", "1 x 2"),  # too close to call
    ],
)
def test_the_fastest_is_chosen(
    seconds: dict[str, float],
    latency: str,
    throughput: str,
    packed: Artefact,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(sessions, "time", clock)

    class Timed(Pool):
        def top(self, histories: Histories) -> object:
            clock.now += seconds[str(self.policy)]
            return None

        def top_concurrent(self, batches: list[Histories]) -> object:
            clock.now += seconds[str(self.policy)] * len(batches) / self.policy.sessions
            return None

    monkeypatch.setattr(sessions, "Pool", Timed)
    monkeypatch.setattr(sessions, "BUDGET_S", 1e9)
    one = [[np.array([1], dtype=np.int32)]]
    policies = Probe(packed.path, threads=2).choose(lambda: one)
    assert (str(policies.latency), str(policies.throughput)) == (latency, throughput)


def test_one_core_needs_no_probe(packed: Artefact) -> None:
    def draw() -> list[Histories]:
        raise AssertionError("nothing should be timed")

    assert Probe(packed.path, threads=1).choose(draw).latency == Policy(1, 1)
