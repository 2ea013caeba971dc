"""The artefacts in the cache: each is made once and stored under the key of its step.

$SLMC_CACHE/
├── objects/<key>            an artefact
├── objects/.<key>.partial   an artefact in the making, or left by an interrupted run
├── digests/<digest>         link to the artefact of that digest
└── times/<key>              seconds that the step took
"""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from slmc import cache, processes
from slmc.artefact import Artefact, Kind, is_key, load, peek
from slmc.errors import ArtefactError, MissingError
from slmc.system import write_whole

log = logging.getLogger("slmc.pipeline.store")

Status = Literal["hit", "resume", "run"]
"""hit: read from the cache; resume: continue an interrupted step; run: start the step."""


def look(key: str) -> Artefact | None:
    """The artefact of ``key`` without a check of its files; None if there is none."""
    try:
        return peek(cache.objects() / key)
    except ArtefactError:
        return None


def status(key: str) -> Status:
    """What a run will do for the artefact of ``key``."""
    if look(key) is not None:
        return "hit"
    state = cache.objects() / f".{key}.partial" / "resume"
    return "resume" if state.is_dir() and any(state.iterdir()) else "run"


def find(digest: str) -> Artefact | None:
    """The cached artefact with that digest; None if there is none."""
    if not is_key(digest):
        return None
    try:
        artefact = peek(_digests() / digest)
    except ArtefactError:
        return None
    if artefact.digest != digest:
        return None
    return Artefact(artefact.path.resolve(), artefact.manifest)


def make(
    key: str, kind: Kind, run: Callable[[Path], Artefact], *, trains: bool = False
) -> tuple[Artefact, Status]:
    """The artefact of ``key``: from the cache with its hashes checked, or else made by ``run``.

    If another process is making it, this one waits. An artefact whose files have changed since it
    was sealed is set aside and made again.

    Args:
        key: Key of the step.
        kind: Kind of the step's artefact.
        run: Makes the artefact at a path.
        trains: Whether all processes of a launcher run it together
            (:mod:`slmc.processes`); other steps are made by the main process alone.

    Raises:
        MissingError: The cache cannot be written to.
    """
    if processes.count() == 1:
        return _make(key, kind, run)
    if not processes.is_main():
        return _join(key, kind, run)

    def with_others(out: Path) -> Artefact:
        if trains:
            processes.announce("train")
        return run(out)

    made = _make(key, kind, with_others)
    processes.announce("ready")
    return made


def _join(key: str, kind: Kind, run: Callable[[Path], Artefact]) -> tuple[Artefact, Status]:
    """Help the main process to make an artefact, and read it from the cache."""
    before: Status = "hit"
    while processes.next_announcement() == "train":
        before = "run"
        own = cache.objects() / f".{key}.process-{processes.rank()}"
        shutil.rmtree(own, ignore_errors=True)
        try:
            with suppress(processes.Trained):
                run(own / "artefact")
        finally:
            shutil.rmtree(own, ignore_errors=True)
    return load(cache.objects() / key, kind=kind), before


def _make(key: str, kind: Kind, run: Callable[[Path], Artefact]) -> tuple[Artefact, Status]:
    cached = _checked(key, kind)
    if cached is not None:
        return cached, "hit"
    with _claim(key):
        cached = _checked(key, kind)
        if cached is not None:
            return cached, "hit"
        before = status(key)
        with _timed(key, resumed=before == "resume"):
            artefact = run(cache.objects() / key)
        _link_digest(artefact)
        return artefact, before


def seconds(key: str) -> float | None:
    """Seconds that the step of ``key`` took; None if not known."""
    try:
        return float((_times() / key).read_text())
    except (OSError, ValueError):
        return None


@contextmanager
def _timed(key: str, *, resumed: bool) -> Iterator[None]:
    """Record the seconds that the body takes, plus those of the attempt that it resumes.

    They are stored outside of the artefact, whose digest must not depend on them.
    """
    file, begin = _times() / key, time.perf_counter()
    earlier = (seconds(key) or 0.0) if resumed else 0.0
    try:
        yield
    finally:
        # A failure to store the time must not fail the step.
        with suppress(OSError):
            if status(key) == "run":  # neither finished nor resumable
                file.unlink(missing_ok=True)
            else:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_whole(file, f"{earlier + time.perf_counter() - begin:.3f}\n")


def _checked(key: str, kind: Kind) -> Artefact | None:
    path = cache.objects() / key
    if not path.exists():
        return None
    try:
        artefact = load(path, kind=kind)
        if artefact.manifest.key == key:
            return artefact
        why = f"{path} has the manifest of key {artefact.manifest.key}."
    except ArtefactError as error:
        why = error.what
    aside = _unused(cache.objects() / f".{key}.broken")
    try:
        os.replace(path, aside)
    except FileNotFoundError:  # another process has moved it
        return None
    except OSError as error:
        raise unwritable(error) from None
    log.warning("%s It was moved to %s and is made again.", why, aside)
    return None


def _unused(path: Path) -> Path:
    number = 1
    while (numbered := path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    return numbered


@contextmanager
def _claim(key: str) -> Iterator[None]:
    """Lock the step for this process; wait while another process has the lock."""
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
        # A waiting process opens a new lock file, and then finds the artefact.
        file.unlink(missing_ok=True)


def _times() -> Path:
    return cache.root() / "times"


def _digests() -> Path:
    return cache.root() / "digests"


def _link_digest(artefact: Artefact) -> None:
    link = _digests() / artefact.digest
    link.parent.mkdir(parents=True, exist_ok=True)
    staged = link.with_name(f".{link.name}-{os.getpid()}")
    staged.unlink(missing_ok=True)
    staged.symlink_to(Path("..") / "objects" / artefact.path.name)
    os.replace(staged, link)


def unwritable(error: OSError) -> MissingError:
    """The error of a cache that cannot be written to."""
    return MissingError(
        f"the cache {cache.root()} cannot be written: {error.strerror}.",
        "Set SLMC_CACHE to a folder that can be written.",
    )
