"""Write a single-stage call as a recipe: its settings, and those of all earlier stages."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slmc.artefact import Artefact
from slmc.commands.inputs import parent
from slmc.config import StageConfig
from slmc.errors import UsageError
from slmc.recipe import load
from slmc.recipe.paths import to_folder
from slmc.recipe.steps import FIRST, as_written
from slmc.recipe.text import dump
from slmc.stages import STAGES
from slmc.system import refuse_existing


def as_recipe(stage: str, config: StageConfig, inputs: Mapping[str, Artefact], file: Path) -> str:
    """The text of a valid recipe that makes the same artefact as the call.

    Args:
        stage: Name of the stage.
        config: Its settings.
        inputs: Role -> artefact; the manifests record how each was made.
        file: Path of the recipe; its stem is the name of the recipe.

    Raises:
        UsageError: An earlier artefact is not in the cache, the file exists already, or the
            recipe would not be valid.
    """
    remedy = "Name another file for --save-recipe."
    refuse_existing(file, UsageError, ours=True, replace=False, remedy=remedy)
    if file.suffix not in (".yaml", ".yml"):
        raise UsageError(f"{file} is not a name for a recipe.", "Use a name that ends in .yaml.")
    lines: dict[str, tuple[str, dict[str, Any]]] = {}
    ids = {role: _walk(artefact, lines) for role, artefact in inputs.items()}
    _add(stage, config, ids, lines)
    _drop_defaults(lines)
    data = next((body for at, body in lines.values() if at == "prepare"), {})
    steps = [{at: body or None} for at, body in lines.values() if at != "prepare"]
    recipe = {"version": 1, "name": file.stem, "data": data, "steps": steps}
    to_folder(recipe, file.parent)
    text = dump(recipe)
    _read_back(text)
    return text


def _walk(artefact: Artefact, lines: dict[str, tuple[str, dict[str, Any]]]) -> str:
    """Add the step that made an artefact, after the steps of its inputs; return its id."""
    manifest = artefact.manifest
    ids: dict[str, str] = {}
    for role in manifest.parents:
        made_from = parent(artefact, role)
        if made_from is None:
            raise UsageError(
                f"the {role} that {artefact.path} was made from is not in the cache, so its "
                "recipe is not known.",
                "Leave --save-recipe out, or run the earlier stages again.",
            )
        ids[role] = _walk(made_from, lines)
    config = STAGES[manifest.stage].config.model_validate(manifest.config)
    return _add(manifest.stage, config, ids, lines)


def _add(
    stage: str,
    config: StageConfig,
    ids: Mapping[str, str],
    lines: dict[str, tuple[str, dict[str, Any]]],
) -> str:
    body = config.model_dump(mode="json", exclude_defaults=True)
    body = as_written(stage, {role: one for role, one in ids.items() if role != "data"}) | body
    for known, line in lines.items():
        if line == (stage, body) or line == (stage, {"id": known} | body):
            return known
    count = sum(at == stage for at, _ in lines.values())
    name = stage if not count else f"{stage}-{count + 1}"
    lines[name] = (stage, ({"id": name} if count else {}) | body)
    return name


def _drop_defaults(lines: Mapping[str, tuple[str, dict[str, Any]]]) -> None:
    """Leave out the roles that a recipe fills by default: the last SASRec, the last baselines."""
    last = {stage: name for name, (stage, _) in lines.items()}
    for _, body in lines.values():
        for role in FIRST:
            if role in body and body[role] == last[role]:
                del body[role]


def _read_back(text: str) -> None:
    """Read the recipe as `slmc run` does; raises if it is not valid."""
    descriptor, name = tempfile.mkstemp(suffix=".yaml")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
        load(name, env={})
    finally:
        Path(name).unlink()
