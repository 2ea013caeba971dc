"""An engine runs where slmc is not installed: in environments created for these tests."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cards import code_of

from slmc.artefact import Artefact
from slmc.export.runtime.engine import Engine
from slmc.recommend import recommend

PINS = Path(__file__).parents[2] / "constraints.txt"
UNREACHED = re.compile(
    r"Failed to establish|ConnectionError|ConnectTimeout|ReadTimeout|ProxyError|resolution"
)
"""Messages of pip if it reaches no index, but not for a wrong package."""
CLOSE = 1e-5
"""Float32 rounding, in case the environments have different versions of ONNX Runtime."""


def pin(name: str) -> str:
    """The requirement of a package in constraints.txt, such as ``torch==2.13.0``."""
    line = re.search(rf"^{name}==\S+$", PINS.read_text(), flags=re.MULTILINE)
    assert line is not None
    return line[0]


def environment(folder: Path, *packages: str) -> Path:
    """Create an isolated environment with some packages; return its Python."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin/python"
    command = [python, "-I", "-m", "pip", "--disable-pip-version-check", "-q", "install", *packages]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and UNREACHED.search(done.stderr):
        pytest.skip(f"pip reaches no index: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return python


def run(python: Path, code: str, folder: Path, *arguments: str) -> str:
    """Run code, isolated from the variables and folders of the tests; return its output."""
    command = [python, "-I", "-c", code, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("bare") / "venv", pin("onnxruntime"), pin("numpy"))


@pytest.fixture(scope="module")
def optimum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Without its pin, torch can come with gigabytes of CUDA.
    packages = (pin("torch"), pin("onnxruntime"), "optimum-onnx==0.1.0")
    return environment(tmp_path_factory.mktemp("optimum") / "venv", *packages)


ABSENT = """
from importlib.util import find_spec
print([name for name in ("slmc", "torch", "transformers", "polars") if find_spec(name)])
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["packed", "padded"])
@pytest.mark.parametrize(
    "history", [None, ["film-7"], ["film-3", "nobody's", "film-30", "film-4", "film-3"]]
)
def test_the_code_of_the_card_needs_only_onnxruntime_and_numpy(
    name: str, history: list[str] | None, bare: Path, request: pytest.FixtureRequest
) -> None:
    assert run(bare, ABSENT, bare.parent) == "[]\n"
    engine: Artefact = request.getfixturevalue(name)
    code = code_of((engine.path / "README.md").read_text(encoding="utf-8"))
    if history is not None:
        code, count = re.subn(r"(?m)^history = \[.*?\]", f"history = {json.dumps(history)}", code)
        assert count == 1
    expected = recommend(engine, history or ["film-1", "film-2"])
    lines = [f"{one.score:7.3f} {one.item} {one.title or ''}" for one in expected]
    assert len(lines) == 10 and any(one.title for one in expected)
    assert run(bare, code, engine.path).splitlines() == lines


LOAD = """
import json, sys
import numpy, torch, transformers
from optimum.onnxruntime import ORTModelForCustomTasks
from transformers import PretrainedConfig

assert tuple(map(int, transformers.__version__.split(".")[:2])) < (4, 58)
rows = json.loads(sys.argv[1])
"""
BY_FOLDER = """
model = ORTModelForCustomTasks.from_pretrained("onnx")
"""
BY_SESSION = """
from onnxruntime import InferenceSession
model = ORTModelForCustomTasks(
    config=PretrainedConfig(), session=InferenceSession("onnx/model.onnx")
)
"""
ANSWER = """
tensors = model(item_ids=torch.tensor(rows))
arrays = model(item_ids=numpy.array(rows))
assert (tensors.top_items.numpy() == arrays.top_items).all()
print(json.dumps([tensors.top_items.tolist(), tensors.top_scores.tolist()]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["packed", "padded"])
@pytest.mark.parametrize("load", [BY_FOLDER, BY_SESSION], ids=["folder", "session"])
def test_optimum_gives_the_same_items(
    name: str, load: str, optimum: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    engine: Artefact = request.getfixturevalue(name)
    shutil.copytree(engine.path / "onnx", tmp_path / "onnx")
    rows = [[0, 0, 5], [0, 7, 1], [2, 30, 9]]
    output = run(optimum, LOAD + load + ANSWER, tmp_path, json.dumps(rows))
    items, scores = json.loads(output.splitlines()[-1])
    expected = Engine.open(engine).answer(np.array(rows, dtype=np.int64))
    assert items == expected[0].tolist()
    assert np.abs(np.array(scores) - expected[1]).max() < CLOSE * np.std(expected[1])
