"""Time an engine on real histories, side by side with a model in PyTorch.

Engine and baseline answer the same histories in turn, round by round, in one process with the
same number of cores, so that what else the machine does meets both.
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
from slmc.export.runtime.cold_start import probe
from slmc.export.runtime.engine import Histories, cores, describe
from slmc.export.runtime.pytorch import PlainModel
from slmc.export.runtime.sessions import Chosen, Probe, repeated, seconds_of, settled
from slmc.export.vocabulary import check_same
from slmc.model.loading import load_model

BUDGET_S = 20.0
"""Seconds that one batch size may take, about; rounds are cut to fit."""
HISTORIES = 8
"""Histories that a round answers at least: several calls of small batches."""
PAUSE_S = 0.01
"""Seconds between contenders: the threads of the one that waits go on spinning for a while."""
FEWEST = 3
"""Rounds that are timed however long they take."""
PROTOCOL = (
    "Each round draws histories of test users by the seed; engine and baseline answer the same "
    "ones in turn, the order changing from round to round. The engine gets them padded to the "
    "longest of the batch, the baseline (PyTorch, SDPA attention, top-k included) padded to the "
    "model's history. Each is asked the same again until a tenth of a second has passed, and the "
    "last pass counts: caches hold its weights then, as in service. "
    "Latency is the time of one call with rows as NumPy arrays in and out; of "
    "fewer than 100 calls p99 is nearly the slowest. Throughput is histories over the sum of these "
    "times, or over the time of sessions that answer the same calls side by side, where the probe "
    "chose so. A batch is cut among sessions, by length, where the probe found that sooner. Cold "
    "start (open and answer one history, libraries loaded) and peak memory are those of a fresh "
    "process for each, of one session on all cores."
)

Answer = Callable[[Histories], object]
Draw = Callable[[], list[Histories]]


@dataclass(frozen=True)
class Contender:
    """Something that answers batches."""

    top: Answer
    """One batch, as soon as it can."""
    top_each: Callable[[list[Histories]], object] | None = None
    """Several side by side, if that is faster than one after the other."""
    side: int = 1
    """How many it answers side by side."""


@dataclass
class Taken:
    """What a contender took."""

    seconds: list[list[float]] = field(default_factory=list)
    """Of each call, by round."""
    rates: list[float] = field(default_factory=list)
    """Histories a second of each round, calls side by side where there are any."""


log = logging.getLogger("slmc.bench")


def bench(config: BenchConfig, inputs: dict[str, Artefact], out: Path) -> Artefact:
    """Time an engine, and the model in the role ``baseline`` if there is one: a report.

    Raises:
        UsageError: Engine or baseline number other items than the dataset.
        UndecidedError: The dataset holds no history.
        ArtefactError: ONNX Runtime cannot run the engine.
    """
    for role in ("engine", "baseline"):
        if role in inputs:
            check_same(inputs[role], inputs["data"])
    histories = real_histories(Dataset.open(inputs["data"]))
    threads = config.threads or cores()
    engine = describe(inputs["engine"].path)
    baseline = {}
    if "baseline" in inputs:
        model = load_model(inputs["baseline"])
        baseline = {"baseline": Contender(PlainModel(model, engine.top_k).top)}
    with draft(out) as work, _threads(threads):
        sessions = Probe(inputs["engine"].path, threads, spinning=config.spinning)
        batches = {}
        for batch in sorted(set(config.batch)):
            chosen = sessions.choose(drawing(histories, batch, config.seed))
            contenders = {"engine": contender(sessions, chosen)} | baseline
            found = time_batch(contenders, histories, batch, engine.history, config)
            found["sessions"] = {name: str(policy) for name, policy in vars(chosen).items()}
            batches[str(batch)] = found
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


def contender(sessions: Probe, chosen: Chosen) -> Contender:
    """An engine in the sessions that were chosen for a batch size."""
    soonest, most = sessions.pool(chosen.latency), sessions.pool(chosen.throughput)
    if most.policy.sessions == 1:
        return Contender(soonest.top)
    return Contender(soonest.top, most.top_each, most.policy.sessions)


def drawing(histories: Histories, batch: int, seed: int) -> Draw:
    """Draws the batches of a round, others each time it is called."""
    rng = np.random.default_rng((seed, batch))
    calls = math.ceil(HISTORIES / batch)
    return lambda: [_drawn(histories, batch, rng) for _ in range(calls)]


def time_batch(
    contenders: Mapping[str, Contender],
    histories: Histories,
    batch: int,
    padded: int,
    config: BenchConfig,
) -> dict[str, Any]:
    """Time the contenders, in turn, on batches of one size.

    Args:
        contenders: Name -> what answers; ``engine``, and ``baseline`` if there is one.
        histories: Drawn from, with replacement only if there are fewer than a batch.
        batch: Histories of a call.
        padded: Length that the baseline pads to, for the share of padding.
        config: Rounds, warm-up and seed.

    Returns:
        For each contender ``latency_ms`` (p50, p95, p99) and ``throughput`` (histories/s); how
        many ``rounds`` and ``calls`` there really were; ``mean_length`` of the histories and the
        share of ``padding`` at full length; ``speedup``, the ratio of the baseline's median to
        the engine's, and ``speedup_range``, the 10 and 90 % quantiles of that ratio by rounds.
    """
    draw = drawing(histories, batch, config.seed)
    _warm_up(contenders, draw, config.warmup)
    taken, lengths = _rounds(contenders, draw, config.rounds, f"bench, batch {batch}")
    seconds = {name: np.array(one.seconds) for name, one in taken.items()}
    mean = float(np.mean(lengths))
    return {
        "rounds": len(seconds["engine"]),
        "calls": seconds["engine"].size,
        "mean_length": round(mean, 2),
        "padding": round(1 - mean / padded, 4),
        **{name: summary(seconds[name], taken[name].rates) for name in taken},
        **(_speedup(seconds) if "baseline" in seconds else {}),
    }


def summary(seconds: NDArray[np.float64], rates: list[float]) -> dict[str, Any]:
    """Latency of calls that took ``seconds [rounds, calls]``, and the mean of rounds' rates.

    The mean is the harmonic one, as of rounds that answer equally many: histories over seconds.
    """
    p50, p95, p99 = 1e3 * np.percentile(seconds, (50, 95, 99))
    return {
        "latency_ms": {"p50": round(p50, 3), "p95": round(p95, 3), "p99": round(p99, 3)},
        "throughput": round(len(rates) / sum(1 / rate for rate in rates), 1),
    }


def machine() -> dict[str, Any]:
    """What it was timed on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": cores(),
        "system": platform.system(),
    }


