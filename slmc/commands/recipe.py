"""``slmc recipe ls|show|cp|check|schema``."""

from pathlib import Path
from typing import Annotated

import typer

from slmc.commands import console
from slmc.commands.shared import Json, command
from slmc.errors import UsageError
from slmc.system import refuse_existing, write_whole

app = typer.Typer(no_args_is_help=True, add_completion=False)

Name = Annotated[str, typer.Argument(metavar="RECIPE", help="A packaged name or a path.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value, such as distill.layers=2."),
]


@app.callback()
def group() -> None:
    """List, show, copy and check recipes."""


@command(app, "ls")
def ls(json: Json = False) -> None:
    """List the recipes that ship with slmc."""
    from slmc.recipe import load, packaged

    descriptions = {name: load(name).description for name in packaged()}
    if json:
        console.result_json(descriptions)
        return
    for name, description in descriptions.items():
        console.result(f"{name:<16} {description}")


@command(app)
def show(
    recipe: Name,
    resolved: Annotated[bool, typer.Option("--resolved", help="With every setting.")] = False,
    sets: Sets = None,
) -> None:
    """Print a recipe."""
    from slmc import recipe as recipes

    if resolved:
        console.result(recipes.resolved_yaml(recipes.load(recipe, sets=sets or ())).rstrip())
    elif sets:
        raise UsageError("--set has no effect without --resolved.", "Add --resolved.")
    else:
        console.result(recipes.text_of(recipe).rstrip())


@command(app)
def cp(
    recipe: Name,
    to: Annotated[Path, typer.Argument(metavar="FILE", help="Path of the copy.")],
    force: Annotated[bool, typer.Option("--force", help="Replace FILE.")] = False,
) -> None:
    """Copy a recipe, to change it; the copy gets the name of its file."""
    from slmc import recipe as recipes

    text = recipes.renamed(recipes.text_of(recipe), recipe, to)
    remedy = "Name another file, or pass --force."
    refuse_existing(to, UsageError, ours=True, replace=force, remedy=remedy)
    write_whole(to, text)
    console.result(str(to))


@command(app)
def check(recipe: Name, sets: Sets = None, json: Json = False) -> None:
    """Check that a recipe can run, without running it."""
    from slmc import recipe as recipes
    from slmc.pipeline.preflight import check_backbones

    loaded = recipes.load(recipe, sets=sets or (), files=True)
    check_backbones(loaded, loaded.steps)
    if json:
        steps = [{"id": s.id, "stage": s.stage, "inputs": s.inputs} for s in loaded.steps]
        console.result_json({"name": loaded.name, "steps": steps, "gates": len(loaded.gates)})
        return
    width = max(18, *(len(step.id) for step in loaded.steps))
    for step in loaded.steps:
        taken = ", ".join(f"{role} {of}" for role, of in step.inputs.items())
        console.result(f"{step.id:<{width}} {step.stage:<10} {taken}".rstrip())
    console.result(f"{loaded.name}: {len(loaded.steps)} steps, {len(loaded.gates)} gates: valid")


@command(app)
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from slmc.recipe.schema import schema as of_recipes

    console.result_json(of_recipes())
