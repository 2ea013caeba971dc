"""The commands of single stages: inputs and settings of a stage as arguments and options."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slmc.artefact import Artefact
from slmc.commands import console, inputs, running
from slmc.commands.options import configured
from slmc.commands.shared import Data, Force, Json, Out, SaveRecipe, command, with_parameters
from slmc.config import StageConfig
from slmc.stages import STAGES

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


ROLES = {"engine": "engine", "baseline": "baseline"}


def bench_table(report: Artefact, config: StageConfig) -> "Table":
    """The table of a bench report, with costs if the config has a price."""
    from slmc.report.tables import timings
    from slmc.report.terminal import timing_table

    return timing_table(timings(report, ROLES, getattr(config, "price_per_hour", None)))


def bench_costs(report: Artefact, config: StageConfig) -> dict[str, Any]:
    """Contender -> batch size -> cost of a million histories; empty without a price.

    The price does not belong to the report, which is the same whatever an hour costs.
    """
    from slmc.report.tables import timings

    costs: dict[str, dict[str, float]] = {}
    for one in timings(report, ROLES, getattr(config, "price_per_hour", None)):
        if one.per_million is not None:
            costs.setdefault(one.who, {})[str(one.batch)] = one.per_million
    return {"cost_per_million": costs} if costs else {}


def depth_table(report: Artefact, config: StageConfig) -> "RenderableType":
    """The table of a depth report."""
    from slmc.report import depth

    return depth.table(depth.read(report))


def depth_numbers(report: Artefact, config: StageConfig) -> dict[str, Any]:
    """All numbers of a depth report, in place of the summary in its manifest."""
    from slmc.report import depth

    return {"metrics": depth.read(report)}


def check_depth(report: Artefact) -> None:
    """Raise ``VerdictError`` if no depth is within the budget."""
    from slmc.report import depth

    depth.check(depth.read(report))


@dataclass(frozen=True)
class StageCommand:
    """How the command of a stage differs from those of other stages."""

    argument: str | None = None
    """Role of the positional argument; every other role is an option."""
    defaults: tuple[str, ...] = ()
    """Roles whose stage is run with its default settings if the option is left out."""
    table: "Callable[[Artefact, StageConfig], RenderableType] | None" = None
    """Makes the table that is shown in addition to the artefact's path."""
    more: Callable[[Artefact, StageConfig], dict[str, Any]] = lambda *_: {}
    """Makes further entries of the result in JSON."""
    check: Callable[[Artefact], None] | None = None
    """Called after the result is printed; raises ``VerdictError`` if the answer is no."""


STAGE_COMMANDS = {
    "teach": StageCommand(defaults=("sasrec", "baselines")),
    "depth": StageCommand(
        argument="teacher", table=depth_table, more=depth_numbers, check=check_depth
    ),
    "distill": StageCommand(argument="teacher"),
    "prune": StageCommand(argument="model"),
    "quantize": StageCommand(argument="model"),
    "export": StageCommand(argument="model"),
    "bench": StageCommand(argument="engine", table=bench_table, more=bench_costs),
}
"""Stage -> its command."""


def stage_app(name: str, summary: str) -> typer.Typer:
    """The command of a stage.

    Args:
        name: The stage, one of :data:`STAGE_COMMANDS`.
        summary: First line of its help.
    """
    app, stage, own = typer.Typer(add_completion=False), STAGES[name], STAGE_COMMANDS[name]

    def run(
        config: StageConfig,
        data: Data = None,
        out: Out = None,
        force: Force = False,
        json: Json = False,
        save_recipe: SaveRecipe = None,
        **roles: Path | None,
    ) -> None:
        artefacts = {
            role: inputs.artefact_at(path, stage.takes[role])
            for role, path in roles.items()
            if path is not None
        }
        artefacts["data"] = inputs.dataset_for(artefacts.get(own.argument or ""), data)
        if own.defaults:  # these stages train for minutes: check the backbone first
            inputs.check_backbone(config, artefacts["data"])
        for role in own.defaults:
            if role not in artefacts:
                artefacts[role] = _by_default(role, artefacts)
        artefact = running.run(
            name,
            config,
            artefacts,
            out=out,
            force=force,
            as_json=json,
            save_recipe=save_recipe,
            more=lambda made: own.more(made, config),
        )
        if own.table is not None and not json:
            console.show(own.table(artefact, config), aside=True)
        if own.check is not None:
            own.check(artefact)

    run.__name__, run.__doc__ = name, summary
    settings = configured(stage.config, f"slmc {name}")
    # configured() runs last: it reads the signature that with_parameters() extends.
    command(app, network=True)(settings(with_parameters(run, _roles(name, own.argument))))
    return app


def _by_default(name: str, artefacts: Mapping[str, Artefact]) -> Artefact:
    """Run a stage with its default settings, through the cache."""
    from slmc.pipeline import run_stage

    stage = STAGES[name]
    return run_stage(name, stage.config(), {role: artefacts[role] for role in stage.takes})


def _roles(name: str, argument: str | None) -> dict[str, tuple[Any, Any]]:
    """Role of the stage -> annotation and default of its parameter."""
    parameters: dict[str, tuple[Any, Any]] = {}
    for role, kind in STAGES[name].takes.items():
        if role == argument:
            info: Any = typer.Argument(metavar=role.upper(), help=f"The {kind} artefact.")
            parameters[role] = (Annotated[Path, info], ...)
        elif role != "data":
            text = f"A {kind} artefact in the role of {role}."
            parameters[role] = (Annotated[Path | None, typer.Option(f"--{role}", help=text)], None)
    return parameters
