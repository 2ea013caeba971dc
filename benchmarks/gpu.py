"""The table of inference.py on a GPU: ``python benchmarks/gpu.py``.

The 30-layer teacher in PyTorch, bf16, padded to 50; the 4-layer student the same way, packed, and
compiled; ONNX Runtime with CUDA; TensorRT. What cannot be had is left out, with the reason.
``--device cpu`` runs what needs no GPU, to see that it runs.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from inference import ITEMS, ROUNDS, TOP_K, For, describe, engine, model, packed, plain, students
from packing import LENGTH
from timing import machine

from slmc.data.batches import pad_left
from slmc.errors import SlmcError
from slmc.export.config import ExportConfig, TensorrtConfig
from slmc.export.graph import serialize
from slmc.export.reference import activation_scales as calibration
from slmc.export.runtime.bench import Contender
from slmc.export.runtime.engine import GPU, needed
from slmc.export.tensorrt import build as tensorrt
from slmc.export.tensorrt import graph as typed
from slmc.export.tensorrt.runtime import TensorrtEngine
from slmc.export.triton.repository import PLAN
from slmc.model.recommender import SequentialRecommender


def halved(made: SequentialRecommender, device: str) -> SequentialRecommender:
    """In bf16 on a device."""
    return made.to(device=device, dtype=torch.bfloat16)


def compiled(device: str) -> For:
    """The student, compiled; its first answer is asked for here, since that may fail."""
    ready = plain(halved(model(4), device), compiled=True)
    ready(list)[0].top([np.ones(3, dtype=np.int32)])
    return ready


def cuda(folder: Path, precision: str) -> For:
    """The packed engine on ONNX Runtime's CUDA provider."""
    if GPU not in needed("onnxruntime").get_available_providers():
        raise RuntimeError(f"ONNX Runtime has no {GPU}: install onnxruntime-gpu in its place")
    return engine(folder, model(4), precision, spinning=False)


def plan(folder: Path, precision: str) -> For:
    """The student as a TensorRT plan, built for every batch of the table and run here."""
    batches = tuple(ROUNDS)
    config = ExportConfig(top_k=TOP_K, tensorrt=TensorrtConfig(precision=precision, batch=batches))
    made, scales = model(4), dict[str, float]()
    order = tensorrt.planned(config, made, TOP_K, {})
    if precision == "int8":
        rng = np.random.default_rng(0)
        drawn = [rng.integers(1, ITEMS + 1, LENGTH).astype(np.int32) for _ in range(64)]
        scales = calibration.static_scales(made, drawn)
    serialize.save(
        typed.tensorrt_graph(made, TOP_K, precision, {}, scales), folder / tensorrt.TYPED
    )
    built = tensorrt.build(
        order.module, order.flavour, folder / tensorrt.TYPED, order.profiles, config
    )
    (folder / PLAN).parent.mkdir(parents=True, exist_ok=True)
    (folder / PLAN).write_bytes(built)
    describe(folder, made, precision, "padded")
    tensorrt.describe(folder, order.entry(folder))
    run = TensorrtEngine(folder)
    return lambda _: (Contender(lambda histories: run.answer(pad_left(histories))), "")


def contenders(place: Path, device: str) -> dict[str, For]:
    """What is timed; the first is what all are compared with."""
    found = {
        "teacher, 30 layers, PyTorch": plain(halved(model(30), device)),
        "student, 4 layers, PyTorch": plain(halved(model(4), device)),
        "student, packed, PyTorch": packed(halved(model(4), device)),
    }
    perhaps: dict[str, Callable[[], For]] = {
        "student, torch.compile": partial(compiled, device),
        "ONNX Runtime, fp16": partial(cuda, place / "fp16", "fp16"),
        "ONNX Runtime, bf16": partial(cuda, place / "bf16", "bf16"),
        "TensorRT, bf16": partial(plan, place / "plan-bf16", "bf16"),
        "TensorRT, int8": partial(plan, place / "plan-int8", "int8"),
        "TensorRT, fp8": partial(plan, place / "plan-fp8", "fp8"),
    }
    for name, make in perhaps.items():
        try:
            found[name] = make()
        except (SlmcError, RuntimeError) as error:
            print(f"{name} is left out: {str(error).splitlines()[0]}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--batch", type=int, nargs="+", choices=list(ROUNDS), default=list(ROUNDS))
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no GPU here: benchmarks/inference.py times processors.")
    name = torch.cuda.get_device_name() if given.device == "cuda" else "no GPU"
    print(machine(), name)
    rows = students(partial(contenders, device=given.device), given.batch)
    if given.json:
        told = {"machine": machine(), "device": name, "rows": rows}
        given.json.write_text(json.dumps(told, indent=2) + "\n")
