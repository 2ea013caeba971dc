"""A fresh process that opens an engine or a model and answers once.

``python -m slmc.export.runtime.cold_start engine|model PATH THREADS TOP_K`` reads histories from
stdin as JSON and writes ``cold_start_ms`` and ``peak_memory_mb`` to stdout as JSON. An engine's
process holds no torch, so its memory is that of serving.
"""

import json
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from slmc.errors import BrokenRunError
from slmc.export.runtime.engine import Histories

MB = 1e6


def probe(
    kind: str, path: Path, threads: int, top_k: int, histories: Histories
) -> dict[str, float]:
    """Measure an engine or a model in a process of its own.

    Args:
        kind: ``engine`` or ``model``.
        path: Its artefact.
        threads: Threads of the answer.
        top_k: Items that are given back.
        histories: Rows of the histories that are answered in one batch.

    Returns:
        ``cold_start_ms``, from a process with its libraries loaded to the first answer (one
        history), and ``peak_memory_mb`` (10^6 bytes) of that process over all its life.

    Raises:
        BrokenRunError: The process failed.
    """
    command = [sys.executable, "-m", "slmc.export.runtime.cold_start", kind, str(path)]
    command += [str(threads), str(top_k)]
    given = json.dumps([rows.tolist() for rows in histories])
    done = subprocess.run(command, input=given, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise BrokenRunError(
            f"bench: a process that opens the {kind} {path} ended with {done.returncode}: {last}",
            "Look at whether memory is short; run the same command again.",
        )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _main(kind: str, path: str, threads: str, top_k: str) -> None:
    histories = [np.array(rows, dtype=np.int32) for rows in json.load(sys.stdin)]
    opened = (_engine if kind == "engine" else _model)(Path(path), int(threads), int(top_k))
    start = time.perf_counter()
    top = opened()
    top(histories[:1])
    cold = 1e3 * (time.perf_counter() - start)
    top(histories)
    found = {"cold_start_ms": round(cold, 1), "peak_memory_mb": round(_peak() / MB, 1)}
    sys.stdout.write(json.dumps(found))


Top = Callable[[Histories], object]


def _engine(path: Path, threads: int, top_k: int) -> Callable[[], Top]:
    from slmc.export.runtime.engine import Engine, needed

    needed("onnxruntime")
    return lambda: Engine(path, threads=threads).top


def _model(path: Path, threads: int, top_k: int) -> Callable[[], Top]:
    import torch

    from slmc import artefact
    from slmc.export.runtime.pytorch import PlainModel
    from slmc.model.loading import load_model

    torch.set_num_threads(threads)
    return lambda: PlainModel(load_model(artefact.peek(path)), top_k).top


def _peak() -> float:
    """Largest resident memory of this process, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage counts what the parent held before exec too; VmHWM does not.
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    _main(*sys.argv[1:])
