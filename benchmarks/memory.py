"""Peak memory of distilling: ``python benchmarks/memory.py``.

Prepares a log (Amazon Beauty: 12,101 items, histories of 50), gives a few steps of training to a
SASRec and to a teacher on random layers of SmolLM2's shape, and distils it in a process of its own
with every SLMRec term on: the teacher's states, training steps, validation, checkpoints and the
sealed student. Prints the peak of that process's resident memory (``getrusage``). It includes the
pages of the states that are mapped from disk, which the system takes back where memory is short.

``--limit 4GB`` ends with exit code 1 if more was used. ``--max-cache 0`` runs the teacher at every
step. ``--minutes`` bounds each training; memory does not depend on it.
"""

import argparse
import json
import logging
import multiprocessing
import os
import resource
import sys
import tempfile
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch
from timing import machine

from slmc.artefact import Artefact, load
from slmc.config import parse_size, size_text
from slmc.data.config import PrepareConfig
from slmc.data.prepare import prepare
from slmc.distill.config import DistillConfig, TeachConfig
from slmc.distill.distill import distill
from slmc.distill.teach import teach
from slmc.training.config import SasrecConfig
from slmc.training.pretrain import sasrec

SHORT = {"epochs": 1, "max_minutes": 0.01, "validation_users": 64}


def inputs_of(options: argparse.Namespace, folder: Path) -> dict[str, Artefact]:
    """The dataset and a teacher of a few steps."""
    config = PrepareConfig(
        source=str(options.log), core=5, history=options.history, users=options.users
    )
    data = prepare(config, {}, folder / "data")
    table = sasrec(SasrecConfig.model_validate(SHORT), {"data": data}, folder / "sasrec")
    heads = {"heads": 9, "kv_heads": 3} if options.hidden == 576 else {"heads": 4, "kv_heads": 2}
    sizes = {"layers": options.layers, "hidden": options.hidden, **heads}
    sizes["intermediate"] = 8 * options.hidden // 3
    backbone = "random://llama?" + "&".join(f"{name}={value}" for name, value in sizes.items())
    settings = TeachConfig.model_validate(SHORT | {"backbone": backbone, "must_beat": None})
    teacher = teach(settings, {"data": data, "sasrec": table}, folder / "teacher")
    return {"data": data, "teacher": teacher}


def measure(folder: Path, options: argparse.Namespace, queue: "Queue[float]") -> None:
    """Distil, and put the peak memory of this process in bytes into the queue."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(1)
    config = DistillConfig.model_validate(
        {
            "layers": options.student,
            "blocks": min(4, options.student),
            "losses": {"cosine": 1.0, "norm": 0.1, "supervise": 1.0, "logits": 1.0},
            "epochs": 1,
            "packings": 1,
            "max_minutes": options.minutes,
            "validation_users": options.valid_users,
            "max_cache": options.max_cache,
            "checkpoint_s": 1,
        }
    )
    inputs = {name: load(folder / name) for name in ("data", "teacher")}
    distill(config, inputs, folder / "student")
    queue.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def main() -> int:
    """Measure, print, write."""
    shared = Path(os.environ.get("SLMC_DATA", "../shared/data"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--log", type=Path, default=shared / "amazon-beauty.txt.gz")
    parser.add_argument("--users", type=int, help="take a sample of the users")
    parser.add_argument("--history", type=int, default=50)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--layers", type=int, default=4, help="of the teacher")
    parser.add_argument("--student", type=int, default=2, help="layers of the student")
    parser.add_argument("--minutes", type=float, default=0.5)
    parser.add_argument("--valid-users", type=int, default=512)
    parser.add_argument("--max-cache", default=None)
    parser.add_argument("--limit", default="4GB")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        os.environ["SLMC_CACHE"] = name
        inputs_of(options, Path(name))
        context = multiprocessing.get_context("spawn")
        queue: Any = context.Queue()
        process = context.Process(target=measure, args=(Path(name), options, queue))
        process.start()
        process.join()
        if process.exitcode:
            return 1
        peak = int(queue.get())
    limit = parse_size(options.limit)
    print(f"{machine()}: peak memory of distilling {size_text(peak)} (limit {size_text(limit)})")
    if options.json:
        options.json.write_text(json.dumps({"peak_bytes": peak, "limit_bytes": limit}) + "\n")
    return int(peak > limit)


if __name__ == "__main__":
    sys.exit(main())
