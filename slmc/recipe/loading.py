"""Read, override and check a recipe: one YAML file with all steps and their settings.

    version: 1
    name: movies
    data:  {source: ratings.csv}
    steps:
      - teach:   {backbone: HuggingFaceTB/SmolLM2-135M, layers: 8}
      - distill: {layers: 4, control: true}
      - export:
    gates:
      - {metric: ndcg@10, baseline: teach, max_drop: 3%}

Checking needs no torch: names, types, values and inputs are all known from the configs. One error
lists all faults, each with its line.
"""

import logging
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field

from slmc.config import Placed, Protocol, StageConfig
from slmc.data.config import PrepareConfig, of_another_source
from slmc.errors import RecipeError
from slmc.evaluation.config import EvaluateConfig
from slmc.evaluation.gates import Gate
from slmc.recipe.checks import checked
from slmc.recipe.compatibility import check_compatibility
from slmc.recipe.faults import Faults, Place, nearest
from slmc.recipe.gate_section import read_gates
from slmc.recipe.paths import check_files, check_heads, from_folder, to_folder
from slmc.recipe.sets import apply_sets
from slmc.recipe.smoke import shrunk
from slmc.recipe.steps import Step, StepReader, as_written
from slmc.recipe.text import Document, dump, parse

Config = TypeVar("Config", bound=StageConfig)

log = logging.getLogger("slmc.recipe")

VERSION = 1
NAME = "[A-Za-z0-9][A-Za-z0-9._-]*"
SUFFIXES = (".yaml", ".yml")
CONFIGS: dict[str, type[BaseModel] | None] = {"data": PrepareConfig, "evaluate": EvaluateConfig}


class Head(Placed):
    """The keys at the top of a recipe; ``data``, ``evaluate``, steps and gates as written."""

    version: int
    """Version of the recipe format: 1."""
    name: str = Field(pattern=f"^{NAME}$")
    """Name of the recipe, and of its folder under runs/."""
    description: str = ""
    """Purpose of the recipe, in one line."""
    seed: int = Field(17, ge=0)
    """Seed of every step that sets none."""
    data: dict[str, Any]
    """The interaction log and how it is prepared."""
    evaluate: dict[str, Any] = Field(default_factory=dict)
    """How every model and engine is evaluated."""
    steps: list[Any] = Field(min_length=1)
    """The steps, in order; each is a mapping of one stage to its settings."""
    gates: list[Any] = Field(default_factory=list)
    """What the results must reach."""
    power: Literal["warn", "stop"] = "warn"
    """What to do, before the long steps, if the test set is too small for a gate."""


KEYS: dict[str, type[BaseModel] | None] = {name: CONFIGS.get(name) for name in Head.model_fields}


@dataclass(frozen=True)
class Recipe:
    """A valid recipe: every setting is resolved, every reference is an existing step."""

    name: str
    description: str
    seed: int
    device: str
    dtype: str
    data: PrepareConfig
    evaluate: EvaluateConfig
    steps: tuple[Step, ...]
    """In the order of running, with ``prepare``, ``sasrec``, ``baselines`` and controls."""
    gates: tuple[Gate, ...]
    """Each with the step that it judges; ``baseline`` is a step, or None if not needed."""
    power: Literal["warn", "stop"] = "warn"
    smoke: bool = False
    command: str = field(default="", compare=False)
    """The command that runs the recipe, for messages."""

    def step(self, step_id: str) -> Step:
        """The step with that id.

        Raises:
            RecipeError: No step has that id.
        """
        for step in self.steps:
            if step.id == step_id:
                return step
        raise RecipeError(
            f"recipe {self.name} has no step {step_id!r}."
            + nearest(step_id, [step.id for step in self.steps]),
            f"See its steps with `{self.command} --plan`.",
        )

    def is_measured(self, step: Step) -> bool:
        """Whether the schedule has an evaluation of the step: each model and engine has one.

        SASRec is evaluated with the baselines, and has its own evaluation only if another step
        uses it as its model or a gate names it.
        """
        if step.stage != "sasrec":
            return step.can_rank
        taken = any(other.inputs.get("model") == step.id for other in self.steps)
        return taken or any(step.id in (gate.on, gate.baseline) for gate in self.gates)

    def is_binding(self, gate: Gate) -> bool:
        """Whether the gate decides the exit code.

        The models of a smoke run are nearly random. Only gates that make sense for random weights
        are binding in it: sizes, and an engine against its own model.
        """
        return not self.smoke or gate.metric == "size_mb" or self.is_of_same_model(gate)

    def is_of_same_model(self, gate: Gate) -> bool:
        """Whether the gate compares a model or engine with the model that it was made from."""
        made_from = self.step(gate.on).inputs.get("model") if gate.on else None
        return gate.baseline is not None and gate.baseline == made_from


