"""Throughput and memory of ``slmc score``: ``python benchmarks/score.py``.

The engine is the 4-layer student of ``benchmarks/inference.py`` in int8, with 12,101 items. Bare
sessions, as ``slmc bench`` chooses them for throughput, and ``slmc score`` answer the same
histories round by round, in one process on the same cores. The ratio is histories per second of
``score``, Parquet in and Parquet out, to those of the bare sessions in batches of 32 and 256. The
fixed cost of a call (opening engine and files), measured with an empty input, is left out and
printed. Processor time is compared as well: on a shared machine it is less noisy.

``--users N`` scores a generated input of N users in a process of its own instead, with an engine
of two narrow layers, and prints its peak memory for N/10 and N users. Lengths are those of Amazon
Beauty if ``SLMC_DATA`` names the folder of its log, else drawn from a similar distribution.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from inference import ITEMS, OPSET, TOP_K, model, write_description
from packing import lengths
from timing import machine

from slmc.artefact import Artefact, draft
from slmc.config import Seeded
from slmc.export import vocabulary
from slmc.export.graph import serialize
from slmc.export.graph.optimize import both_graphs
from slmc.export.runtime.engine import GRAPH, MASKED
from slmc.export.runtime.sessions import Probe
from slmc.model import random_models
from slmc.model.recommender import SequentialRecommender
from slmc.scoring.score import score
from slmc.scoring.settings import Settings

CHUNK_USERS = 200_000
"""Users of the generated input that are made at once."""
SMALL = {"layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "intermediate": 64}
IDS = pl.Series([f"B{row:09d}" for row in range(ITEMS)])
CALL = """
import re, sys
from pathlib import Path
from slmc.commands import cli
code = cli.call(sys.argv[1:])
# ru_maxrss of a new process begins with that of its parent; VmHWM does not.
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())
sys.stderr.write(f"peak {int(peak[1]) / 1024:.0f} MB\\n")
sys.exit(code)
"""


def sealed(student: SequentialRecommender, precision: str, out: Path) -> Artefact:
    """An engine as an artefact, without a parity check."""
    with draft(out) as work:
        (work.path / "onnx").mkdir()
        plain, masked = both_graphs(student, "packed", TOP_K, OPSET, precision, {}, "fp32")
        serialize.save(plain, work.path / GRAPH)
        serialize.save_sharing_weights(masked, work.path / GRAPH, work.path / MASKED)
        write_description(work.path, student, precision, "packed")
        pl.DataFrame(
            {
                "row": pl.Series(range(1, ITEMS + 1), dtype=pl.Int32),
                "item": IDS,
                "count": pl.Series(range(ITEMS, 0, -1), dtype=pl.Int32),
                "title": pl.Series([None] * ITEMS, dtype=pl.String),
            }
        ).write_parquet(work.path / "items.parquet")
        vocabulary.write(work.path / "items.parquet", work.path / vocabulary.FILE)
        return work.seal(kind="engine", stage="export", config=Seeded(), inputs={})


def drawn(users: int, rng: np.random.Generator, sizes: np.ndarray) -> list[np.ndarray]:
    """Histories of random items, of the lengths of Beauty."""
    return [rng.integers(1, ITEMS + 1, n).astype(np.int32) for n in rng.choice(sizes, users)]


def frames(users: int, sizes: np.ndarray) -> Iterator[pl.DataFrame]:
    """A generated input, piece by piece: user and list of items."""
    rng = np.random.default_rng(0)
    for start in range(0, users, CHUNK_USERS):
        number = min(CHUNK_USERS, users - start)
        counts = rng.choice(sizes, number)
        flat = IDS.gather(rng.integers(0, ITEMS, int(counts.sum())))
        owner = pl.Series("user", np.repeat(np.arange(start, start + number), counts))
        rows = pl.DataFrame({"user": owner, "items": flat})
        yield rows.group_by("user", maintain_order=True).agg("items")


def as_frame(histories: list[np.ndarray]) -> pl.DataFrame:
    """Histories as an input of ``slmc score``."""
    lists = [IDS.gather(rows - 1).to_list() for rows in histories]
    return pl.DataFrame({"user": range(len(histories)), "items": lists})


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock, and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - clock, time.process_time() - processor


def ratios(folder: Path, users: int, rounds: int, threads: int) -> None:
    """Print how fast ``score`` is beside bare sessions."""
    engine, rng, sizes = (
        sealed(model(4), "int8", folder / "engine"),
        np.random.default_rng(0),
        lengths(),
    )
    probe = Probe(engine.path, threads)
    pool = probe.pool(probe.choose(lambda: [drawn(32, rng, sizes) for _ in range(4)]).throughput)
    empty = folder / "empty.parquet"
    as_frame([]).write_parquet(empty)

    def scoring(file: Path, **options: Any) -> object:
        settings = Settings(str(file), str(folder / "top.parquet"), threads=threads, force=True)
        return score(engine, Settings(**{**vars(settings), **options}))

    results: dict[str, list[tuple[float, float]]] = {}
    for number in range(rounds + 1):
        histories = drawn(users, rng, sizes)
        as_frame(histories).write_parquet(folder / "h.parquet")
        calls: dict[str, Callable[[], object]] = {
            f"bare, batch {batch}": partial(
                pool.top_concurrent,
                [histories[start : start + batch] for start in range(0, users, batch)],
            )
            for batch in (32, 256)
        }
        calls["fixed"] = partial(scoring, empty)
        calls["score"] = partial(scoring, folder / "h.parquet")
        calls["score, seen excluded"] = partial(scoring, folder / "h.parquet", exclude_seen=True)
        order = list(calls) if number % 2 else list(reversed(calls))
        for name in order:
            seconds = timed(calls[name])
            if number:  # the first round is a warm-up
                results.setdefault(name, []).append(seconds)
    print(f"{machine()}; {users:,} histories, {rounds} rounds, sessions {pool.policy}")
    fixed = [statistics.median(one[i] for one in results["fixed"]) for i in range(2)]
    print(f"fixed cost of a call: {fixed[0]:.1f} s")
    for name in ("score", "score, seen excluded"):
        for base in ("bare, batch 32", "bare, batch 256"):
            pairs = list(zip(results[name], results[base], strict=True))
            clock, processor = (
                [bare[i] / (scored[i] - fixed[i]) for scored, bare in pairs] for i in range(2)
            )
            print(
                f"{name} / {base}: {statistics.median(clock):.2f} [{min(clock):.2f}, "
                f"{max(clock):.2f}] by the clock, {statistics.median(processor):.2f} by processor"
            )
    rates = [users / seconds for seconds, _ in results["bare, batch 32"]]
    print(f"bare, batch 32: {statistics.median(rates):,.0f} histories per second")


def memory(folder: Path, users: int, threads: int) -> None:
    """Print the peak memory of ``slmc score`` for a tenth of the users and for all."""
    torch.manual_seed(0)
    shape = {"num_items": ITEMS, "item_dim": 32}
    small = random_models.recommender(decoder=SMALL, **shape)
    engine, sizes = sealed(small.eval(), "int8", folder / "engine"), lengths()
    for number in (users // 10, users):
        parts = folder / "input"
        parts.mkdir(exist_ok=True)
        for place, frame in enumerate(frames(number, sizes)):
            frame.write_parquet(parts / f"{place:04}.parquet")
        arguments = ["score", str(engine.path), "-i", f"{parts}/*.parquet", "--force", "--json"]
        arguments += ["-o", str(folder / "top.parquet"), "--threads", str(threads), "-q"]
        done = subprocess.run(
            [sys.executable, "-c", CALL, *arguments], capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(done.stderr)
        seconds = json.loads(done.stdout)["seconds"]
        print(f"{number:,} users: {done.stderr.strip()}, {seconds:.0f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, help="measure memory with this many users")
    parser.add_argument("--histories", type=int, default=8192, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        if arguments.users:
            memory(Path(place), arguments.users, arguments.threads)
        else:
            ratios(Path(place), arguments.histories, arguments.rounds, arguments.threads)
