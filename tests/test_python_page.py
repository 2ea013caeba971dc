"""The examples of docs/python.md and the notebook run as written, in an empty folder."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs/quickstart.ipynb"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(code: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run code in a process of its own, as a user would: no test fixture is imported."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-W", "ignore", "-"]
    return subprocess.run(command, input=code, cwd=folder, capture_output=True, text=True)


def test_every_example_of_the_page_runs(tmp_path: Path) -> None:
    blocks = BLOCK.findall((ROOT / "docs/python.md").read_text(encoding="utf-8"))
    assert len(blocks) >= 9
    done = run("\n".join(blocks), tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "pass"
    assert "popular" in lines
    assert any(line.startswith("ids that are not in the vocabulary: no-such-sku") for line in lines)


def notebook() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return content


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def test_the_notebook_is_valid() -> None:
    content = notebook()
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    assert content["metadata"]["kernelspec"]["language"] == "python"
    ids = [cell["id"] for cell in content["cells"]]
    assert len(set(ids)) == len(ids)
    count = 0
    for cell in content["cells"]:
        assert re.fullmatch(r"[a-zA-Z0-9-_]{1,64}", cell["id"])
        assert cell["cell_type"] in ("markdown", "code") and isinstance(cell["metadata"], dict)
        if cell["cell_type"] == "code":
            count += 1
            assert cell["execution_count"] == count
            assert cell["outputs"], "its outputs are not stored"
            assert not any(out["output_type"] == "error" for out in cell["outputs"])


def test_the_notebook_runs(tmp_path: Path) -> None:
    cells = [cell for cell in notebook()["cells"] if cell["cell_type"] == "code"]
    done = run("\n".join(source(cell) for cell in cells), tmp_path / "notebook")
    assert done.returncode == 0, done.stderr
    # What does not depend on the machine is as stored.
    for line in ("verdict: pass", "popular"):
        stored = ["".join(out.get("text", ())) for cell in cells for out in cell["outputs"]]
        assert any(line in text for text in stored) and line in done.stdout


@pytest.mark.parametrize("page", ["docs/python.md"])
def test_every_public_name_is_on_the_page(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in ("load", "run", "evaluate"):
        assert f"slmc.{name}(" in text
    for name in ("recommend", "recommend_batch", "embed"):
        assert f".{name}(" in text
