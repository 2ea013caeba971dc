"""Options that several commands share."""

import copy
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from slmc.commands import HELP_OPTIONS, console
from slmc.commands.options import Function, signed

Out = Annotated[
    Path | None,
    typer.Option("-o", "--out", help="Copy the artefact to this path; it also stays in the cache."),
]
Data = Annotated[
    Path | None,
    typer.Option("--data", help="Dataset artefact; default: the one that the model was made from."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an artefact at --out.")]
SaveRecipe = Annotated[
    Path | None,
    typer.Option(
        "--save-recipe", metavar="FILE", help="Write this call and all earlier stages as a recipe."
    ),
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Log warnings and errors only.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Log everything; show tracebacks.")]
Offline = Annotated[bool, typer.Option("--offline", help="Do not use the network.")]


def context() -> dict[str, Any]:
    """Typer settings of every command: ``--group_size`` is read as ``--group-size``."""
    return {
        "token_normalize_func": lambda token: token.replace("_", "-"),
        "help_option_names": list(HELP_OPTIONS),
    }


def not_empty(text: str) -> str:
    """The text; raises ``typer.BadParameter`` if it is empty."""
    if not text.strip():
        raise typer.BadParameter(
            "it is empty; maybe a variable is not set, or the command that prints it failed"
        )
    return text


def path(text: str | Path) -> Path:
    """The path; an empty one is refused, since Python reads it as the working directory."""
    return Path(not_empty(str(text)))


def _with_paths(parameter: inspect.Parameter) -> inspect.Parameter:
    """The parameter of a command, read by :func:`path` if it is one path or several."""
    parts = get_args(parameter.annotation)
    if not parts or not {Path, list[Path]} & {parts[0], *get_args(parts[0])}:
        return parameter
    # Commands share options such as --out, so change a copy.
    kind, infos = parts[0], [copy.copy(info) for info in parts[1:]]
    for info in infos:
        info.parser = path
    return parameter.replace(annotation=Annotated[kind, *infos])


def command(
    app: typer.Typer, name: str | None = None, *, network: bool = False
) -> Callable[[Function], Function]:
    """Register a command; its log is shown while it runs.

    Args:
        app: The app of the command.
        name: Name of the command, if it is not that of the function.
        network: Whether the command may use the network; if so it has ``--offline``.
    """

    def decorate(function: Function) -> Function:
        parameters = list(inspect.signature(function).parameters.values())
        options: dict[str, Any] = {"quiet": Quiet, "verbose": Verbose}
        options |= {"offline": Offline} if network else {}
        extra = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=value)
            for key, value in options.items()
        ]

        def call(**values: Any) -> int | None:
            quiet, verbose = values.pop("quiet"), values.pop("verbose")
            if values.pop("offline", False):
                os.environ["HF_HUB_OFFLINE"] = "1"
            with console.session(quiet=quiet, verbose=verbose) as lines:
                if "lines" in wanted:
                    values["lines"] = lines
                return function(**values)

        wanted = {p.name for p in parameters}
        visible = [_with_paths(p) for p in parameters if p.name != "lines"]
        app.command(name, context_settings=context())(signed(call, [*visible, *extra], function))
        return function

    return decorate


def with_parameters(
    function: Callable[..., int | None], extra: dict[str, tuple[Any, Any]]
) -> Function:
    """Replace ``**roles`` of a function by keyword parameters: name -> annotation, default."""
    parameters = [
        p
        for p in inspect.signature(function).parameters.values()
        if p.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in extra.items()
    ]
    return signed(lambda **values: function(**values), [*added, *parameters], function)
