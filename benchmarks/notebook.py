"""Run the notebook of the documentation and store its outputs: ``python benchmarks/notebook.py``.

Each code cell runs in the same namespace, in a new folder. What it prints and the value of its last
expression are stored as text. ``--write`` writes them into ``docs/quickstart.ipynb``.
"""

import argparse
import ast
import contextlib
import io
import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

VALUE = "_value_of_the_cell"
NOTEBOOK = Path(__file__).parents[1] / "docs/quickstart.ipynb"


def outputs(code: str, namespace: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Run a cell; returns its outputs in the form of nbformat 4."""
    tree, printed = ast.parse(code), io.StringIO()
    last = tree.body[-1]
    if isinstance(last, ast.Expr):  # its value is the output of the cell, as in Jupyter
        shown = ast.Assign([ast.Name(VALUE, ast.Store())], last.value)
        tree.body[-1] = ast.fix_missing_locations(ast.copy_location(shown, last))
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "cell", "exec"), namespace)
    value = namespace.pop(VALUE, None)
    stored: list[dict[str, Any]] = []
    if text := printed.getvalue():
        lines = text.splitlines(keepends=True)
        stored.append({"name": "stdout", "output_type": "stream", "text": lines})
    if value is not None:
        lines = repr(value).splitlines(keepends=True)
        result = {"data": {"text/plain": lines}, "execution_count": count, "metadata": {}}
        stored.append(result | {"output_type": "execute_result"})
    return stored


def run(notebook: dict[str, Any]) -> None:
    """Run all code cells of a notebook, and store their outputs in it."""
    namespace: dict[str, Any] = {}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for count, cell in enumerate(cells, start=1):
            cell["outputs"] = outputs("".join(cell["source"]), namespace, count)
            cell["execution_count"] = count


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    run(content)
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    if arguments.write:
        NOTEBOOK.write_text(text, encoding="utf-8")
    for cell in content["cells"]:
        for out in cell.get("outputs", ()):
            print("".join(out.get("text") or out["data"]["text/plain"]))
