"""The finished artefacts in the cache: each under the key of its step, made once.

$SLMC_CACHE/
├── objects/<key>            an artefact
├── objects/.<key>.partial   what is being made, or was when the run stopped
├── digests/<digest>         link to the artefact of that digest
└── times/<key>              seconds that making it took
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from slmc import cache
from slmc.artefact import Artefact, Kind, is_key, load, peek
from slmc.errors import ArtefactError, MissingError
from slmc.system import write_whole

log = logging.getLogger("slmc.pipeline.store")

Status = Literal["hit", "resume", "run"]
"""From the cache; on from where a run stopped; from the start."""


def look(key: str) -> Artefact | None:
    """The artefact of ``key`` without checking its files; None if there is none."""
    try:
        return peek(cache.objects() / key)
    except ArtefactError:
        return None


def status(key: str) -> Status:
    """What making the artefact of ``key`` would come to."""
    if look(key) is not None:
        return "hit"
    state = cache.objects() / f".{key}.partial" / "resume"
    return "resume" if state.is_dir() and any(state.iterdir()) else "run"


def find(digest: str) -> Artefact | None:
    """The cached artefact of that digest; None if there is none, or not any more."""
    if not is_key(digest):
        return None
    try:
        found = peek(_digests() / digest)
    except ArtefactError:
        return None
    return Artefact(found.path.resolve(), found.manifest) if found.digest == digest else None


def make(key: str, kind: Kind, run: Callable[[Path], Artefact]) -> tuple[Artefact, Status]:
    """The artefact of ``key``: from the cache, its hashes checked, or else made by ``run``.

    If another process is making it, this one waits. An artefact whose files are no longer
    those that were sealed is set aside and made again.

    Args:
        key: Key of the step.
        kind: Kind of artefact that the step gives.
        run: Makes the artefact at the path that it is given.

    Raises:
        MissingError: The cache cannot be written.
    """
    found = _checked(key, kind)
    if found is not None:
        return found, "hit"
    with _claim(key):
        found = _checked(key, kind)
        if found is not None:
            return found, "hit"
        begun = status(key)
        with _timed(key, going_on=begun == "resume"):
            made = run(cache.objects() / key)
        _link_digest(made)
        return made, begun


def seconds(key: str) -> float | None:
    """Seconds that making the artefact of ``key`` took; None where that is not known."""
    try:
        return float((_times() / key).read_text())
    except (OSError, ValueError):
        return None


@contextmanager
def _timed(key: str, *, going_on: bool) -> Iterator[None]:
    """Note the seconds that the work within takes, after those of a try that it goes on from.

    They stand beside the artefact, since equal steps are equal artefacts however long they took.
    """
    file, begin = _times() / key, time.perf_counter()
    earlier = (seconds(key) or 0.0) if going_on else 0.0
    try:
        yield
    finally:
        # A time that cannot be kept is no reason to fail.
        with suppress(OSError):
            if status(key) == "run":  # neither made nor to be gone on with
                file.unlink(missing_ok=True)
            else:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_whole(file, f"{earlier + time.perf_counter() - begin:.3f}\n")


def _checked(key: str, kind: Kind) -> Artefact | None:
    path = cache.objects() / key
    if not path.exists():
        return None
    try:
        found = load(path, kind=kind)
        if found.manifest.key == key:
            return found
        why = f"{path} says that it is of key {found.manifest.key}."
    except ArtefactError as error:
        why = error.what
    aside = _unused(cache.objects() / f".{key}.broken")
    try:
        os.replace(path, aside)
    except FileNotFoundError:  # another process was faster
        return None
    except OSError as error:
        raise unwritable(error) from None
    log.warning("%s It is kept as %s, and made again.", why, aside)
    return None


def _unused(path: Path) -> Path:
    number = 1
    while (numbered := path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    return numbered


@contextmanager
def _claim(key: str) -> Iterator[None]:
    """Hold the step to this process; waits while another one holds it."""
    file = cache.objects() / f".{key}.step"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("another process is making %s; waiting for it", key[:12])
            lock.acquire()
    except OSError as error:
        raise unwritable(error) from None
    try:
        yield
    finally:
        lock.release()
        # Who waits opens the file anew, and then finds the artefact.
        file.unlink(missing_ok=True)


def _times() -> Path:
    return cache.root() / "times"


def _digests() -> Path:
    return cache.root() / "digests"


def _link_digest(made: Artefact) -> None:
    link = _digests() / made.digest
    link.parent.mkdir(parents=True, exist_ok=True)
    staged = link.with_name(f".{link.name}-{os.getpid()}")
    staged.unlink(missing_ok=True)
    staged.symlink_to(Path("..") / "objects" / made.path.name)
    os.replace(staged, link)


def unwritable(error: OSError) -> MissingError:
    """The error of a cache that cannot be written."""
    return MissingError(
        f"the cache {cache.root()} cannot be written: {error.strerror}.",
        "Set SLMC_CACHE to a folder that can be written.",
    )
