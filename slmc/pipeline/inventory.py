"""Contents of the cache, the runs that use them, and what no run uses.

Every run records the path of its folder in a small file in ``$SLMC_CACHE/runs``. So the artefacts
that runs link to are known, in whatever folder the runs are.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from slmc import cache
from slmc.artefact import Artefact, is_key, peek
from slmc.errors import ArtefactError, MissingError, UsageError
from slmc.pipeline.rundir import LOCK, RunDir
from slmc.pipeline.store import unwritable

NAMES = {
    "states": "teacher states",
    "downloads": "sources",
    "backbones": "backbones",
    "texts": "text vectors",
}
"""Folder of the cache -> name of its contents."""
OURS = ("objects", "digests", "runs", "times")
"""Folders with the artefacts, links to them, paths of runs, and times of steps."""


@dataclass(frozen=True)
class Part:
    """Size of a part of the cache other than the artefacts."""

    name: str
    count: int
    """Number of entries. Unfinished steps are folders to resume from or set aside as broken."""
    bytes: int


@dataclass(frozen=True)
class Garbage:
    """What no run uses, and what is kept."""

    artefacts: list[Artefact]
    states: list[Path]
    """Folders of the hidden states of teachers that are not kept."""
    kept: int
    """Number of artefacts that are kept."""
    runs: list[Path]
    """Folders of runs whose artefacts are kept."""
    gone: list[Path]
    """Recorded folders of runs that no longer exist."""


@dataclass(frozen=True)
class Dangling:
    """A link in the folder of a run whose artefact is no longer there."""

    link: Path
    again: str | None
    """The command that makes the artefact again; None if it is not known."""


def register(folder: Path) -> None:
    """Record the folder of a run in the cache, so that its artefacts are kept.

    Raises:
        MissingError: The cache cannot be written.
    """
    path = folder.resolve()
    entry = _entry(path)
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        staged = entry.with_name(f".{entry.name}-{os.getpid()}")
        staged.write_bytes(os.fsencode(path))
        os.replace(staged, entry)
    except OSError as error:
        raise unwritable(error) from None


def register_moved(folder: Path) -> None:
    """Record the folder of a run that is used, in case it was moved or copied since it was made.

    A cache that cannot be written is left alone: then nothing can be removed from it either.
    """
    if not _entry(folder.resolve()).exists() and (folder / LOCK).is_file():
        with contextlib.suppress(MissingError):
            register(folder)


def registered() -> list[Path]:
    """All recorded folders of runs, also those that no longer exist, sorted by path."""
    entries = cache.runs().glob("*.path") if cache.runs().is_dir() else ()
    return sorted(Path(os.fsdecode(entry.read_bytes())) for entry in entries)


def artefacts() -> list[Artefact]:
    """Every artefact in the cache, sorted by stage and key."""
    whole = []
    folder = cache.objects()
    for path in folder.iterdir() if folder.is_dir() else ():
        if is_key(path.name):
            try:
                whole.append(peek(path))
            except ArtefactError:
                continue
    return sorted(whole, key=lambda one: (one.manifest.stage, one.path.name))


def parts() -> list[Part]:
    """Everything in the cache except the artefacts."""
    folders = [path for path in visible(cache.root()) if path.is_dir() and path.name not in OURS]
    others = [
        Part(NAMES.get(folder.name, folder.name), len(visible(folder)), size(folder))
        for folder in sorted(folders)
    ]
    whole = {one.path for one in artefacts()}
    objects = cache.objects().iterdir() if cache.objects().is_dir() else ()
    unfinished = [path for path in objects if path.is_dir() and path not in whole]
    others.append(Part("unfinished steps", len(unfinished), sum(map(size, unfinished))))
    counted = sum(part.bytes for part in others) + sum(map(size, whole))
    others.append(Part("other files", 0, size(cache.root()) - counted))
    return [part for part in others if part.bytes > 0]


def garbage(folders: Iterable[Path]) -> Garbage:
    """Artefacts and states that no run needs: neither linked by a run nor an input of a linked one.

    Args:
        folders: Folders of further runs, which may not be recorded.

    Raises:
        UsageError: The folder of a recorded run cannot be read.
    """
    recorded = registered()
    keys = {folder: _keys(folder) for folder in [*recorded, *(one.resolve() for one in folders)]}
    linked = {folder: of_run for folder, of_run in keys.items() if of_run is not None}
    everything = artefacts()
    kept = _reachable(everything, {key for of_run in linked.values() for key in of_run})
    unused = [one for one in everything if one.path.name not in kept]
    states = sorted(visible(cache.root() / "states"))
    teachers = {one.digest for one in everything if one.path.name in kept}
    return Garbage(
        artefacts=unused,
        states=[path for path in states if _teacher(path) not in (None, *teachers)],
        kept=len(kept),
        runs=sorted(linked),
        gone=[folder for folder in recorded if folder not in linked],
    )


def dangling(folders: Iterable[Path]) -> list[Dangling]:
    """Links of runs whose artefacts are gone, sorted by path.

    Args:
        folders: Folders of further runs, which may not be recorded.
    """
    runs = {*registered(), *(folder.resolve() for folder in folders)}
    links = [link for folder in runs if folder.is_dir() for link in RunDir(folder).broken_links()]
    return [Dangling(link, RunDir(link.parent).again(link.name)) for link in sorted(links)]


def remove(unwanted: Garbage) -> None:
    """Remove unused artefacts and states, and the records of runs that no longer exist.

    What a run has linked to since ``unwanted`` was computed is kept. All runs of ``unwanted`` are
    recorded, so that they count the next time too.
    """
    for folder in unwanted.runs:
        register_moved(folder)
    now = garbage(unwanted.runs)
    unused = {one.path for one in now.artefacts}
    for one in unwanted.artefacts:
        if one.path not in unused:
            continue
        (cache.root() / "digests" / one.digest).unlink(missing_ok=True)
        (cache.root() / "times" / one.path.name).unlink(missing_ok=True)
        # The manifest goes first: if this is interrupted, the rest is not an artefact.
        (one.path / "slmc.json").unlink(missing_ok=True)
        shutil.rmtree(one.path, ignore_errors=True)
    for path in set(unwanted.states) & set(now.states):
        shutil.rmtree(path, ignore_errors=True)
    for folder in now.gone:
        _entry(folder).unlink(missing_ok=True)


def visible(folder: Path) -> list[Path]:
    """The entries of a folder whose names do not start with a dot; none if it does not exist."""
    return [path for path in folder.glob("*") if not path.name.startswith(".")]


def size(path: Path) -> int:
    """Bytes of the files under a path, links not followed."""
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file() and not f.is_symlink())


def _entry(folder: Path) -> Path:
    return cache.runs() / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()}.path"


def _keys(folder: Path) -> set[str] | None:
    """Keys of the steps of a run; None if its folder does not exist."""
    try:
        return RunDir(folder).keys()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UsageError(
            f"{folder}, the folder of a run, cannot be read: {error.strerror}; its artefacts are "
            "not known, so nothing was removed.",
            "Run the command as a user with permission to read it.",
        ) from None


def _reachable(everything: Iterable[Artefact], keys: set[str]) -> set[str]:
    """The keys, and the keys of all direct and indirect inputs of their artefacts."""
    known = {a.path.name: a for a in everything}
    by_digest = {a.digest: name for name, a in known.items()}
    kept, pending = set(), [key for key in keys if key in known]
    while pending:
        key = pending.pop()
        if key not in kept:
            kept.add(key)
            parents = known[key].manifest.parents.values()
            pending += [by_digest[digest] for digest in parents if digest in by_digest]
    return kept


def _teacher(states: Path) -> str | None:
    """Digest of the teacher of these states; None if it was not recorded."""
    try:
        digest = json.loads((states / "progress.json").read_bytes()).get("teacher")
    except (OSError, ValueError, AttributeError):
        return None
    return digest if isinstance(digest, str) else None
