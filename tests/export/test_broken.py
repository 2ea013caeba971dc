"""Broken engines at the command line: two lines, the exit code, never a traceback."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from slmc.artefact import MANIFEST, Artefact, draft
from slmc.commands import cli
from slmc.export.config import ExportConfig
from slmc.export.runtime.engine import GRAPH

Break = Callable[[Path], None]


def write(name: str, content: bytes) -> Break:
    return lambda folder: (folder / name).write_bytes(content) and None


def remove(name: str) -> Break:
    return lambda folder: (folder / name).unlink()


def described(**changed: object) -> Break:
    def apply(folder: Path) -> None:
        file = folder / "engine.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changed))

    return apply


def graph(change: Callable[[onnx.ModelProto], None]) -> Break:
    def apply(folder: Path) -> None:
        model = onnx.load(folder / GRAPH)
        change(model)
        (folder / GRAPH).write_bytes(model.SerializeToString())

    return apply


def outside(model: onnx.ModelProto) -> None:
    """A weight with a path outside the engine's folder."""
    tensor = next(t for t in model.graph.initializer if len(t.dims) == 2)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "../../../../../../etc/hostname"), ("offset", "0")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def absent(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if len(t.dims) == 2)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "model.onnx.data"


def other_shape(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.name.endswith("output_proj.weight"))
    tensor.CopyFrom(numpy_helper.from_array(np.zeros((3, 3), np.float32), tensor.name))


def unknown_operator(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Gemm").op_type = "Gemmm"


def other_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 99


def other_ir(model: onnx.ModelProto) -> None:
    model.ir_version = 99


def other_names(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = model.graph.node[-1].output[0] = "best"


def float_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = model.graph.node[-1].output[0]


BROKEN: dict[str, Break] = {
    "truncated ONNX": lambda f: write(GRAPH, (f / GRAPH).read_bytes()[:-2000])(f),
    "not ONNX": write(GRAPH, b"\x00\x01\x02 nothing of the kind"),
    "an empty ONNX": write(GRAPH, b""),
    "the ONNX is gone": remove(GRAPH),
    "weights outside the folder": graph(outside),
    "missing weights": graph(absent),
    "a weight of another shape": graph(other_shape),
    "an unknown operator": graph(unknown_operator),
    "another opset": graph(other_opset),
    "another IR version": graph(other_ir),
    "other output names": graph(other_names),
    "another input type": graph(float_input),
    "a cycle": graph(cycle),
    "no description": remove("engine.json"),
    "a description that is not JSON": write("engine.json", b"{"),
    "a description of something else": write("engine.json", b'{"layout": "packed"}'),
    "a description of another catalogue": described(num_items=7),
    "no vocabulary": remove("items.jsonl"),
    "an empty vocabulary": write("items.jsonl", b""),
    "a vocabulary of another order": lambda f: write(
        "items.jsonl", b"\n".join(reversed((f / "items.jsonl").read_bytes().splitlines()))
    )(f),
    "a vocabulary that ends early": lambda f: write(
        "items.jsonl", b"\n".join((f / "items.jsonl").read_bytes().splitlines()[:5])
    )(f),
    "a vocabulary that is binary": write("items.jsonl", bytes(range(256))),
}


@pytest.mark.parametrize("sealed", [True, False], ids=["before sealing", "after sealing"])
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_engine(
    name: str,
    sealed: bool,
    packed: Artefact,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """An engine that was broken before sealing has the right hashes, one edited later has not."""
    with draft(tmp_path / "engine") as work:
        shutil.copytree(packed.path, work.path, dirs_exist_ok=True)
        (work.path / MANIFEST).unlink()
        if sealed:
            BROKEN[name](work.path)
        engine = work.seal(kind="engine", stage="export", config=ExportConfig(), inputs={})
    if not sealed:
        BROKEN[name](engine.path)
    capfd.readouterr()
    assert cli.call(["recommend", str(engine.path), "film-3", "-q"]) == 2
    out, error = capfd.readouterr()
    lines = error.splitlines()
    assert out == "" and "Traceback" not in error
    assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("  "), error
    assert str(engine.path) in lines[0]
    if not sealed:
        assert "has changed since it was sealed" in error or "is missing" in error
