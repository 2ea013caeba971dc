"""Load on ``slmc serve``: ``python benchmarks/serve.py ENGINE``.

The server runs in a process of its own, and wrk (``apt-get install wrk``), in another one, posts
the histories of the test users to ``/recommend`` as fast as they are answered. Three parts:

1. The bare sessions that ``slmc bench`` chooses for throughput, in batches of 32, and the server
   take turns on the same cores. The ratio is requests to histories per second, round by round,
   and the same by processor time, which other processes of a shared machine disturb less.
2. ``--minutes`` at saturation: requests per second, latency, answers by status, and the memory of
   the server.
3. Four times as many connections as the queue is long: every answer is 200 or 429.

It ends with exit 1 if an answer is neither 200 nor 429, a connection breaks, or the server does not
end with exit 0. wrk takes a part of the cores that the server runs on.
"""

import argparse
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import psutil
from timing import machine

from slmc import artefact
from slmc.artefact import Artefact
from slmc.data.dataset import Dataset
from slmc.export.parity import real_histories
from slmc.export.runtime.bench import Draw, drawing
from slmc.export.runtime.engine import Histories, read_description
from slmc.export.runtime.sessions import Pool, Probe
from slmc.pipeline import find
from slmc.serving.catalogue import Catalogue

SCRIPT = Path(__file__).with_suffix(".lua")
BATCH = 32
"""Histories of a call of the bare sessions, as in the tables of ``slmc bench``."""
K = 10
START_S, STOP_S = 120, 30
SAMPLE_S = 1.0
ALLOWED = {"200", "429"}
Rates = tuple[float, float]
"""Histories per second, and per second of the processor."""


@dataclass
class Load:
    """What wrk measured."""

    seconds: float
    statuses: dict[str, int]
    not_connected: int
    broken: int
    timed_out: int
    p50_ms: float
    p99_ms: float
    largest_ms: float

    @property
    def rate(self) -> float:
        """Requests answered with 200 per second."""
        return self.statuses.get("200", 0) / self.seconds

    @property
    def clean(self) -> bool:
        """Whether every request was answered with 200 or 429."""
        failed = self.not_connected + self.broken + self.timed_out
        return not failed and self.statuses.keys() <= ALLOWED

    def __str__(self) -> str:
        """One line of a report."""
        answers = ", ".join(f"{number:,} x {status}" for status, number in self.statuses.items())
        return (
            f"{self.rate:,.0f} requests/s, p50 {self.p50_ms:.1f} ms, p99 {self.p99_ms:.1f} ms, "
            f"slowest {self.largest_ms:.0f} ms; {answers}; {self.not_connected} not connected, "
            f"{self.broken} broken, {self.timed_out} timed out"
        )


