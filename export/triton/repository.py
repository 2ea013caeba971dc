"""A model repository for Triton Inference Server, ``triton/`` in an engine.

    recommender/            Python backend: original ids in and out
    recommender_onnx/       ONNX Runtime backend: row numbers in and out
    recommender_tensorrt/   TensorRT backend, where a plan was built

Each folder stands alone, so any of them can be served without the others.
Letters: V items, k items given back.
"""

import json
import os
import shutil
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slmc.errors import VerdictError
from slmc.export.config import ExportConfig, TritonConfig
from slmc.export.graph.interface import INPUT, TOP_ITEMS, TOP_SCORES
from slmc.export.runtime.engine import (
    GPU,
    GRAPH,
    MASKED,
    Description,
    Engine,
    Histories,
    describe,
    wanted,
)
from slmc.export.triton import model as triton_model
from slmc.export.vocabulary import FILE, Vocabulary

FOLDER = "triton"
PLAN = "tensorrt/model.plan"
PYTHON, ONNX, TENSORRT = "recommender", "recommender_onnx", "recommender_tensorrt"
VERSION = "1"
WARMUP = "warmup"
COMPARED = 32
"""Histories that the Python variant is compared on."""


def write(folder: Path, config: ExportConfig, histories: Histories) -> None:
    """Write the repository into the folder of an engine, whose other files are there.

    Args:
        folder: Of the engine; its graph is proven already.
        config: Of the export.
        histories: Real ones, to prove the Python variant with.

    Raises:
        VerdictError: The Python variant does not answer as the engine.
    """
    described, settings = describe(folder), config.triton
    items = Vocabulary.open(folder / FILE).items
    warm = np.arange(described.history, dtype=np.int64) % described.num_items + 1
    repository = folder / FOLDER
    _plan(folder, settings, described, warm)
    for name, text, data in (
        (ONNX, _onnx(described, settings), warm.tobytes()),
        (PYTHON, _python(settings, described), _strings([items[row - 1] for row in warm])),
    ):
        variant = repository / name
        (variant / VERSION).mkdir(parents=True)
        (variant / WARMUP).mkdir()
        (variant / WARMUP / "history").write_bytes(data)
        (variant / "config.pbtxt").write_text(text)
        graph = folder / GRAPH
        for file in graph.parent.glob(f"{graph.name}*"):  # and its weights, if they lie beside it
            _link(file, variant / VERSION / file.name)
    version = repository / PYTHON / VERSION
    _link(folder / MASKED, version / Path(MASKED).name)
    _link(folder / FILE, version / FILE)
    shutil.copyfile(triton_model.__file__, version / "model.py")
    _check(folder, version, settings, histories[:COMPARED])


def _plan(
    folder: Path, settings: TritonConfig, described: Description, warm: NDArray[np.int64]
) -> None:
    """Write the variant of a plan, if there is one that Triton's TensorRT backend runs."""
    entry = json.loads((folder / "engine.json").read_text()).get("tensorrt")
    if entry is None or entry["flavour"] != "tensorrt":
        return  # Triton holds full TensorRT; a plan of RTX is none of its own
    variant = folder / FOLDER / TENSORRT
    (variant / VERSION).mkdir(parents=True)
    (variant / WARMUP).mkdir()
    (variant / WARMUP / "history").write_bytes(warm.tobytes())
    (variant / "config.pbtxt").write_text(plan_config(entry, described, settings))
    _link(folder / PLAN, variant / VERSION / "model.plan")


def _check(folder: Path, version: Path, settings: TritonConfig, histories: Histories) -> None:
    """Ask the file that Triton is going to run, and the engine: they give the same."""
    spec = util.spec_from_file_location("slmc_triton_model", version / "model.py")
    if spec is None or spec.loader is None:
        raise ImportError(version / "model.py")
    module: Any = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    names = np.array(["", *Vocabulary.open(folder / FILE).items], dtype=object)
    expected_rows, expected = Engine(folder, threads=settings.threads).top(histories)
    ranker = module.Ranker(version, settings.threads, wanted(describe(folder).precision))
    asked = [names[rows].tolist() for rows in histories]
    items, scores = ranker.best(asked, [False] * len(asked))
    if (items != names[expected_rows]).any() or (scores != expected).any():
        raise VerdictError(
            "triton: the repository was withheld: its Python variant differs from the engine.",
            "Nothing was written. Export without triton, and report the model's shape.",
        )


def _link(file: Path, place: Path) -> None:
    """The same file under a second name; a copy where the file system has no links."""
    try:
        os.link(file, place)
    except OSError:
        shutil.copyfile(file, place)