def load(
    name_or_path: str | Path,
    *,
    sets: Sequence[str] = (),
    smoke: bool = False,
    env: Mapping[str, str] | None = None,
    files: bool = False,
) -> Recipe:
    """Read and check a recipe.

    Relative paths in a recipe file start at the file's folder; those of ``sets`` and of packaged
    recipes start at the working directory.

    Args:
        name_or_path: Name of a packaged recipe, or path of a YAML file.
        sets: Overrides ``KEY=VALUE``, such as ``distill.layers=2`` or ``data.users=100``.
        smoke: Make everything small: a random backbone, few users, one epoch.
        env: Variables for ``${NAME:-default}``; the process's own if left out.
        files: Also check that the local files of the recipe exist.

    Raises:
        RecipeError: The file cannot be read, or it has faults; the error lists all.
    """
    text, source = _text(str(name_or_path))
    faults = Faults()
    document = parse(text, source, os.environ if env is None else env, faults)
    name = shlex.quote(str(name_or_path))
    if not isinstance(document.value, dict):
        if not faults:
            faults.add(
                Place(source, 1), "", "a recipe is a mapping; `slmc recipe schema` lists its keys"
            )
        faults.stop(name)
    if _is_newer(document, faults):
        faults.stop(name)
    if (path := _path_of(str(name_or_path))) is not None:
        from_folder(document.value, path.parent)
    apply_sets(document, sets, KEYS, faults)
    recipe = _read(document, faults, name, files=files)
    options = [f"--set {shlex.quote(one)}" for one in sets] + ["--smoke"] * smoke
    command = " ".join(["slmc run", name, *options])
    recipe = replace(recipe, command=command)
    return _smoke(recipe) if smoke else recipe


def packaged() -> list[str]:
    """Names of the recipes that ship with slmc."""
    files = (Path(entry.name) for entry in resources.files("slmc.recipes").iterdir())
    return sorted(path.stem for path in files if path.suffix in SUFFIXES)


def text_of(name_or_path: str | Path) -> str:
    """The YAML text of a recipe as written; raises as :func:`load`."""
    return _text(str(name_or_path))[0]


def renamed(text: str, before: str, file: Path) -> str:
    """The text of a recipe with the name of a copy, also in the commands of its comments.

    Args:
        text: The recipe as written.
        before: Its name or path on the command line.
        file: Path of the copy. If its stem is not a valid recipe name, the text stays the same.
    """
    if not re.fullmatch(NAME, file.stem):
        return text
    text = re.sub(r"^name:.*$", lambda _: f"name: {file.stem}", text, count=1, flags=re.MULTILINE)
    command = rf"(?<=slmc run ){re.escape(before)}(?=\s)"
    return re.sub(command, lambda _: shlex.quote(str(file)), text)


def resolved_yaml(recipe: Recipe, folder: Path = Path()) -> str:
    """The YAML of the recipe with every setting; reading it returns the same recipe.

    Args:
        recipe: The recipe.
        folder: Folder of the file, at which its relative paths start.
    """
    controls = {step.control_of for step in recipe.steps}
    steps: list[dict[str, Any]] = []
    for step in recipe.steps:
        if step.stage == "prepare" or step.is_control:
            continue
        roles = {role: taken for role, taken in step.inputs.items() if role != "data"}
        body = {
            "id": step.id,
            **as_written(step.stage, roles),
            **step.config.model_dump(mode="json"),
        }
        if step.id in controls:
            body["control"] = True
        steps.append({step.stage: body})
    whole = {
        "version": VERSION,
        "name": recipe.name,
        "description": recipe.description,
        "seed": recipe.seed,
        "device": recipe.device,
        "dtype": recipe.dtype,
        "power": recipe.power,
        "data": recipe.data.model_dump(mode="json"),
        "evaluate": recipe.evaluate.model_dump(mode="json"),
        "steps": steps,
        "gates": [gate.model_dump(mode="json") for gate in recipe.gates],
    }
    to_folder(whole, folder)
    return dump(whole)