@dataclass
class Watch:
    """Memory and processor time of a process and its children, sampled while a block runs."""

    process: psutil.Process
    megabytes: list[float] = field(default_factory=list)
    cores: float = 0.0
    """Mean number of cores that it used."""

    @contextmanager
    def running(self) -> Iterator["Watch"]:
        """Sample until the block ends."""
        end = threading.Event()
        thread = threading.Thread(target=self._sample, args=(end,))
        start, used = time.monotonic(), processor(self.process)
        thread.start()
        try:
            yield self
        finally:
            self.cores = (processor(self.process) - used) / (time.monotonic() - start)
            end.set()
            thread.join()

    def _sample(self, end: threading.Event) -> None:
        while not end.wait(SAMPLE_S):
            running = (self.process, *self.process.children(recursive=True))
            self.megabytes.append(sum(one.memory_info().rss for one in running) / 1e6)

    def __str__(self) -> str:
        """Memory in the first, the middle and the last tenth, and its slope after the first."""
        tenth = max(1, len(self.megabytes) // 10)
        middle = len(self.megabytes) // 2
        parts = (self.megabytes[:tenth], self.megabytes[middle:][:tenth], self.megabytes[-tenth:])
        start, half, last = (statistics.median(part) for part in parts)
        later = np.array(self.megabytes[tenth:])
        slope = np.polyfit(np.arange(later.size) * SAMPLE_S / 60, later, 1)[0]
        return (
            f"{start:.0f} MB in the first tenth, {half:.0f} MB in the middle, {last:.0f} MB in the "
            f"last, {slope:+.2f} MB per minute after the first; {self.cores:.2f} cores"
        )


@contextmanager
def server(
    engines: Sequence[Path | str], log: Path, options: Sequence[str] = ()
) -> Iterator[tuple[str, psutil.Process]]:
    """``slmc serve`` in a process of its own, at a free port; it must end with exit 0."""
    command = [sys.executable, "-m", "slmc", "serve", *map(str, engines), "--port", "0", *options]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        yield _address(process, log), psutil.Process(process.pid)
        process.send_signal(signal.SIGTERM)
        code = process.wait(STOP_S)
        if code:
            sys.exit(f"slmc serve ended with exit {code}:\n{log.read_text()}")
    finally:
        process.kill()
        process.wait()


def _address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        words = [word for word in log.read_text().split() if word.startswith("http://127.0.0.1:")]
        if words:
            return words[0].rstrip(".,/")
        time.sleep(0.1)
    sys.exit(f"slmc serve has not started:\n{log.read_text()}")


def load(url: str, bodies: Path, connections: int, seconds: float) -> Load:
    """Saturate the server with wrk, one thread."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{round(seconds)}s", "--timeout", "30s"]
    command += ["-s", str(SCRIPT), url, "--", str(bodies)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("result ")]
    return Load(**json.loads(line.removeprefix("result ")))


def processor(process: psutil.Process) -> float:
    """Seconds of the processor that a process and its children have used."""
    return sum(sum(one.cpu_times()[:2]) for one in (process, *process.children(recursive=True)))


def bare(pool: Pool, draw: Draw, seconds: float) -> Rates:
    """Histories of bare sessions."""
    start, used, number = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        batches = [batch for _ in range(8) for batch in draw()]
        pool.top_concurrent(batches)
        number += sum(map(len, batches))
    return number / (time.perf_counter() - start), number / (time.process_time() - used)


def write_bodies(file: Path, engine: Artefact, histories: Histories) -> Path:
    """Requests of these histories, a line each, with original ids."""
    rows = read_description(engine.path).num_items
    items = Catalogue.open(engine.path, rows, of_engine=True).items.to_list()
    lines = [
        json.dumps({"history": [items[row - 1] for row in history], "k": K})
        for history in histories
    ]
    file.write_text("\n".join(lines) + "\n")
    return file


def print_ratio(
    serving: Callable[[], Load],
    bare_sessions: Callable[[], Rates],
    process: psutil.Process,
    rounds: int,
) -> list[Load]:
    """Measure the server and the bare sessions in turn, and print their ratio."""
    loads: list[Load] = []
    pairs: list[tuple[Rates, Rates]] = []
    for number in range(rounds):
        before = bare_sessions() if number % 2 else None
        used = processor(process)
        loads.append(serving())
        used = processor(process) - used
        served = loads[-1].rate, loads[-1].statuses.get("200", 0) / used
        pairs.append((served, before or bare_sessions()))
    for place, name in enumerate(("by the clock", "by processor time")):
        ratios = [served[place] / alone[place] for served, alone in pairs]
        mine, other = (statistics.median(pair[side][place] for pair in pairs) for side in (0, 1))
        print(
            f"server / bare {name}: {statistics.median(ratios):.2f} [{min(ratios):.2f}, "
            f"{max(ratios):.2f}]; {mine:,.0f} / {other:,.0f} per second"
        )
    return loads


def measure(folder: Path, given: argparse.Namespace) -> bool:
    """Run the three parts; return whether all answers were 200 or 429."""
    engine = artefact.load(given.engine, kind="engine")
    data = artefact.load(given.data) if given.data else find(engine.manifest.parents["data"])
    if data is None:
        sys.exit("the dataset of the engine is not in the cache: name it with --data")
    histories = real_histories(Dataset.open(data))
    bodies = write_bodies(folder / "bodies.jsonl", engine, histories)
    draw = drawing(histories, BATCH, seed=0)
    probe = Probe(engine.path, given.threads)
    pool = probe.pool(probe.choose(draw).throughput)
    print(f"{machine()}; {given.threads} threads, bare sessions {pool.policy}")
    crowd = 4 * given.queue
    options = ["--threads", str(given.threads), "--queue", str(given.queue)]
    with server([engine.path], folder / "serve.log", options) as (url, process):
        run = partial(load, url, bodies)
        run(given.connections, given.round_s)  # warm-up
        serving = partial(run, given.connections, given.round_s)
        loads = print_ratio(
            serving, partial(bare, pool, draw, given.round_s), process, given.rounds
        )
        with Watch(process).running() as watch:
            loads.append(run(given.connections, 60 * given.minutes))
        print(f"{given.minutes:g} minutes, {given.connections} connections: {loads[-1]}")
        print(f"server: {watch}")
        loads.append(run(crowd, given.round_s))
        print(f"queue of {given.queue}, {crowd} connections: {loads[-1]}")
    return all(one.clean for one in loads)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine", type=Path)
    parser.add_argument("--data", type=Path, help="the dataset; default: from the cache")
    parser.add_argument("--minutes", type=float, default=10, help="at saturation")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--queue", type=int, default=64, help="requests that may wait")
    parser.add_argument("--threads", type=int, default=2, help="of the engine, in both forms")
    parser.add_argument("--rounds", type=int, default=6, help="of the ratio")
    parser.add_argument("--round-s", type=float, default=10, help="seconds of each half of a round")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed: apt-get install wrk")
    with tempfile.TemporaryDirectory() as place:
        sys.exit(0 if measure(Path(place), arguments) else 1)
