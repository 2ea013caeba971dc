"""The layering rule, as a test: each layer imports only from those to its left."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from benchmark_scripts import script

from slmc.artefact import draft
from slmc.config import StageConfig
from slmc.pipeline.keys import Outside, key_of
from slmc.stages import STAGES, Stage

ROOT = Path(__file__).parent.parent
STAGE_FOLDERS = ("distill", "compress", "export")
LAYERS: tuple[set[str], ...] = (
    {"errors"},
    {"system", "processes"},
    {"cache", "config"},
    {"artefact"},
    {"data"},
    {"model"},
    {"evaluation"},
    {"training"},
    set(STAGE_FOLDERS),
    {"stages"},
    {"recipe"},
    {"pipeline"},
    {"report", "serving"},
    {"recommend", "scoring", "api", "spark", "package", "server"},
    {"commands"},
    {"__main__"},
)
"""Folders of slmc, and the modules at its top: each imports only from those before it."""
TORCH_FREE = (
    "slmc",
    "slmc.api",
    "slmc.scoring.score",
    "slmc.spark",
    "slmc.serving.opening",
    "slmc.server.run",
    "slmc.recipe",
    "slmc.recipe.schema",
    "slmc.stages",
    "slmc.evaluation.gates",
)
HEAVY = ("torch", "transformers", "onnxruntime", "onnx", "peft", "accelerate", "ray", "pyspark")


graphs = script("imports")
FILES: dict[str, Path] = graphs.modules()
IMPORTS: dict[str, set[str]] = graphs.arrows(FILES)


def level(folder: str) -> int:
    """Position of a folder in LAYERS; fails for one that is in none."""
    return next(i for i, names in enumerate(LAYERS) if folder in names)


@pytest.mark.parametrize("folder", sorted({graphs.folder(name) for name in FILES} - {"slmc"}))
def test_a_folder_imports_only_from_its_left(folder: str) -> None:
    others = {
        graphs.folder(other)
        for name, named in IMPORTS.items()
        if graphs.folder(name) == folder
        for other in named
    }
    assert not {one for one in others - {folder, "slmc"} if level(one) >= level(folder)}


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert graphs.cycles(IMPORTS) == []


def test_a_circle_is_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}
    assert graphs.cycles(graph) == [["a", "b", "c"]]


def test_only_the_recipe_reads_yaml() -> None:
    reading = {name for name, file in FILES.items() if "yaml" in graphs.imports(file)}
    assert reading == {"slmc.recipe.text"}


def test_only_the_command_line_prints() -> None:
    allowed = {"slmc.commands.cli", "slmc.console"}
    for name, file in FILES.items():
        calls = [n.func for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Call)]
        prints = [f for f in calls if isinstance(f, ast.Name) and f.id == "print"]
        assert name in allowed or not prints, file


@pytest.mark.parametrize("name", [n for n in FILES if n.endswith("config")])
def test_configs_know_nothing_of_torch(name: str) -> None:
    assert not {m.partition(".")[0] for m in graphs.imports(FILES[name])} & set(HEAVY)


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
    tree = ast.parse(FILES[module].read_text())
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
    assert config.libraries, "the config class lists no libraries"
    assert sealed.manifest.versions.keys() <= {"slmc", *config.libraries}
