import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slmc.artefact import Artefact
from slmc.data.dataset import Dataset
from slmc.errors import BrokenRunError
from slmc.export.config import BenchConfig
from slmc.export.parity import real_histories
from slmc.export.runtime import bench as stage
from slmc.export.runtime import sessions
from slmc.export.runtime.cold_start import measure_process
from slmc.export.runtime.engine import Engine
from slmc.export.runtime.pytorch import PlainModel, plain_user_vectors
from slmc.model.loading import load_model

HISTORY = 12
ITEMS = 30
"""As conftest.py makes them."""
Place = Callable[[str], Path]


CLOSE = 1e-4
"""User vectors have a spread near 1, and two forms of attention differ by float32 rounding."""


@pytest.mark.parametrize("kind", ["model", "prompted", "sasrec"])
def test_the_baseline_is_the_same_model(kind: str, request: pytest.FixtureRequest) -> None:
    artefact = request.getfixturevalue(kind)
    model, plain = load_model(artefact), PlainModel(load_model(artefact), top_k=5)
    item_ids = torch.randint(1, ITEMS + 1, (6, HISTORY), generator=torch.Generator().manual_seed(0))
    for row in range(6):
        item_ids[row, : 2 * row] = 0
    with torch.inference_mode():
        expected = model.user_vectors(item_ids)
        actual = plain_user_vectors(plain.model, item_ids)
    assert (actual - expected).abs().max() < CLOSE


def test_the_baseline_gives_the_answers_of_the_engine(model: Artefact, packed: Artefact) -> None:
    histories = [np.arange(1, 6, dtype=np.int32), np.array([7], dtype=np.int32)]
    rows, scores = PlainModel(load_model(model), top_k=10).top(histories)
    engine_rows, engine_scores = Engine.open(packed).top(histories)
    assert np.abs(scores - engine_scores).max() < 10 * CLOSE
    assert [set(top) for top in rows] == [set(top) for top in engine_rows]


@pytest.fixture(scope="module")
def report(dataset: Artefact, packed: Artefact, model: Artefact, place: Place) -> Artefact:
    inputs = {"data": dataset, "engine": packed, "baseline": model}
    before = torch.get_num_threads()
    sealed = stage.bench(BenchConfig(batch=(4, 1), rounds=3, threads=1), inputs, place("bench"))
    assert torch.get_num_threads() == before
    return sealed


def test_the_report(report: Artefact) -> None:
    metrics: dict[str, Any] = json.loads((report.path / "metrics.json").read_text())
    assert metrics == report.manifest.metrics
    assert metrics["threads"] == 1
    assert metrics["machine"]["processor"] and metrics["machine"]["cores"] >= 1
    assert list(metrics["batches"]) == ["1", "4"]
    for batch, calls in (("1", 24), ("4", 6)):
        cell = metrics["batches"][batch]
        assert (cell["rounds"], cell["calls"]) == (3, calls)
        for name in ("engine", "baseline"):
            latency = cell[name]["latency_ms"]
            assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"]
            assert cell[name]["throughput"] > 0
        ratio = cell["baseline"]["latency_ms"]["p50"] / cell["engine"]["latency_ms"]["p50"]
        assert cell["speedup"] == pytest.approx(ratio, rel=0.02)
        low, high = cell["speedup_range"]
        assert 0 < low <= high
        assert 1 <= cell["mean_length"] <= HISTORY
        assert cell["sessions"] == {"latency": "1 x 1", "throughput": "1 x 1"}
        assert cell["padding"] == pytest.approx(1 - cell["mean_length"] / HISTORY, abs=1e-3)


def test_memory_is_measured_in_separate_processes(report: Artefact) -> None:
    process = report.manifest.metrics["process"]
    # Only the baseline imports torch.
    assert 0 < process["engine"]["peak_memory_mb"] < process["baseline"]["peak_memory_mb"]
    assert process["engine"]["cold_start_ms"] > 0


