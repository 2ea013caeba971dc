"""The ``slmc`` command: finds the subcommand, runs it, prints errors in two lines.

A subcommand's module is imported only when it is called, so that ``slmc --help`` imports neither
configs nor torch.
"""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from slmc import __version__
from slmc.commands import HELP_OPTIONS, console, streams
from slmc.errors import BrokenRunError, SlmcError, UsageError
from slmc.system import refused

RECIPES, STAGES, USE, MORE = "A recipe", "One stage, on artefacts", "Use and look", "More"


@dataclass(frozen=True)
class Subcommand:
    """A subcommand as the help shows it, and where its code is."""

    summary: str
    panel: str
    """Heading of the help under which it is listed."""
    module: str | None = None
    """Module that holds its ``app``; None for the command of the stage of that name."""


COMMANDS = {
    "run": Subcommand(
        "Run a recipe: every stage, the gates, the report.", RECIPES, "slmc.commands.run"
    ),
    "recipe": Subcommand("List, show, copy and check recipes.", RECIPES, "slmc.commands.recipe"),
    "data": Subcommand("Prepare, check and describe a dataset.", STAGES, "slmc.commands.data"),
    "teach": Subcommand("Train an LLM to rank the catalogue: the teacher.", STAGES),
    "depth": Subcommand("Measure how a model ranks with fewer of its layers.", STAGES),
    "distill": Subcommand("Distil a teacher into a student.", STAGES),
    "prune": Subcommand("Remove layers, attention heads and MLP channels from a model.", STAGES),
    "quantize": Subcommand("Store a model's weights in 4 or 8 bits.", STAGES),
    "export": Subcommand("Turn a model into an engine that ranks the same.", STAGES),
    "bench": Subcommand("Time an engine on real histories.", STAGES),
    "validate": Subcommand(
        "Judge a model or an engine against a baseline; exit 1 if it fails.",
        STAGES,
        "slmc.commands.validate",
    ),
    "recommend": Subcommand(
        "Print the best items for one history.", USE, "slmc.commands.recommend"
    ),
    "serve": Subcommand(
        "Serve engines over HTTP: recommendations, search, metrics, a page to try them.",
        USE,
        "slmc.commands.serve",
    ),
    "package": Subcommand(
        "Write a folder that serves an engine over HTTP without slmc, also as a container.",
        USE,
        "slmc.commands.package",
    ),
    "score": Subcommand(
        "Recommend to the users of a file, and write the best items of each.",
        USE,
        "slmc.commands.score",
    ),
    "show": Subcommand(
        "Show what artefacts are and how they were made.", USE, "slmc.commands.show"
    ),
    "diff": Subcommand("Show how two artefacts differ.", USE, "slmc.commands.diff"),
    "doctor": Subcommand("Show what can run on this machine.", MORE, "slmc.commands.doctor"),
    "cache": Subcommand("List and clear what slmc keeps.", MORE, "slmc.commands.cache"),
}
"""Name -> subcommand, in the order of the help."""


class Commands(TyperGroup):
    """The subcommands: known by name and help, imported when called."""

    def __init__(self, **settings: Any) -> None:
        """Add a placeholder for every subcommand, for the help."""
        super().__init__(**settings)
        for name, subcommand in COMMANDS.items():
            placeholder = TyperCommand(name, help=subcommand.summary)
            placeholder.rich_help_panel = subcommand.panel
            self.commands[name] = placeholder

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Import the subcommand that is called."""
        if args and args[0] in COMMANDS:
            self.commands[args[0]] = command(args[0])
        return super().resolve_command(ctx, args)


def command(name: str) -> Any:
    """The subcommand itself, imported now."""
    subcommand = COMMANDS[name]
    if subcommand.module is None:
        from slmc.commands.stage_command import stage_app

        app = stage_app(name, subcommand.summary)
    else:
        app = importlib.import_module(subcommand.module).app
    parser = get_command(app)
    parser.context_settings.setdefault("help_option_names", list(HELP_OPTIONS))
    return parser


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    context_settings={"help_option_names": list(HELP_OPTIONS)},
)


def _version(requested: bool) -> None:
    if requested:
        console.result(f"slmc {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Make small recommenders out of large language models, and prove that they rank as well."""


def main() -> None:
    """Run the command line and exit."""
    streams.guard()
    sys.exit(call(sys.argv[1:]))


def call(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code.

    Every error is two lines on stderr; ``-v`` adds the traceback. ``SystemExit``, such as
    from SIGTERM, becomes its exit code.
    """
    console.reset()
    try:
        code = get_command(app).main(list(arguments), prog_name="slmc", standalone_mode=False)
        sys.stdout.flush()
    except SlmcError as error:
        console.error(error)
        return error.exit_code
    except KeyboardInterrupt:
        code = 130
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except Exception as error:
        return _other(error)
    except BaseException as error:
        # A panic of a library in Rust, such as polars, is no Exception.
        if type(error).__name__ != "PanicException":
            raise
        return _other(error)
    if code in (130, 143):
        what = "interrupted." if code == 130 else "terminated."
        console.error(SlmcError(what, "Run the same command again: it resumes from there."))
    return code if isinstance(code, int) else 0


def _other(error: BaseException) -> int:
    """Print an error of the option parser, of the operating system, or a bug of slmc."""
    kind = type(error).__name__
    if kind == "Abort":
        console.error(SlmcError("interrupted.", "Run the same command again."))
        return 130
    # Typer may use its own copy of Click, so the error is recognised by its method.
    format_message = getattr(error, "format_message", None)
    if format_message is not None:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "slmc"
        # Without a subcommand the help has been printed already.
        if kind != "NoArgsIsHelpError":
            text = " ".join(format_message().split())
            console.error(UsageError(text, f"See `{path} --help`."))
        return int(getattr(error, "exit_code", 2))
    if (system_error := refused(error)) is not None:
        console.error(system_error)
        return system_error.exit_code
    lines = str(error).strip().splitlines() or [""]
    console.error(
        BrokenRunError(
            f"{kind}: {lines[0]}".removesuffix(": "),
            "This is a bug in slmc; the same command with -v prints the traceback.",
        )
    )
    return BrokenRunError.exit_code
