"""``slmc cache ls|gc``."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slmc import cache
from slmc.artefact import Artefact
from slmc.commands import console
from slmc.commands.shared import Json, command
from slmc.errors import UsageError

if TYPE_CHECKING:
    from slmc.pipeline.inventory import Garbage

app = typer.Typer(no_args_is_help=True, add_completion=False)
MB = 10**6
RUNS = Path("runs")
"""Where `slmc run` puts its folders by default."""


@app.callback()
def group() -> None:
    """List and clear what slmc keeps."""


@command(app, "ls")
def ls(json: Json = False) -> None:
    """List what the cache holds: artefacts, teacher states, sources, backbones."""
    from slmc.pipeline.inventory import artefacts, parts, size

    found, others, total = artefacts(), parts(), size(cache.root())
    if json:
        console.result_json(
            {
                "root": str(cache.root()),
                "artefacts": [_row(one) for one in found],
                "others": [
                    {"what": part.name, "count": part.count, "bytes": part.bytes} for part in others
                ],
                "bytes": total,
            }
        )
        return
    _show(found)
    held = sum(size(one.path) for one in found)
    for line in [
        f"artefacts: {len(found)}, {_mb(held)}",
        *(
            f"{part.name}: {f'{part.count}, ' * bool(part.count)}{_mb(part.bytes)}"
            for part in others
        ),
        f"all of {cache.root()}: {_mb(total)}",
    ]:
        console.result(line)


@command(app)
def gc(
    runs: Annotated[
        list[Path] | None,
        typer.Option("--runs", help="Folder of further runs whose artefacts are kept; repeat it."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go.")] = False,
    json: Json = False,
) -> None:
    """Remove artefacts that no run links to and that no such artefact was made from.

    All runs that have used this cache count, wherever their folders lie; a run whose folder is
    gone is forgotten. What would go is listed, and removed once you say yes.
    """
    from slmc.pipeline.inventory import garbage, remove, size

    found = garbage(_run_folders(runs))
    freed = sum(map(size, [*(one.path for one in found.artefacts), *found.states]))
    if not json:
        _tell(found)
    going = bool(found.artefacts or found.states)
    agreed = not dry_run and (yes or not going or _asked())
    if agreed:
        remove(found)
    if json:
        shown = agreed or dry_run
        console.result_json(
            {
                "removed": [one.path.name for one in found.artefacts] * shown,
                "states": [path.name for path in found.states] * shown,
                "bytes": freed * shown,
                "dry_run": dry_run,
                "runs": [str(folder) for folder in found.runs],
                "gone": [str(folder) for folder in found.gone],
            }
        )
        return
    verb = "would go" if dry_run else "removed" if agreed else "nothing was removed"
    console.result(
        f"{_count(len(found.artefacts), 'artefact')}, {_mb(freed)}: {verb}; "
        f"{found.kept} kept: {_count(len(found.runs), 'run')} and what they link to"
    )


def _run_folders(named: list[Path] | None) -> list[Path]:
    """Folders of runs that may not have been entered in the cache: those of the working folder.

    Raises:
        UsageError: A folder that was named is not there.
    """
    for folder in named or ():
        if not folder.is_dir():
            raise UsageError(
                f"--runs {folder}: there is no such folder; nothing was removed.",
                "Name a folder that holds the folders of runs.",
            )
    return [run for folder in (named or [RUNS]) for run in folder.glob("*") if run.is_dir()]


def _tell(found: "Garbage") -> None:
    """List what would go, and why."""
    from slmc.pipeline.inventory import size

    _show(found.artefacts)
    if found.states:
        megabytes = _mb(sum(map(size, found.states)))
        console.result(f"teacher states: {len(found.states)}, {megabytes}")
    for folder in found.gone:
        console.result(f"{folder} is gone: what that run linked to is kept no longer")


def _asked() -> bool:
    """Whether the user says yes.

    Raises:
        UsageError: There is no terminal to ask at.
    """
    if not sys.stdin.isatty():
        raise UsageError(
            "nothing was removed: there is no terminal to ask at.",
            "Pass --yes to remove what is listed, or --dry-run to list it only.",
        )
    return typer.confirm("Remove these?", err=True)


def _show(artefacts: Sequence[Artefact]) -> None:
    from rich.table import Table

    table = Table("stage", "kind", "MB", "key", "digest", box=None, pad_edge=False)
    for one in artefacts:
        row = _row(one)
        megabytes = f"{row['bytes'] / MB:.1f}"
        table.add_row(row["stage"], row["kind"], megabytes, row["key"][:12], row["digest"][:12])
    if artefacts:
        console.show(table)


def _row(one: Artefact) -> dict[str, Any]:
    from slmc.pipeline.inventory import size

    return {
        "key": one.path.name,
        "stage": one.manifest.stage,
        "kind": one.manifest.kind,
        "digest": one.digest,
        "bytes": size(one.path),
    }


def _mb(count: int) -> str:
    return f"{count / MB:,.1f} MB"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
