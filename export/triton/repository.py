"""A model repository for Triton Inference Server, ``triton/`` in an engine.

    recommender/            Python backend: original ids in and out
    recommender_onnx/       ONNX Runtime backend: row numbers in and out
    recommender_tensorrt/   TensorRT backend, where a plan was built

Each folder is complete, so any of them can be served without the others.
"""

import json
import os
import shutil
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np

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
    preferred_providers,
    read_description,
)
from slmc.export.tensorrt.plan import PLAN
from slmc.export.triton import model as triton_model
from slmc.export.vocabulary import FILE, Vocabulary

FOLDER = "triton"
PYTHON, ONNX, TENSORRT = "recommender", "recommender_onnx", "recommender_tensorrt"
VERSION = "1"
WARMUP = "warmup"
COMPARED = 32
"""Histories on which the Python variant is compared with the engine."""


def write(folder: Path, config: ExportConfig, histories: Histories) -> None:
    """Write the repository into the folder of an engine whose other files are complete.

    Args:
        folder: Folder of the engine; its graph has passed the parity check.
        config: Settings of the export.
        histories: Real histories, to compare the Python variant with the engine.

    Raises:
        VerdictError: The Python variant gives other answers than the engine.
    """
    engine, settings = read_description(folder), config.triton
    items = Vocabulary.open(folder / FILE).items
    rows = np.arange(engine.history, dtype=np.int64) % engine.num_items + 1
    warmup_rows, warmup_ids = rows.tobytes(), _strings([items[row - 1] for row in rows])
    graph = folder / GRAPH
    for name, text, warmup in (
        (ONNX, _onnx_config(engine, settings), warmup_rows),
        (PYTHON, _python_config(engine, settings), warmup_ids),
    ):
        version = _write_variant(folder / FOLDER / name, text, warmup)
        for file in graph.parent.glob(f"{graph.name}*"):  # with its file of weights, if any
            _link(file, version / file.name)
    version = folder / FOLDER / PYTHON / VERSION
    _link(folder / MASKED, version / Path(MASKED).name)
    _link(folder / FILE, version / FILE)
    shutil.copyfile(triton_model.__file__, version / "model.py")
    entry = json.loads((folder / "engine.json").read_text()).get("tensorrt")
    if entry is not None and entry["flavour"] == "tensorrt":  # Triton cannot run plans of RTX
        text = plan_config(entry, engine, settings)
        plan = _write_variant(folder / FOLDER / TENSORRT, text, warmup_rows)
        _link(folder / PLAN, plan / "model.plan")
    _check(folder, version, settings, histories[:COMPARED])


def _write_variant(folder: Path, config: str, warmup: bytes) -> Path:
    """Write config and warm-up data of a variant; return the empty folder of its version."""
    version = folder / VERSION
    version.mkdir(parents=True)
    (folder / WARMUP).mkdir()
    (folder / WARMUP / "history").write_bytes(warmup)
    (folder / "config.pbtxt").write_text(config)
    return version


def _check(folder: Path, version: Path, settings: TritonConfig, histories: Histories) -> None:
    """Run the copied Python file, and check that it gives the answers of the engine."""
    spec = util.spec_from_file_location("slmc_triton_model", version / "model.py")
    if spec is None or spec.loader is None:
        raise ImportError(version / "model.py")
    module: Any = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    names = np.array(["", *Vocabulary.open(folder / FILE).items], dtype=object)
    expected_rows, expected = Engine(folder, threads=settings.threads).top(histories)
    providers = preferred_providers(read_description(folder).precision)
    ranker = module.Ranker(version, settings.threads, providers)
    id_histories = [names[rows].tolist() for rows in histories]
    items, scores = ranker.best(id_histories, [False] * len(id_histories))
    if (items != names[expected_rows]).any() or (scores != expected).any():
        raise VerdictError(
            "triton: the repository was withheld: its Python variant differs from the engine.",
            "Nothing was written. Export without triton, and report the model's shape.",
        )


def _link(file: Path, target: Path) -> None:
    """Hard-link a file; copy it if the file system has no links."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


def _strings(items: list[str]) -> bytes:
    """Encode a tensor of strings for Triton: the length of each string, then its bytes."""
    encoded = [item.encode() for item in items]
    return b"".join(len(one).to_bytes(4, "little") + one for one in encoded)


def _python_config(engine: Description, settings: TritonConfig) -> str:
    providers = ",".join(preferred_providers(engine.precision))
    return f"""\
