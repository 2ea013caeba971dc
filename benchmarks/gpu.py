"""The table of inference.py on a GPU: ``python benchmarks/gpu.py``.

The 30-layer teacher in PyTorch, bf16, padded to 50; the 4-layer student padded, packed and
compiled; ONNX Runtime with CUDA; TensorRT. A contender that is not available is skipped, with the
reason. ``--device cpu`` runs the contenders that need no GPU, as a test of the script.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from inference import (
    ITEMS,
    ROUNDS,
    TOP_K,
    Setup,
    engine,
    model,
    packed,
    plain,
    students,
    write_description,
)
from packing import LENGTH
from timing import machine

from slmc.data.batches import pad_left
from slmc.errors import SlmcError
from slmc.export.config import ExportConfig, TensorrtConfig
from slmc.export.graph import serialize
from slmc.export.reference import activation_scales
from slmc.export.runtime.bench import Contender
from slmc.export.runtime.engine import GPU, import_extra
from slmc.export.tensorrt import build as tensorrt
from slmc.export.tensorrt.graph import tensorrt_graph
from slmc.export.tensorrt.plan import PLAN, PLAN_GRAPH
from slmc.export.tensorrt.runtime import TensorrtEngine
from slmc.model.recommender import SequentialRecommender


def in_bf16(recommender: SequentialRecommender, device: str) -> SequentialRecommender:
    """Move a model to a device, in bf16."""
    return recommender.to(device=device, dtype=torch.bfloat16)


def compiled(device: str) -> Setup:
    """The student, compiled; the first call happens here, since compilation can fail."""
    setup = plain(in_bf16(model(4), device), compiled=True)
    setup(list)[0].top([np.ones(3, dtype=np.int32)])
    return setup


def cuda(folder: Path, precision: str) -> Setup:
    """The packed engine on ONNX Runtime's CUDA provider."""
    if GPU not in import_extra("onnxruntime").get_available_providers():
        raise RuntimeError(f"ONNX Runtime has no {GPU}: install onnxruntime-gpu instead")
    return engine(folder, model(4), precision, spinning=False)


def plan(folder: Path, precision: str) -> Setup:
    """The student as a TensorRT plan, built here for every batch of the table."""
    batches = tuple(ROUNDS)
    config = ExportConfig(top_k=TOP_K, tensorrt=TensorrtConfig(precision=precision, batch=batches))
    student, scales = model(4), dict[str, float]()
    job = tensorrt.prepare_plan(config, student, TOP_K, {})
    if precision == "int8":
        rng = np.random.default_rng(0)
        sample = [rng.integers(1, ITEMS + 1, LENGTH).astype(np.int32) for _ in range(64)]
        scales = activation_scales.static_scales(student, sample)
    graph = tensorrt_graph(student, TOP_K, precision, {}, scales)
    serialize.save(graph, folder / PLAN_GRAPH)
    memory_mb = config.tensorrt.memory_mb
    content = tensorrt.build(job.flavour, folder / PLAN_GRAPH, job.profiles, memory_mb)
    (folder / PLAN).parent.mkdir(parents=True, exist_ok=True)
    (folder / PLAN).write_bytes(content)
    write_description(folder, student, precision, "padded")
    tensorrt.write_entry(folder, job.entry(folder))
    run = TensorrtEngine(folder)
    return lambda _: (Contender(lambda histories: run.answer(pad_left(histories))), "")


def contenders(place: Path, device: str) -> dict[str, Setup]:
    """All contenders; the first is the baseline."""
    setups = {
        "teacher, 30 layers, PyTorch": plain(in_bf16(model(30), device)),
        "student, 4 layers, PyTorch": plain(in_bf16(model(4), device)),
        "student, packed, PyTorch": packed(in_bf16(model(4), device)),
    }
    optional: dict[str, Callable[[], Setup]] = {
        "student, torch.compile": partial(compiled, device),
        "ONNX Runtime, fp16": partial(cuda, place / "fp16", "fp16"),
        "ONNX Runtime, bf16": partial(cuda, place / "bf16", "bf16"),
        "TensorRT, bf16": partial(plan, place / "plan-bf16", "bf16"),
        "TensorRT, int8": partial(plan, place / "plan-int8", "int8"),
        "TensorRT, fp8": partial(plan, place / "plan-fp8", "fp8"),
    }
    for name, make in optional.items():
        try:
            setups[name] = make()
        except (SlmcError, RuntimeError) as error:
            print(f"{name} is skipped: {str(error).splitlines()[0]}")
    return setups


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--batch", type=int, nargs="+", choices=list(ROUNDS), default=list(ROUNDS))
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no GPU here; use benchmarks/inference.py for CPUs.")
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "no GPU"
    print(machine(), name)
    rows = students(partial(contenders, device=arguments.device), arguments.batch)
    if arguments.json:
        report = {"machine": machine(), "device": name, "rows": rows}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
