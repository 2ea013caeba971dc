"""``slmc cache ls|gc``."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from slmc import cache, console
from slmc.artefact import Artefact, is_key, peek
from slmc.commands.shared import Json, command
from slmc.errors import ArtefactError

app = typer.Typer(no_args_is_help=True, add_completion=False)
MB = 10**6


@app.callback()
def group() -> None:
    """List and clear what slmc keeps."""


@command(app, "ls")
def ls(json: Json = False) -> None:
    """List the artefacts in the cache."""
    from rich.table import Table

    found = sorted(artefacts(), key=lambda a: (a.manifest.stage, a.path.name))
    if json:
        rows = [
            {
                "key": a.path.name,
                "stage": a.manifest.stage,
                "kind": a.manifest.kind,
                "digest": a.digest,
                "bytes": size(a.path),
            }
            for a in found
        ]
        console.result_json({"root": str(cache.root()), "artefacts": rows})
        return
    table = Table("stage", "kind", "MB", "key", "digest", box=None, pad_edge=False)
    for one in found:
        megabytes = f"{size(one.path) / MB:.1f}"
        manifest = one.manifest
        table.add_row(manifest.stage, manifest.kind, megabytes, one.path.name[:12], one.digest[:12])
    console.show(table)
    console.result(f"{len(found)} artefacts, {size(cache.root()) / MB:.1f} MB in {cache.root()}")


@command(app)
def gc(
    runs: Annotated[
        list[Path] | None,
        typer.Option("--runs", help="Folders of runs whose artefacts are kept; repeat it."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go.")] = False,
    json: Json = False,
) -> None:
    """Remove artefacts that no run links to, with what they were made from kept too."""
    folders = runs or [Path("runs")]
    kept = reachable(artefacts(), linked(folders))
    going = [a for a in artefacts() if a.path.name not in kept]
    freed = sum(size(a.path) for a in going)
    if not dry_run:
        for one in going:
            remove(one)
    if json:
        console.result_json({"removed": [a.path.name for a in going], "bytes": freed})
        return
    verb = "would go" if dry_run else "removed"
    said = ", ".join(str(folder) for folder in folders)
    console.result(
        f"{len(going)} artefacts, {freed / MB:.1f} MB: {verb}; {len(kept)} that runs in {said} "
        "link to, and what those were made from, kept"
    )


def artefacts() -> list[Artefact]:
    """Every artefact in the cache."""
    found = []
    folder = cache.objects()
    for path in folder.iterdir() if folder.is_dir() else ():
        if is_key(path.name):
            try:
                found.append(peek(path))
            except ArtefactError:
                continue
    return found


def linked(folders: Iterable[Path]) -> set[str]:
    """Keys that runs under the folders link to."""
    return {
        link.resolve().name
        for folder in folders
        for link in folder.glob("*/*")
        if link.is_symlink() and is_key(link.resolve().name)
    }


def reachable(all_of_them: Iterable[Artefact], keys: set[str]) -> set[str]:
    """The keys, and those of everything that their artefacts were made from."""
    known = {a.path.name: a for a in all_of_them}
    by_digest = {a.digest: name for name, a in known.items()}
    kept, left = set(), [key for key in keys if key in known]
    while left:
        key = left.pop()
        if key not in kept:
            kept.add(key)
            parents = known[key].manifest.parents.values()
            left += [by_digest[digest] for digest in parents if digest in by_digest]
    return kept


def remove(artefact: Artefact) -> None:
    """Remove an artefact and the link of its digest; the manifest goes first."""
    (cache.root() / "digests" / artefact.digest).unlink(missing_ok=True)
    # Without its manifest it is no artefact any more, should this be cut short.
    (artefact.path / "slmc.json").unlink(missing_ok=True)
    shutil.rmtree(artefact.path, ignore_errors=True)


def size(path: Path) -> int:
    """Bytes of the files under a path, links not followed."""
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file() and not f.is_symlink())
