"""A command for one stage of :data:`slmc.stages.STAGES`: its roles and settings as options."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slmc.artefact import Artefact
from slmc.commands import console, running
from slmc.commands import inputs as given
from slmc.commands.options import configured
from slmc.commands.shared import Data, Force, Json, Out, SaveRecipe, command, with_parameters
from slmc.config import StageConfig
from slmc.stages import STAGES

if TYPE_CHECKING:
    from rich.table import Table

Supply = Callable[[str, Mapping[str, Artefact]], Artefact]
"""Makes what stands in a role that was not named, from the other inputs."""


def stage_app(
    name: str,
    does: str,
    positional: str | None,
    supply: Mapping[str, Supply] | None = None,
    table: "Callable[[Artefact], Table] | None" = None,
) -> typer.Typer:
    """The command of a stage.

    Args:
        name: The stage.
        does: First line of its help.
        positional: Role of the argument; None if there is none.
        supply: Roles that are made when they are not named.
        table: What is shown of the result beside its path.
    """
    app, stage, supply = typer.Typer(add_completion=False), STAGES[name], supply or {}

    def run(
        config: StageConfig,
        data: Data = None,
        out: Out = None,
        force: Force = False,
        json: Json = False,
        save_recipe: SaveRecipe = None,
        **roles: Path | None,
    ) -> None:
        found = {
            role: given.taken(path, stage.takes[role])
            for role, path in roles.items()
            if path is not None
        }
        found["data"] = given.data_for(found.get(positional or ""), data)
        if supply:  # what is made for a backbone takes minutes
            given.check_backbone(config, found["data"])
        for role, make in supply.items():
            if role not in found:
                found[role] = make(role, found)
        made = running.run(
            name, config, found, out=out, force=force, as_json=json, save_recipe=save_recipe
        )
        if table is not None and not json:
            console.show(table(made), aside=True)

    run.__name__, run.__doc__ = name, does
    settings = configured(stage.config, f"slmc {name}")
    # configured() comes last: it takes the roles from the signature, and hands them on.
    command(app, network=True)(settings(with_parameters(run, _roles(name, positional))))
    return app


def _roles(name: str, positional: str | None) -> dict[str, tuple[Any, Any]]:
    stage = STAGES[name]
    found: dict[str, tuple[Any, Any]] = {}
    for role, kind in stage.takes.items():
        if role == positional:
            info: Any = typer.Argument(metavar=role.upper(), help=f"The {kind} artefact.")
            found[role] = (Annotated[Path, info], ...)
        elif role != "data":
            text = f"A {kind} artefact in the role of {role}."
            found[role] = (Annotated[Path | None, typer.Option(f"--{role}", help=text)], None)
    return found
