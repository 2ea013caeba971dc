"""What the cache holds, which runs use it, and what of it nothing uses any more.

Every run enters its folder in ``$SLMC_CACHE/runs``, one small file a folder, so that an artefact
that any run of this cache links to is known wherever that run lies.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from slmc import cache
from slmc.artefact import Artefact, is_key, peek
from slmc.errors import ArtefactError, UsageError
from slmc.pipeline.rundir import RunDir
from slmc.pipeline.store import unwritable

NAMES = {"states": "teacher states", "downloads": "sources", "backbones": "backbones"}
"""Folder of the cache -> what it holds."""
OURS = ("objects", "digests", "runs", "times")
"""Folders that hold artefacts, links to them, the runs that use them, and how long they took."""


@dataclass(frozen=True)
class Part:
    """What a part of the cache takes, artefacts apart."""

    name: str
    count: int
    """Entries; of unfinished steps, folders that a run goes on from or that were set aside."""
    bytes: int


@dataclass(frozen=True)
class Garbage:
    """What nothing uses any more."""

    artefacts: list[Artefact]
    states: list[Path]
    """Folders of states of teachers that go."""
    kept: int
    """Artefacts that stay."""
    runs: list[Path]
    """Folders of runs whose artefacts stay."""
    gone: list[Path]
    """Folders of runs that were entered and are there no more."""


def register(folder: Path) -> None:
    """Enter the folder of a run in the cache, so that what it links to is kept.

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


def registered() -> list[Path]:
    """The folders of all runs that were entered, there or not, in order of their paths."""
    entries = cache.runs().glob("*.path") if cache.runs().is_dir() else ()
    return sorted(Path(os.fsdecode(entry.read_bytes())) for entry in entries)


def artefacts() -> list[Artefact]:
    """Every artefact in the cache, by stage and key."""
    found = []
    folder = cache.objects()
    for path in folder.iterdir() if folder.is_dir() else ():
        if is_key(path.name):
            try:
                found.append(peek(path))
            except ArtefactError:
                continue
    return sorted(found, key=lambda one: (one.manifest.stage, one.path.name))


def parts() -> list[Part]:
    """What else the cache holds; with the artefacts it is all of it."""
    folders = [path for path in visible(cache.root()) if path.is_dir() and path.name not in OURS]
    found = [
        Part(NAMES.get(folder.name, folder.name), len(visible(folder)), size(folder))
        for folder in sorted(folders)
    ]
    whole = {one.path for one in artefacts()}
    objects = cache.objects().iterdir() if cache.objects().is_dir() else ()
    unfinished = [path for path in objects if path.is_dir() and path not in whole]
    found.append(Part("unfinished steps", len(unfinished), sum(map(size, unfinished))))
    counted = sum(part.bytes for part in found) + sum(map(size, whole))
    found.append(Part("other files", 0, size(cache.root()) - counted))
    return [part for part in found if part.bytes > 0]


def garbage(folders: Iterable[Path]) -> Garbage:
    """What no run links to, and what nothing that a run links to was made from.

    Args:
        folders: Folders of runs that may not have been entered.

    Raises:
        UsageError: The folder of a run that was entered cannot be read.
    """
    entered = registered()
    keys = {folder: _keys(folder) for folder in [*entered, *(one.resolve() for one in folders)]}
    linked = {folder: found for folder, found in keys.items() if found is not None}
    everything = artefacts()
    kept = _reachable(everything, {key for found in linked.values() for key in found})
    going = [one for one in everything if one.path.name not in kept]
    states = sorted(visible(cache.root() / "states"))
    teachers = {one.digest for one in everything if one.path.name in kept}
    return Garbage(
        artefacts=going,
        states=[path for path in states if _teacher(path) not in (None, *teachers)],
        kept=len(kept),
        runs=sorted(linked),
        gone=[folder for folder in entered if folder not in linked],
    )


def remove(found: Garbage) -> None:
    """Remove what nothing uses, and forget the runs that are gone.

    What a run has linked to since ``found`` was looked up is kept.
    """
    now = garbage(found.runs)
    unused = {one.path for one in now.artefacts}
    for one in found.artefacts:
        if one.path not in unused:
            continue
        (cache.root() / "digests" / one.digest).unlink(missing_ok=True)
        (cache.root() / "times" / one.path.name).unlink(missing_ok=True)
        # Without its manifest it is no artefact any more, should this be cut short.
        (one.path / "slmc.json").unlink(missing_ok=True)
        shutil.rmtree(one.path, ignore_errors=True)
    for path in set(found.states) & set(now.states):
        shutil.rmtree(path, ignore_errors=True)
    for folder in now.gone:
        _entry(folder).unlink(missing_ok=True)


def visible(folder: Path) -> list[Path]:
    """The entries of a folder whose names begin with no dot; none if it is not there."""
    return [path for path in folder.glob("*") if not path.name.startswith(".")]


def size(path: Path) -> int:
    """Bytes of the files under a path, links not followed."""
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file() and not f.is_symlink())


def _entry(folder: Path) -> Path:
    return cache.runs() / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()}.path"


def _keys(folder: Path) -> set[str] | None:
    """Keys of the steps of a run; None if its folder is not there."""
    try:
        return RunDir(folder).keys()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UsageError(
            f"{folder}, the folder of a run, cannot be read: {error.strerror}; what it links to "
            "is not known, so nothing was removed.",
            "Run the command as a user who may read it.",
        ) from None


def _reachable(everything: Iterable[Artefact], keys: set[str]) -> set[str]:
    """The keys, and those of everything that their artefacts were made from."""
    known = {a.path.name: a for a in everything}
    by_digest = {a.digest: name for name, a in known.items()}
    kept, left = set(), [key for key in keys if key in known]
    while left:
        key = left.pop()
        if key not in kept:
            kept.add(key)
            parents = known[key].manifest.parents.values()
            left += [by_digest[digest] for digest in parents if digest in by_digest]
    return kept


def _teacher(states: Path) -> str | None:
    """Digest of the teacher that said them; None if it was not noted."""
    try:
        noted = json.loads((states / "progress.json").read_bytes()).get("teacher")
    except (OSError, ValueError, AttributeError):
        return None
    return noted if isinstance(noted, str) else None
