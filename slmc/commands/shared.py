"""Options that several commands have, spelt the same everywhere."""

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from slmc import console
from slmc.commands import HELP_OPTIONS
from slmc.options import Function, signed

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
        visible = [p for p in own if p.name != "lines"]
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