def _strings(items: list[str]) -> bytes:
    """A tensor of strings as Triton stores it: the length of each, then its bytes."""
    coded = [item.encode() for item in items]
    return b"".join(len(one).to_bytes(4, "little") + one for one in coded)


def _python(settings: TritonConfig, described: Description) -> str:
    providers = ",".join(wanted(described.precision))
    return f"""\
# Original ids of a history, oldest first, to the ids of the {described.top_k} best items.
# Ids that are not in {FILE} are skipped. Rows of one request are filled with empty ids;
# requests of different lengths are answered together. exclude_seen is each history's own.
name: "{PYTHON}"
backend: "python"
max_batch_size: {settings.max_batch}
input [
  {{ name: "history" data_type: TYPE_STRING dims: [ -1 ] allow_ragged_batch: true }},
  {{ name: "exclude_seen" data_type: TYPE_BOOL dims: [ 1 ] optional: true }}
]
output [
  {{ name: "items" data_type: TYPE_STRING dims: [ {described.top_k} ] }},
  {{ name: "scores" data_type: TYPE_FP32 dims: [ {described.top_k} ] }}
]
parameters {{ key: "threads" value {{ string_value: "{settings.threads}" }} }}
parameters {{ key: "providers" value {{ string_value: "{providers}" }} }}
{_common(settings, settings.max_batch, "KIND_CPU")}\
{_warmups("history", "TYPE_STRING", described, settings.max_batch)}"""


def _onnx(described: Description, settings: TritonConfig) -> str:
    return f"""\
# Row numbers of {FILE}, oldest first, to the rows of the {described.top_k} best items.
# Fill histories with 0 on the left to one length: only requests of equal shape are answered
# together, and the packed layout computes no padding.
name: "{ONNX}"
backend: "onnxruntime"
max_batch_size: {settings.max_batch}
{_rows(described)}\
parameters {{ key: "intra_op_thread_count" value {{ string_value: "{settings.threads}" }} }}
parameters {{ key: "inter_op_thread_count" value {{ string_value: "1" }} }}
{_common(settings, settings.max_batch, _kind(described))}\
{_warmups(INPUT, "TYPE_INT64", described, settings.max_batch)}"""


def plan_config(entry: dict[str, Any], described: Description, settings: TritonConfig) -> str:
    """The config of the plan that an entry of ``engine.json`` describes."""
    batch = max(profile["batch"] for profile in entry["profiles"])
    numbers = ", ".join(f'"{number}"' for number in range(len(entry["profiles"])))
    return f"""\
# Row numbers of {FILE}, oldest first, to the rows of the {described.top_k} best items.
# Fill histories with 0 on the left to one length, at most {described.history}: only requests of
# equal shape are answered together. Built with TensorRT {entry["version"]} for compute
# capability {entry["compute_capability"]}: the server has to hold both.
name: "{TENSORRT}"
platform: "tensorrt_plan"
max_batch_size: {batch}
{_rows(described)}\
{_common(settings, batch, "KIND_GPU", f"profile: [ {numbers} ] ")}\
{_warmups(INPUT, "TYPE_INT64", described, batch)}"""


def _rows(described: Description) -> str:
    return f"""\
input [
  {{ name: "{INPUT}" data_type: TYPE_INT64 dims: [ -1 ] }}
]
output [
  {{ name: "{TOP_ITEMS}" data_type: TYPE_INT64 dims: [ {described.top_k} ] }},
  {{ name: "{TOP_SCORES}" data_type: TYPE_FP32 dims: [ {described.top_k} ] }}
]
"""


def _kind(described: Description) -> str:
    return "KIND_GPU" if GPU in wanted(described.precision) else "KIND_CPU"


def _common(settings: TritonConfig, batch: int, kind: str, more: str = "") -> str:
    """Versions, instances and batching: the same for every variant."""
    preferred = f"preferred_batch_size: [ {batch} ] " if kind == "KIND_GPU" else ""
    return f"""\
version_policy {{ latest {{ num_versions: 1 }} }}
instance_group [ {{ count: {settings.instances} kind: {kind} {more}}} ]
dynamic_batching {{ {preferred}max_queue_delay_microseconds: {settings.delay_us} }}
"""


def _warmups(name: str, kind: str, described: Description, batch: int) -> str:
    """Requests that Triton answers to itself before it says that it is ready."""
    data = f'data_type: {kind} dims: [ {described.history} ] input_data_file: "history"'
    each = [
        f'  {{ name: "{size} of {described.history}" batch_size: {size}\n'
        f'    inputs {{ key: "{name}" value {{ {data} }} }} }}'
        for size in sorted({1, batch})
    ]
    return "model_warmup [\n" + ",\n".join(each) + "\n]\n"
