"""Run a single stage and print where its artefact is."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from slmc.artefact import Artefact
from slmc.commands import console
from slmc.config import StageConfig
from slmc.system import write_whole


def run(
    stage: str,
    config: StageConfig,
    inputs: Mapping[str, Artefact],
    *,
    out: Path | None,
    force: bool,
    as_json: bool,
    save_recipe: Path | None = None,
    more: Callable[[Artefact], Mapping[str, Any]] = lambda _: {},
) -> Artefact:
    """Run one stage and print where its artefact is; returns it.

    Args:
        stage: Name of the stage.
        config: Its settings.
        inputs: Role -> artefact.
        out: Where to copy the artefact to.
        force: Whether to replace an artefact at ``out``.
        as_json: Whether to print JSON.
        save_recipe: File to write the call to, as a recipe.
        more: Further entries of the JSON.
    """
    from slmc.pipeline import run_stage

    recipe = None
    if save_recipe is not None:
        from slmc.commands.lineage import as_recipe

        recipe = as_recipe(stage, config, inputs, save_recipe)
    artefact = run_stage(stage, config, inputs, out=out, force=force)
    if recipe is not None and save_recipe is not None:
        write_whole(save_recipe, recipe)
    print_artefact(artefact, as_json=as_json, more=more(artefact))
    return artefact


def print_artefact(
    artefact: Artefact, *, as_json: bool, more: Mapping[str, Any] | None = None
) -> None:
    """Print the path of an artefact, or its manifest as JSON."""
    if as_json:
        console.result_json(
            {
                "path": str(artefact.path),
                "digest": artefact.digest,
                "kind": artefact.manifest.kind,
                "stage": artefact.manifest.stage,
                "metrics": artefact.manifest.metrics,
                **(more or {}),
            }
        )
    else:
        console.result(str(artefact.path))