def _warm_up(contenders: Mapping[str, Contender], draw: Draw, rounds: int) -> None:
    """One untimed round, and ``rounds`` more if they are short."""
    start = time.perf_counter()
    _round(contenders, draw())
    first = time.perf_counter() - start
    for _ in range(min(rounds, int(BUDGET_S / 4 / first))):
        _round(contenders, draw())


def _rounds(
    contenders: Mapping[str, Contender], draw: Draw, rounds: int, task: str
) -> tuple[dict[str, Taken], list[int]]:
    """What each contender took, and the lengths of the histories answered."""
    taken = {name: Taken() for name in contenders}
    lengths: list[int] = []
    start = time.perf_counter()
    for number in range(rounds):
        if number >= FEWEST and time.perf_counter() - start > BUDGET_S:
            log.info("%s: %d rounds instead of %d", task, number, rounds)
            break
        drawn = draw()
        lengths += [rows.size for one in drawn for rows in one]
        order = dict(reversed(list(contenders.items()))) if number % 2 else contenders
        for name, (seconds, rate) in _round(order, drawn).items():
            taken[name].seconds.append(seconds)
            taken[name].rates.append(rate)
        done = {"task": task, "done": number + 1, "total": rounds, "unit": "rounds"}
        log.debug("progress", extra={"progress": done})
    return taken, lengths


def _round(
    contenders: Mapping[str, Contender], drawn: list[Histories]
) -> dict[str, tuple[list[float], float]]:
    """Seconds of each call and histories a second, by contender."""
    found = {}
    for name, one in contenders.items():
        time.sleep(PAUSE_S)
        found[name] = turn(one, drawn)
    return found


def turn(one: Contender, drawn: list[Histories]) -> tuple[list[float], float]:
    """Seconds of each call, and histories a second, once its weights are what the caches hold."""
    took = settled(lambda: [seconds_of(partial(one.top, histories)) for histories in drawn])
    if one.top_each is None:
        return took, sum(map(len, drawn)) / sum(took)
    many = repeated(drawn, 2 * one.side)
    whole = settled(partial(seconds_of, partial(one.top_each, many)))
    return took, sum(map(len, many)) / whole


def _drawn(histories: Histories, batch: int, rng: np.random.Generator) -> Histories:
    chosen = rng.choice(len(histories), batch, replace=len(histories) < batch)
    return [histories[index] for index in chosen]


def _speedup(taken: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    engine, baseline = taken["engine"], taken["baseline"]
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
) -> dict[str, Any]:
    """Cold start and memory of each contender, at the largest batch."""
    drawn = _drawn(histories, max(config.batch), np.random.default_rng(config.seed))
    kinds = {"engine": "engine", "baseline": "model"}
    return {
        name: probe(kind, inputs[name].path, threads, top_k, drawn)
        for name, kind in kinds.items()
        if name in inputs
    }


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Let torch use so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
