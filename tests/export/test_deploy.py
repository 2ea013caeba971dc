"""The code and the options that docs/deploy.md shows."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from slmc.artefact import Artefact
from slmc.commands.options import settings
from slmc.export import constraints
from slmc.export.config import ExportConfig
from slmc.export.runtime.engine import GRAPH
from slmc.export.tensorrt import runtime as tensorrt_runtime
from slmc.export.tensorrt.plan import PLAN
from slmc.export.triton import repository as triton

TEXT = (Path(__file__).parents[2] / "docs/deploy.md").read_text()


def test_the_lines_for_onnx_runtime_run(packed: Artefact) -> None:
    code = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)[0]
    code = code.replace('["50", "181"]', '["film-1", "film-2"]')
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=packed.path, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("['film-") and done.stderr == ""


def test_options_and_names_are_there() -> None:
    options = {one.option for one in settings(ExportConfig)}
    named = set(re.findall(r"--(?:triton|tensorrt)\.[\w-]+", TEXT))
    assert named and named <= options
    for name in (triton.PYTHON, triton.ONNX, triton.TENSORRT):
        assert f"`{name}`" in TEXT
    assert f"{constraints.LARGEST_K} at most" in TEXT
    for method in re.findall(r"engine\.(\w+)\(", TEXT):
        assert hasattr(tensorrt_runtime.TensorrtEngine, method)


@pytest.mark.parametrize("file", re.findall(r"`(\w+/model\.\w+)`", TEXT))
def test_the_files_are_where_it_says(file: str) -> None:
    assert file in (GRAPH, PLAN)