def _text(name_or_path: str) -> tuple[str, str]:
    """The text of a recipe and the name of its file."""
    path = _path_of(name_or_path)
    content: Path | Traversable
    if path is not None:
        content, source = path, name_or_path
    elif name_or_path in packaged():
        content, source = (
            resources.files("slmc.recipes") / f"{name_or_path}.yaml",
            f"{name_or_path}.yaml",
        )
    else:
        raise RecipeError(
            f"there is no packaged recipe {name_or_path!r}.{nearest(name_or_path, packaged())}",
            "`slmc recipe ls` lists them; name your own recipe by a path that ends in .yaml.",
        )
    try:
        return content.read_text(encoding="utf-8"), source
    except UnicodeDecodeError:
        raise RecipeError(
            f"{source} is not a recipe: it is not UTF-8 text.",
            "Name a YAML file; `slmc recipe show quickstart` prints one.",
        ) from None
    except OSError as error:
        raise RecipeError(
            f"{source} cannot be read: {error.strerror}.",
            "Name a YAML file or a packaged recipe; `slmc recipe ls` lists the packaged ones.",
        ) from None


def _path_of(name_or_path: str) -> Path | None:
    """The path of a recipe; None for the name of a packaged one."""
    path = Path(name_or_path)
    return path if path.suffix in SUFFIXES or len(path.parts) > 1 else None


def _is_newer(document: Document, faults: Faults) -> bool:
    """Whether the recipe has another format, so that its other faults mean nothing."""
    version = document.value.get("version")
    if type(version) is not int or version == VERSION:
        return False
    what = f"unknown recipe format {version}; this slmc reads format {VERSION}"
    faults.add(document.place(("version",)), "version", what)
    return True


def _read(document: Document, faults: Faults, name: str, *, files: bool) -> Recipe:
    raw = document.value
    head = checked(document, faults, Head, raw, ())
    shared = {name: getattr(head, name) for name in ("seed", "device", "dtype")}
    data = checked(document, faults, PrepareConfig, raw.get("data"), ("data",), shared=shared)
    evaluate = checked(
        document, faults, EvaluateConfig, raw.get("evaluate", {}), ("evaluate",), shared=shared
    )
    protocol = {name: getattr(evaluate, name) for name in Protocol.model_fields}
    reader = StepReader(
        document, faults, shared | protocol, frozenset(KEYS) | {"source", "prepare"}
    )
    steps = reader.read(data)
    if not faults:
        check_compatibility(document, faults, steps)
    if files:
        check_files(document, faults)
        if not faults:
            check_heads(document, faults, data)
    gates = read_gates(document, faults, steps)
    faults.stop(name)
    _warn_of_another_source(document)
    return Recipe(
        head.name,
        head.description,
        head.seed,
        head.device,
        head.dtype,
        data,
        evaluate,
        tuple(steps),
        tuple(gates),
        head.power,
    )


def _warn_of_another_source(document: Document) -> None:
    data = document.value["data"]
    for key, of in of_another_source(data).items():
        log.warning(
            "%s: data.%s is ignored: it is for a source whose name contains %r, but data.source is "
            "%s",
            document.place(("data", key)), key, of, data["source"],
        )  # fmt: skip


def _smoke(recipe: Recipe) -> Recipe:
    """The recipe with the same steps on a random backbone and few users."""
    return replace(
        recipe,
        data=shrunk(recipe.data),
        evaluate=shrunk(recipe.evaluate),
        steps=tuple(replace(step, config=shrunk(step.config)) for step in recipe.steps),
        smoke=True,
    )
