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
    from slmc.pipeline.inventory import Dangling, Garbage

app = typer.Typer(no_args_is_help=True, add_completion=False)
MB = 10**6
RUNS = Path("runs")
"""Default folder of `slmc run`."""


@app.callback()
def group() -> None:
    """List and clear what slmc keeps."""


@command(app, "ls")
def ls(json: Json = False) -> None:
    """List the contents of the cache: artefacts, states, sources, backbones, text vectors.

    Links of runs whose artefacts are gone are listed with the command that makes them again.
    """
    from slmc.pipeline.inventory import artefacts, dangling, parts, size

    cached, others, total = artefacts(), parts(), size(cache.root())
    broken = dangling(_run_folders(None))
    if json:
        console.result_json(
            {
                "root": str(cache.root()),
                "artefacts": [_row(one) for one in cached],
                "others": [
                    {"what": part.name, "count": part.count, "bytes": part.bytes} for part in others
                ],
                "bytes": total,
                "dangling": [_broken(one) for one in broken],
            }
        )
        return
    _show(cached)
    artefact_bytes = sum(size(one.path) for one in cached)
    for line in [
        f"artefacts: {len(cached)}, {_mb(artefact_bytes)}",
        *(
            f"{part.name}: {f'{part.count}, ' * bool(part.count)}{_mb(part.bytes)}"
            for part in others
        ),
        f"all of {cache.root()}: {_mb(total)}",
        *_broken_lines(broken),
    ]:
        console.result(line)


@command(app)
def gc(
    runs: Annotated[
        list[Path] | None,
        typer.Option(
            "--runs", help="Folder with further runs whose artefacts are kept; may be repeated."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be removed.")] = False,
    json: Json = False,
) -> None:
    """Remove artefacts that no run needs: neither linked by a run nor an input of a linked one.

    All runs that have used this cache count, in whatever folder they are. Runs whose folder no
    longer exists do not count: if a run was moved, name its new place with --runs once. The command
    lists what it would remove, and asks before it does.
    """
    from slmc.pipeline.inventory import dangling, garbage, remove, size

    folders = _run_folders(runs)
    unused, broken = garbage(folders), dangling(folders)
    freed = sum(map(size, [*(one.path for one in unused.artefacts), *unused.states]))
    if not json:
        _list(unused)
    any_unused = bool(unused.artefacts or unused.states)
    agreed = not dry_run and (yes or not any_unused or _confirmed())
    if agreed:
        remove(unused)
    if json:
        shown = agreed or dry_run
        console.result_json(
            {
                "removed": [one.path.name for one in unused.artefacts] * shown,
                "states": [path.name for path in unused.states] * shown,
                "bytes": freed * shown,
                "dry_run": dry_run,
                "runs": [str(folder) for folder in unused.runs],
                "gone": [str(folder) for folder in unused.gone],
                "dangling": [_broken(one) for one in broken],
            }
        )
        return
    verb = "would be removed" if dry_run else "removed" if agreed else "nothing was removed"
    console.result(
        f"{_count(len(unused.artefacts), 'artefact')}, {_mb(freed)}: {verb}; "
        f"{unused.kept} kept for {_count(len(unused.runs), 'run')}"
    )
    for line in _broken_lines(broken):
        console.result(line)


def _run_folders(named: list[Path] | None) -> list[Path]:
    """Folders of runs that may not be recorded in the cache: by default those in ``runs``.

    Raises:
        UsageError: A folder of ``--runs`` does not exist.
    """
    for folder in named or ():
        if not folder.is_dir():
            raise UsageError(
                f"--runs {folder}: this folder does not exist; nothing was removed.",
                "Name a folder that contains folders of runs.",
            )
    return [run for folder in (named or [RUNS]) for run in folder.glob("*") if run.is_dir()]


def _list(unused: "Garbage") -> None:
    """List what would be removed."""
    from slmc.pipeline.inventory import size

    _show(unused.artefacts)
    if unused.states:
        megabytes = _mb(sum(map(size, unused.states)))
        console.result(f"teacher states: {len(unused.states)}, {megabytes}")
    for folder in unused.gone:
        console.result(
            f"{folder} no longer exists: the artefacts of that run are not kept. If it was moved, "
            "name its new place with --runs."
        )


def _broken(one: "Dangling") -> dict[str, Any]:
    return {"link": str(one.link), "again": one.again}


def _broken_lines(broken: "Sequence[Dangling]") -> list[str]:
    """Links of runs into nothing, and how to make their artefacts again."""
    return [
        f"{one.link}: the artefact is gone. "
        + (f"Make it again with {one.again}." if one.again else "Run its recipe again.")
        for one in broken
    ]


def _confirmed() -> bool:
    """Ask the user; return whether the answer is yes.

    Raises:
        UsageError: There is no terminal to ask the user.
    """
    if not sys.stdin.isatty():
        raise UsageError(
            "nothing was removed: there is no terminal to ask for confirmation.",
            "Pass --yes to remove what is listed, or --dry-run only to list it.",
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
