"""The layering rule, as a test: each layer imports only from those to its left."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from slmc.artefact import draft
from slmc.config import StageConfig
from slmc.libraries import LIBRARIES
from slmc.pipeline.keys import Outside, key_of
from slmc.stages import STAGES, Stage

ROOT = Path(__file__).parent.parent
STAGE_FOLDERS = ("distill", "compress", "export")
LAYERS = (
    {"errors", "libraries"},
    {"system"},
    {"artefact", "cache"},
    {
        "config",
        "data",
        "metrics",
        "model",
        "gates",
        "catalogue",
        "checkpoint",
        "ranking",
        "schedule",
        "temperature",
        "train_types",
        "bootstrap",
        "optimizer",
        "power",
    },
    {"train", "next_item", "pretrain", "measured", "evaluate", "verdict", "multiple", "baselines"},
    set(STAGE_FOLDERS),
    {"stages"},
    {"recipe"},
    {"pipeline", "report"},
    {"recommend", "doctor", "console", "options", "streams"},
    {"commands", "cli", "__main__"},
)
TORCH_FREE = ("slmc", "slmc.recipe", "slmc.recipe.schema", "slmc.stages", "slmc.gates")
HEAVY = ("torch", "transformers", "onnxruntime", "onnx", "peft", "accelerate")


def level(name: str) -> int | None:
    part = name.removeprefix("slmc").lstrip(".").partition(".")[0]
    return next((i for i, names in enumerate(LAYERS) if part in names), None)


def imports(file: Path) -> set[str]:
    """Modules that a file imports, within functions too."""
    tree = ast.parse(file.read_text())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            # "from slmc import x" is an import of slmc.x
            found |= (
                {f"slmc.{alias.name}" for alias in node.names}
                if node.module == "slmc"
                else {node.module}
            )
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def sources() -> dict[str, Path]:
    """Module name -> file of every module of slmc."""
    files = [file for folder in ("slmc", *STAGE_FOLDERS) for file in (ROOT / folder).rglob("*.py")]
    found = {}
    for file in files:
        parts = file.relative_to(ROOT).with_suffix("").parts
        parts = parts if parts[0] == "slmc" else ("slmc", *parts)
        found[".".join(parts).removesuffix(".__init__")] = file
    return found


@pytest.mark.parametrize("name", sorted(set(sources()) - {"slmc"}))
def test_a_module_imports_only_from_its_left(name: str) -> None:
    here = level(name)
    if here is None and not any(level(m) for m in imports(sources()[name])):
        return  # a new module that stands alone
    assert here is not None, f"{name} is in no layer: add it to LAYERS"
    to_its_right = {
        module
        for module in imports(sources()[name])
        if module.startswith("slmc.") and (level(module) or 0) > here
    }
    assert not to_its_right


@pytest.mark.parametrize("folder", STAGE_FOLDERS)
def test_stages_know_nothing_of_each_other(folder: str) -> None:
    others = tuple(f"slmc.{name}" for name in STAGE_FOLDERS if name != folder)
    for file in (ROOT / folder).rglob("*.py"):
        assert not [module for module in imports(file) if module.startswith(others)], file


def test_only_the_recipe_reads_yaml() -> None:
    reading = {name for name, file in sources().items() if "yaml" in imports(file)}
    assert reading == {"slmc.recipe.text"}


def test_only_the_command_line_prints() -> None:
    allowed = {"slmc.cli", "slmc.console"}
    for name, file in sources().items():
        calls = [n.func for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Call)]
        prints = [f for f in calls if isinstance(f, ast.Name) and f.id == "print"]
        assert name in allowed or not prints, file


@pytest.mark.parametrize("name", [n for n in sorted(sources()) if n.endswith("config")])
def test_configs_know_nothing_of_torch(name: str) -> None:
    assert not {m.partition(".")[0] for m in imports(sources()[name])} & set(HEAVY)


@pytest.mark.parametrize("name", TORCH_FREE)
def test_these_import_nothing_heavy(name: str) -> None:
    code = f"import {name}, sys; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_whole_recipe_is_checked_without_torch() -> None:
    code = (
        "import sys; from slmc import recipe\n"
        "for name in recipe.packaged(): recipe.load(name, smoke=True)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", sorted(STAGES))
def test_the_function_of_every_stage_is_there(name: str) -> None:
    module, _, function = STAGES[name].target.partition(":")
    tree = ast.parse(sources()[module].read_text())
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


LEAST = {"prepare": {"source": "log.csv"}, "teach": {"backbone": "llm"}, "prune": {"layers": 1}}
"""Stage -> what must be set of it."""


class Inside(Outside):
    """Looks nothing up: what lies outside a recipe is no matter here."""

    def fingerprint(self, stage: Stage, config: StageConfig) -> dict[str, str]:
        return {}


@pytest.mark.parametrize("name", sorted(STAGES))
def test_key_and_manifest_of_every_stage_name_the_same_versions(name: str, tmp_path: Path) -> None:
    config = STAGES[name].config.model_validate(LEAST.get(name, {}))
    key = key_of(name, config, {}, Inside())
    with draft(tmp_path / name) as work:
        sealed = work.seal(kind=STAGES[name].gives, stage=name, config=config, inputs={})
    assert key.parts["versions"] == sealed.manifest.versions
    assert LIBRARIES[name], "its libraries are missing in slmc/libraries.py"
    assert sealed.manifest.versions.keys() <= {"slmc", *LIBRARIES[name]}