def test_an_engine_alone(dataset: Artefact, packed: Artefact, place: Place) -> None:
    config = BenchConfig(batch=(2,), rounds=3, threads=1)
    report = stage.bench(config, {"data": dataset, "engine": packed}, place("alone"))
    assert set(report.manifest.metrics["process"]) == {"engine"}
    assert "baseline" not in report.manifest.metrics["batches"]["2"]
    assert "speedup" not in report.manifest.metrics["batches"]["2"]


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    for module in (stage, sessions):
        monkeypatch.setattr(module, "time", fake)
    return fake


def test_rounds_are_interleaved_and_cut_to_the_budget(dataset: Artefact, clock: Clock) -> None:
    order = []

    def contender(name: str, seconds: float) -> stage.Contender:
        def answer(histories: Any) -> None:
            order.append((name, [rows.tolist() for rows in histories]))
            clock.now += seconds

        return stage.Contender(answer)

    contenders = {"engine": contender("engine", 0.5), "baseline": contender("baseline", 3.5)}
    histories = real_histories(Dataset.open(dataset))
    cell = stage.time_batch(contenders, histories, 8, HISTORY, BenchConfig(rounds=50))
    assert cell["rounds"] == 6  # 20 s of budget, 4 s a round, and the one that goes beyond
    assert cell["engine"] == {
        "latency_ms": {"p50": 500.0, "p95": 500.0, "p99": 500.0}, "throughput": 16.0,
    }  # fmt: skip
    assert cell["speedup"] == 7.0 and cell["speedup_range"] == [7.0, 7.0]
    names = [name for name, _ in order[-12:]]
    assert names == ["engine", "baseline", "baseline", "engine"] * 3
    for first, second in zip(order[::2], order[1::2], strict=True):
        assert first[1] == second[1]


def test_percentiles_by_hand() -> None:
    seconds = np.arange(1, 102).reshape(101, 1) / 1000
    assert stage.summary(seconds, [10.0, 40.0]) == {
        "latency_ms": {"p50": 51.0, "p95": 96.0, "p99": 100.0},
        "throughput": 16.0,
    }


def test_the_first_calls_with_cold_caches_do_not_count(clock: Clock) -> None:
    seconds = iter([0.09, 0.02] * 50)

    def engine(_: Any) -> None:
        clock.now += next(seconds)

    def baseline(_: Any) -> None:
        clock.now += 0.5  # longer than the caches take to settle: once is enough

    contenders = {"engine": stage.Contender(engine), "baseline": stage.Contender(baseline)}
    histories = [np.array([1], dtype=np.int32)] * 9
    cell = stage.time_batch(contenders, histories, 8, HISTORY, BenchConfig(rounds=3, warmup=0))
    assert cell["engine"]["latency_ms"] == {"p50": 20.0, "p95": 20.0, "p99": 20.0}
    assert cell["baseline"]["latency_ms"]["p50"] == 500.0
    assert next(seconds) == 0.09 and clock.now == pytest.approx(4 * (0.11 + 0.5))


def test_throughput_is_that_of_concurrent_calls(clock: Clock) -> None:
    def one(histories: Any) -> None:
        clock.now += 2.0

    def each(batches: Any) -> None:
        assert [len(histories) for histories in batches] == [8, 8, 8, 8]
        clock.now += 4.0

    contenders = {"engine": stage.Contender(one, each, concurrency=2)}
    histories = [np.array([1], dtype=np.int32)] * 9
    cell = stage.time_batch(contenders, histories, 8, HISTORY, BenchConfig(rounds=3))
    assert cell["engine"]["latency_ms"]["p50"] == 2000.0
    assert cell["engine"]["throughput"] == 8.0


def test_a_process_that_fails_is_an_error(dataset: Artefact) -> None:
    with pytest.raises(BrokenRunError) as caught:
        measure_process("engine", dataset.path, 1, 5, [np.array([1], dtype=np.int32)])
    assert str(caught.value).startswith(
        f"bench: the process that opens the engine {dataset.path} failed with exit code 1: "
    )
