"""Options that several commands have, spelt the same everywhere."""

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
    typer.Option("-o", "--out", help="Put the artefact here; else it stays in the cache."),
]
Data = Annotated[
    Path | None,
    typer.Option("--data", help="Dataset artefact; else the one that the model was made from."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an artefact at --out.")]
SaveRecipe = Annotated[
    Path | None,
    typer.Option("--save-recipe", metavar="FILE", help="Write what this call does as a recipe."),
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Log warnings and errors only.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Log everything; show tracebacks.")]
Offline = Annotated[bool, typer.Option("--offline", help="Leave the network alone.")]


def context() -> dict[str, Any]:
    """Settings of every command: ``--group_size`` is read as ``--group-size``."""
    return {
        "token_normalize_func": lambda token: token.replace("_", "-"),
        "help_option_names": list(HELP_OPTIONS),
    }


def not_empty(text: str) -> str:
    """What was given; raises ``typer.BadParameter`` where it is empty."""
    if not text.strip():
        raise typer.BadParameter(
            "it is empty; is a variable not set, or has the command failed that gives it?"
        )
    return text


def path(text: str | Path) -> Path:
    """The path that was given; an empty one, which Python takes for this folder, is refused."""
    return Path(not_empty(str(text)))


def _with_paths(parameter: inspect.Parameter) -> inspect.Parameter:
    """The parameter of a command, read by :func:`path` if it is one path or several."""
    parts = get_args(parameter.annotation)
    if not parts or not {Path, list[Path]} & {parts[0], *get_args(parts[0])}:
        return parameter
    # Options such as --out are shared by commands: theirs stays as it is.
    kind, infos = parts[0], [copy.copy(info) for info in parts[1:]]
    for info in infos:
        info.parser = path
    return parameter.replace(annotation=Annotated[kind, *infos])


def command(
    app: typer.Typer, name: str | None = None, *, network: bool = False
) -> Callable[[Function], Function]:
    """Register a command that shows its log while it runs.

    Args:
        app: Where it is registered.
        name: Its name, if it is not the function's.
        network: Whether it may use the network, so that it has ``--offline``.
    """

    def decorate(function: Function) -> Function:
        own = list(inspect.signature(function).parameters.values())
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

        wanted = {p.name for p in own}
        visible = [_with_paths(p) for p in own if p.name != "lines"]
        app.command(name, context_settings=context())(signed(call, [*visible, *extra], function))
        return function

    return decorate


def with_parameters(
    function: Callable[..., int | None], extra: dict[str, tuple[Any, Any]]
) -> Function:
    """Give a function with ``**roles`` named keyword parameters: name -> annotation, default."""
    own = [
        p
        for p in inspect.signature(function).parameters.values()
        if p.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in extra.items()
    ]
    return signed(lambda **values: function(**values), [*added, *own], function)
