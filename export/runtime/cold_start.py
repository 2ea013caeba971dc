"""Cold start and peak memory of an engine or a model, measured in a fresh process.

``python -m slmc.export.runtime.cold_start engine|model PATH THREADS TOP_K`` reads histories from
stdin as JSON and writes ``cold_start_ms`` and ``peak_memory_mb`` to stdout as JSON. The process of
an engine does not import torch, so its memory is that of serving.
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


def measure_process(
    kind: str, path: Path, threads: int, top_k: int, histories: Histories
) -> dict[str, float]:
    """Measure an engine or a model in its own process.

    Args:
        kind: ``engine`` or ``model``.
        path: Its artefact.
        threads: Threads of a call.
        top_k: Number of returned items.
        histories: Rows of the histories of one batch.

    Returns:
        ``cold_start_ms``, from loaded libraries to the first answer (one history), and
        ``peak_memory_mb`` (10^6 bytes) of the process over its life.

    Raises:
        BrokenRunError: The process failed.
    """
    command = [sys.executable, "-m", "slmc.export.runtime.cold_start", kind, str(path)]
    command += [str(threads), str(top_k)]
    stdin = json.dumps([rows.tolist() for rows in histories])
    done = subprocess.run(command, input=stdin, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BrokenRunError(
            f"bench: the process that opens the {kind} {path} failed with exit code "
            f"{done.returncode}: {last}",
            "Check the free memory, and run the same command again.",
        )
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def _main(kind: str, path: str, threads: str, top_k: str) -> None:
    histories = [np.array(rows, dtype=np.int32) for rows in json.load(sys.stdin)]
    load = (_engine if kind == "engine" else _model)(Path(path), int(threads), int(top_k))
    start = time.perf_counter()
    top = load()
    top(histories[:1])
    cold = 1e3 * (time.perf_counter() - start)
    top(histories)
    measured = {"cold_start_ms": round(cold, 1), "peak_memory_mb": round(_peak() / MB, 1)}
    sys.stdout.write(json.dumps(measured))


Top = Callable[[Histories], object]


def _engine(path: Path, threads: int, top_k: int) -> Callable[[], Top]:
    from slmc.export.runtime.engine import Engine, import_extra

    import_extra("onnxruntime")
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
        # getrusage includes the parent's memory before exec; VmHWM does not.
        high_water = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if high_water:
            return int(high_water[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    _main(*sys.argv[1:])
