"""Time an engine on real histories, interleaved with a model in PyTorch.

Engine and baseline answer the same histories alternately, round by round, in one process with the
same number of cores, so that other load on the machine affects both.
"""

import json
import logging
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from slmc.artefact import Artefact, draft
from slmc.data.dataset import Dataset
from slmc.export.config import BenchConfig
from slmc.export.parity import real_histories
from slmc.export.runtime.cold_start import measure_process
from slmc.export.runtime.engine import Histories, cores, read_description
from slmc.export.runtime.pytorch import PlainModel
from slmc.export.runtime.sessions import (
    BestPolicies,
    Probe,
    repeat_until_settled,
    repeated,
    seconds_of,
)
from slmc.export.vocabulary import check_items_first
from slmc.model.loading import load_model

BUDGET_S = 20.0
"""Approximate seconds per batch size; further rounds are skipped."""
HISTORIES = 8
"""Smallest number of histories in a round: several calls if the batch is small."""
PAUSE_S = 0.01
"""Pause between contenders, since threads of the previous one still spin for a while."""
FEWEST = 3
"""Smallest number of timed rounds, even over the budget."""
PROTOCOL = (
    "Each round draws histories of test users with the seed. Engine and baseline answer the same "
    "histories, one after the other; the order alternates from round to round. The engine gets "
    "histories padded to the longest of the batch; the baseline (PyTorch, SDPA attention, with "
    "top-k) gets them padded to the model's history. Each repeats its calls for a tenth of a "
    "second, and the last pass counts: then the caches hold its weights, as in service. "
    "Latency is the time of one call with NumPy arrays as input and output; with "
    "fewer than 100 calls p99 is nearly the slowest. Throughput is histories divided by the sum of "
    "these times, or by the time of parallel sessions for the same calls if the probe chose "
    "several sessions. A batch is split over sessions by length if the probe measured a lower "
    "latency. Cold start (open and answer one history, libraries loaded) and peak memory are "
    "measured in a fresh process for each, with one session on all cores."
)

Answer = Callable[[Histories], object]
Draw = Callable[[], list[Histories]]


@dataclass(frozen=True)
class Contender:
    """Anything that answers batches."""

    top: Answer
    """Answers one batch with the lowest latency."""
    top_concurrent: Callable[[list[Histories]], object] | None = None
    """Answers several batches concurrently, if that has a higher throughput."""
    concurrency: int = 1
    """Number of batches that it answers at a time."""


@dataclass
class Timings:
    """Measured times of a contender."""

    seconds: list[list[float]] = field(default_factory=list)
    """Seconds of each call, by round."""
    rates: list[float] = field(default_factory=list)
    """Histories per second of each round, with concurrent calls if the contender has them."""


log = logging.getLogger("slmc.bench")