# Maps the original ids of a history, oldest first, to the ids of the {engine.top_k} best items.
# Ids that are not in {FILE} are skipped. Pad the rows of one request with empty ids.
# Requests of different lengths can form a batch. exclude_seen has one value per history.
name: "{PYTHON}"
backend: "python"
max_batch_size: {settings.max_batch}
input [
  {{ name: "history" data_type: TYPE_STRING dims: [ -1 ] allow_ragged_batch: true }},
  {{ name: "exclude_seen" data_type: TYPE_BOOL dims: [ 1 ] optional: true }}
]
output [
  {{ name: "items" data_type: TYPE_STRING dims: [ {engine.top_k} ] }},
  {{ name: "scores" data_type: TYPE_FP32 dims: [ {engine.top_k} ] }}
]
parameters {{ key: "threads" value {{ string_value: "{settings.threads}" }} }}
parameters {{ key: "providers" value {{ string_value: "{providers}" }} }}
{_common(settings, settings.max_batch, "KIND_CPU")}\
{_warmups("history", "TYPE_STRING", engine, settings.max_batch)}"""


def _onnx_config(engine: Description, settings: TritonConfig) -> str:
    return f"""\
# Maps rows of {FILE}, oldest first, to the rows of the {engine.top_k} best items.
# Pad histories with 0 on the left to one length: only requests of equal shape form a batch.
# The packed layout does not compute padding.
name: "{ONNX}"
backend: "onnxruntime"
max_batch_size: {settings.max_batch}
{_rows(engine)}\
parameters {{ key: "intra_op_thread_count" value {{ string_value: "{settings.threads}" }} }}
parameters {{ key: "inter_op_thread_count" value {{ string_value: "1" }} }}
{_common(settings, settings.max_batch, _kind(engine))}\
{_warmups(INPUT, "TYPE_INT64", engine, settings.max_batch)}"""


def plan_config(entry: dict[str, Any], engine: Description, settings: TritonConfig) -> str:
    """Return the config of the plan that an entry of ``engine.json`` describes."""
    batch = max(profile["batch"] for profile in entry["profiles"])
    numbers = ", ".join(f'"{number}"' for number in range(len(entry["profiles"])))
    return f"""\
# Maps rows of {FILE}, oldest first, to the rows of the {engine.top_k} best items.
# Pad histories with 0 on the left to one length, at most {engine.history}: only requests of
# equal shape form a batch. The server needs TensorRT {entry["version"]} and a GPU of compute
# capability {entry["compute_capability"]}.
name: "{TENSORRT}"
platform: "tensorrt_plan"
max_batch_size: {batch}
{_rows(engine)}\
{_common(settings, batch, "KIND_GPU", f"profile: [ {numbers} ] ")}\
{_warmups(INPUT, "TYPE_INT64", engine, batch)}"""


def _rows(engine: Description) -> str:
    return f"""\
input [
  {{ name: "{INPUT}" data_type: TYPE_INT64 dims: [ -1 ] }}
]
output [
  {{ name: "{TOP_ITEMS}" data_type: TYPE_INT64 dims: [ {engine.top_k} ] }},
  {{ name: "{TOP_SCORES}" data_type: TYPE_FP32 dims: [ {engine.top_k} ] }}
]
"""


def _kind(engine: Description) -> str:
    return "KIND_GPU" if GPU in preferred_providers(engine.precision) else "KIND_CPU"


def _common(settings: TritonConfig, batch: int, kind: str, more: str = "") -> str:
    """Versions, instances and batching, which all variants share."""
    preferred = f"preferred_batch_size: [ {batch} ] " if kind == "KIND_GPU" else ""
    return f"""\
version_policy {{ latest {{ num_versions: 1 }} }}
instance_group [ {{ count: {settings.instances} kind: {kind} {more}}} ]
dynamic_batching {{ {preferred}max_queue_delay_microseconds: {settings.delay_us} }}
"""


def _warmups(name: str, kind: str, engine: Description, batch: int) -> str:
    """Requests with which Triton warms up before it reports that it is ready."""
    data = f'data_type: {kind} dims: [ {engine.history} ] input_data_file: "history"'
    each = [
        f'  {{ name: "{size} of {engine.history}" batch_size: {size}\n'
        f'    inputs {{ key: "{name}" value {{ {data} }} }} }}'
        for size in sorted({1, batch})
    ]
    return "model_warmup [\n" + ",\n".join(each) + "\n]\n"