def bench(config: BenchConfig, inputs: dict[str, Artefact], out: Path) -> Artefact:
    """Time an engine, and the model in the role ``baseline`` if there is one; write a report.

    Raises:
        UsageError: Engine or baseline have other items than the dataset.
        UndecidedError: The dataset has no history.
        ArtefactError: ONNX Runtime cannot run the engine.
    """
    for role in ("engine", "baseline"):
        if role in inputs:
            check_items_first(inputs[role], inputs["data"])
    histories = real_histories(Dataset.open(inputs["data"]))
    threads = config.threads or cores()
    engine = read_description(inputs["engine"].path)
    baseline = {}
    if "baseline" in inputs:
        model = load_model(inputs["baseline"])
        baseline = {"baseline": Contender(PlainModel(model, engine.top_k).top)}
    with draft(out) as work, _threads(threads):
        probe = Probe(inputs["engine"].path, threads, spinning=config.spinning)
        batches = {}
        for batch in sorted(set(config.batch)):
            policies = probe.choose(drawing(histories, batch, config.seed))
            contenders = {"engine": engine_contender(probe, policies)} | baseline
            row = time_batch(contenders, histories, batch, engine.history, config)
            row["sessions"] = {name: str(policy) for name, policy in vars(policies).items()}
            batches[str(batch)] = row
        metrics = {
            "threads": threads,
            "machine": machine(),
            "top_k": engine.top_k,
            "protocol": PROTOCOL,
            "process": _processes(inputs, histories, engine.top_k, threads, config),
            "batches": batches,
        }
        (work.path / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
        return work.seal(
            kind="report",
            stage="bench",
            config=config,
            inputs=inputs,
            metrics=metrics,
        )


def engine_contender(probe: Probe, policies: BestPolicies) -> Contender:
    """An engine with the sessions that were chosen for a batch size."""
    latency, throughput = probe.pool(policies.latency), probe.pool(policies.throughput)
    if throughput.policy.sessions == 1:
        return Contender(latency.top)
    return Contender(latency.top, throughput.top_concurrent, throughput.policy.sessions)


def drawing(histories: Histories, batch: int, seed: int) -> Draw:
    """Return a function that draws the batches of a round, different ones on each call."""
    rng = np.random.default_rng((seed, batch))
    calls = math.ceil(HISTORIES / batch)
    return lambda: [_sample(histories, batch, rng) for _ in range(calls)]


def time_batch(
    contenders: Mapping[str, Contender],
    histories: Histories,
    batch: int,
    padded: int,
    config: BenchConfig,
) -> dict[str, Any]:
    """Time the contenders, interleaved, on batches of one size.

    Args:
        contenders: By name; ``engine``, and ``baseline`` if there is one.
        histories: Histories to draw from, with replacement only if there are fewer than a batch.
        batch: Histories per call.
        padded: Length to which the baseline pads, for the share of padding.
        config: Rounds, warm-up and seed.

    Returns:
        For each contender ``latency_ms`` (p50, p95, p99) and ``throughput`` (histories/s); the
        numbers of timed ``rounds`` and ``calls``; ``mean_length`` of the histories and the share of
        ``padding`` at full length; ``speedup``, the ratio of the baseline's median to the engine's,
        and ``speedup_range``, the 10 and 90 % quantiles of that ratio over rounds.
    """
    draw = drawing(histories, batch, config.seed)
    _warm_up(contenders, draw, config.warmup)
    timings, lengths = _time_rounds(contenders, draw, config.rounds, f"bench, batch {batch}")
    seconds = {name: np.array(one.seconds) for name, one in timings.items()}
    mean = float(np.mean(lengths))
    return {
        "rounds": len(seconds["engine"]),
        "calls": seconds["engine"].size,
        "mean_length": round(mean, 2),
        "padding": round(1 - mean / padded, 4),
        **{name: summary(seconds[name], timings[name].rates) for name in timings},
        **(_speedup(seconds) if "baseline" in seconds else {}),
    }


def summary(seconds: NDArray[np.float64], rates: list[float]) -> dict[str, Any]:
    """Latency percentiles of ``seconds [rounds, calls]``, and the harmonic mean of the rates.

    All rounds have the same number of histories, so this mean is all histories over all seconds.
    """
    p50, p95, p99 = 1e3 * np.percentile(seconds, (50, 95, 99))
    return {
        "latency_ms": {"p50": round(p50, 3), "p95": round(p95, 3), "p99": round(p99, 3)},
        "throughput": round(len(rates) / sum(1 / rate for rate in rates), 1),
    }


def machine() -> dict[str, str | int]:
    """Processor, cores and system of this machine."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": cores(),
        "system": platform.system(),
    }


def _warm_up(contenders: Mapping[str, Contender], draw: Draw, rounds: int) -> None:
    """Run one untimed round, and up to ``rounds`` more if they are short."""
    start = time.perf_counter()
    _round(contenders, draw())
    first = time.perf_counter() - start
    for _ in range(min(rounds, int(BUDGET_S / 4 / first))):
        _round(contenders, draw())


def _time_rounds(
    contenders: Mapping[str, Contender], draw: Draw, rounds: int, task: str
) -> tuple[dict[str, Timings], list[int]]:
    """Return the timings of each contender, and the lengths of the histories."""
    timings = {name: Timings() for name in contenders}
    lengths: list[int] = []
    start = time.perf_counter()
    for number in range(rounds):
        if number >= FEWEST and time.perf_counter() - start > BUDGET_S:
            log.info("%s: %d rounds instead of %d", task, number, rounds)
            break
        batches = draw()
        lengths += [rows.size for histories in batches for rows in histories]
        order = dict(reversed(list(contenders.items()))) if number % 2 else contenders
        for name, (seconds, rate) in _round(order, batches).items():
            timings[name].seconds.append(seconds)
            timings[name].rates.append(rate)
        done = {"task": task, "done": number + 1, "total": rounds, "unit": "rounds"}
        log.debug("progress", extra={"progress": done})
    return timings, lengths


def _round(
    contenders: Mapping[str, Contender], batches: list[Histories]
) -> dict[str, tuple[list[float], float]]:
    """Return the seconds of each call and the histories per second, by contender."""
    results = {}
    for name, contender in contenders.items():
        time.sleep(PAUSE_S)
        results[name] = time_calls(contender, batches)
    return results


def time_calls(contender: Contender, batches: list[Histories]) -> tuple[list[float], float]:
    """Return the seconds of each call and the histories per second, measured with warm caches."""
    seconds = repeat_until_settled(
        lambda: [seconds_of(partial(contender.top, histories)) for histories in batches]
    )
    if contender.top_concurrent is None:
        return seconds, sum(map(len, batches)) / sum(seconds)
    many = repeated(batches, 2 * contender.concurrency)
    total = repeat_until_settled(partial(seconds_of, partial(contender.top_concurrent, many)))
    return seconds, sum(map(len, many)) / total


def _sample(histories: Histories, batch: int, rng: np.random.Generator) -> Histories:
    chosen = rng.choice(len(histories), batch, replace=len(histories) < batch)
    return [histories[index] for index in chosen]


def _speedup(seconds: dict[str, NDArray[np.float64]]) -> dict[str, float | list[float]]:
    engine, baseline = seconds["engine"], seconds["baseline"]
    paired = np.median(baseline, axis=1) / np.median(engine, axis=1)
    return {
        "speedup": round(float(np.median(baseline) / np.median(engine)), 2),
        "speedup_range": [round(float(q), 2) for q in np.quantile(paired, (0.1, 0.9))],
    }


def _processes(
    inputs: dict[str, Artefact],
    histories: Histories,
    top_k: int,
    threads: int,
    config: BenchConfig,
) -> dict[str, dict[str, float]]:
    """Measure cold start and memory of each contender, at the largest batch."""
    sample = _sample(histories, max(config.batch), np.random.default_rng(config.seed))
    kinds = {"engine": "engine", "baseline": "model"}
    return {
        name: measure_process(kind, inputs[name].path, threads, top_k, sample)
        for name, kind in kinds.items()
        if name in inputs
    }


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Let torch use ``number`` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
