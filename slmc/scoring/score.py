"""Score histories with a model or an engine, part by part.

While the workers rank one part, the next one is read and the one before is written.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from filelock import FileLock

from slmc import __version__, cache
from slmc.artefact import Artefact
from slmc.errors import MissingError, UsageError
from slmc.export.runtime.engine import cores
from slmc.scoring import grouping, output
from slmc.scoring.id_lists import read_ids
from slmc.scoring.output import format_of
from slmc.scoring.parts import Parts
from slmc.scoring.settings import PART_ITEMS, Settings
from slmc.scoring.source import Batch, Source
from slmc.serving.answers import as_frame
from slmc.serving.catalogue import shown
from slmc.serving.histories import Histories
from slmc.serving.opening import load
from slmc.serving.ranking import Batches, Best, Wish, check_k
from slmc.serving.recommender import Served

log = logging.getLogger("slmc.score")

Write = Callable[[str], object]
"""Writes text to standard output."""


@dataclass(frozen=True)
class Scored:
    """What a job came to."""

    output: str
    users: int
    """Users in the output."""
    popular: int
    """Users without a known item, who got the popular items."""
    skipped: int
    """Users without a known item, who were left out."""
    unknown: int
    """Items of histories that are not in the catalogue."""
    malformed: int
    """Rows of the input that were skipped."""
    seconds: float
    """Of this call; a resumed job had earlier ones."""
    resumed: int
    """Users that an earlier call had scored."""


@dataclass(frozen=True, eq=False)
class _Job:
    settings: Settings
    served: Served
    source: Source
    wish: Wish
    batches: Batches


@dataclass
class _Pending:
    """A part that is being ranked."""

    batch: Batch
    histories: Histories
    unknown: int
    answer: Callable[[], Best]


def score(model: Artefact, settings: Settings, write: Write | None = None) -> Scored:
    """Score the histories of an input, and write the best items of each user.

    The output appears when it is complete. What is done by then is kept beside it, and the same
    call goes on from there. Standard output gets each part when it is done, and is not resumed.

    Args:
        model: A model or an engine.
        settings: Input, output and options.
        write: Writes to standard output, for the output ``-``.

    Raises:
        UsageError: The output exists, or a setting does not fit the model.
        DataError: The input cannot be read as it is, or has something that is an error.
        MissingError: A remote place cannot be reached, or the disk is full.
    """
    start = time.perf_counter()
    format = format_of(settings.output)
    target = _target(settings)
    if target is not None:
        _refuse_existing(settings, target)
    source = Source.open(settings)
    served = load(model, threads=settings.threads or cores())
    catalogue = served.catalogue
    allow, deny = (
        None if file is None else read_ids(file, option)
        for file, option in ((settings.allow, "--allow"), (settings.deny, "--deny"))
    )
    wish = Wish(
        check_k(served.ranker, settings.k), settings.exclude_seen, catalogue.mask(allow, deny)
    )
    job = _Job(settings, served, source, wish, Batches(served.ranker))
    if settings.empty == "popular":
        _ = catalogue.popular  # raises now if the artefact has no popularity
    try:
        if target is None:
            counts, resumed = _stream(job, write or (lambda _: None)), 0
        else:
            with _locked(target):
                _refuse_existing(settings, target)
                counts, resumed = _to_file(job, allow, deny, target, format)
    finally:
        job.batches.close()
    if source.unknown:
        log.warning(
            "%s of the histories are not in the vocabulary and were skipped, such as %s",
            f"{counts['unknown']:,} items", shown([*source.unknown]),
        )  # fmt: skip
    seconds = time.perf_counter() - start
    return Scored(settings.output, **counts, malformed=source.malformed, seconds=seconds,
                  resumed=resumed)  # fmt: skip


def _stream(job: _Job, write: Write) -> dict[str, int]:
    """Write each part to standard output."""
    totals = dict.fromkeys(("users", "popular", "skipped", "unknown"), 0)
    for frame, counts in _scored(job, 0, None):
        write(output.text_of(frame, "jsonl"))
        totals = {name: totals[name] + counts[name] for name in totals}
    return totals


def _to_file(
    job: _Job,
    allow: list[str] | None,
    deny: list[str] | None,
    target: Path,
    format: output.Format,
) -> tuple[dict[str, int], int]:
    """Write all parts, then the output; returns the counts, and the users of earlier calls."""
    identity = _identity(job, allow, deny, format)
    parts = Parts.open(target.with_name(f".{target.name}.partial"), identity, format)
    resumed = parts.totals()["users"]
    if parts.done:
        log.info("score: resuming after %s users", f"{resumed:,}")
    for frame, counts in _scored(job, parts.done, parts.folder):
        parts.add(frame, counts)
    totals = parts.totals()
    nobody = _frame(job, _nobody(job.source), Histories.of([]), _nothing(job.wish.k))
    parts.join(nobody, target)
    if "://" in job.settings.output:
        _upload(target, job.settings.output)
        target.unlink()
    parts.remove()
    return totals, resumed


def _scored(
    job: _Job, done: int, folder: Path | None
) -> Iterator[tuple[pl.DataFrame, dict[str, int]]]:
    """The answers and counts of the parts after the first ``done``."""
    total = job.source.total()
    pending: _Pending | None = None
    for number, batch in enumerate(_parts(job, total, folder)):
        if number < done:
            _progress(batch.read, total)
            continue
        histories, unknown = Histories.known(batch.rows, batch.lengths)
        answer = job.batches.start(histories, job.wish)
        started = _Pending(batch, histories, int(unknown.sum()), answer)
        if pending is not None:
            yield _finished(job, pending)
            _progress(pending.batch.read, total)
        pending = started
    if pending is not None:
        yield _finished(job, pending)
        _progress(pending.batch.read, pending.batch.read)


def _progress(read: int, total: int | None) -> None:
    total = None if total is None else max(read, total)
    done = {"task": "score", "done": read, "total": total, "unit": "rows"}
    log.debug("progress", extra={"progress": done})


def _finished(job: _Job, pending: _Pending) -> tuple[pl.DataFrame, dict[str, int]]:
    """Wait for a part, and name its items."""
    frame = _frame(job, pending.batch.users, pending.histories, pending.answer())
    empty = int((pending.histories.lengths == 0).sum())
    popular = empty if job.settings.empty == "popular" else 0
    counts = {
        "users": frame.height,
        "popular": popular,
        "skipped": empty - popular,
        "unknown": pending.unknown,
    }
    return frame, counts


def _frame(job: _Job, users: pl.Series, histories: Histories, answer: Best) -> pl.DataFrame:
    catalogue = job.served.catalogue
    kind = job.source.kind if catalogue.has_kind(job.source.kind) else str
    return as_frame(catalogue, users, histories.lengths, answer, job.wish, kind, job.settings.empty)


def _nobody(source: Source) -> pl.Series:
    return pl.Series(source.columns.user or "row", [], dtype=source.users)


def _nothing(k: int) -> Best:
    return np.zeros((0, k), dtype=np.int64), np.zeros((0, k), dtype=np.float32)


def _parts(job: _Job, total: int | None, folder: Path | None) -> Iterator[Batch]:
    """The histories of the input in parts whose limits depend on the input alone."""
    source, catalogue = job.source, job.served.catalogue
    if source.by_user:
        batches = source.histories(catalogue)
    else:
        batches = grouping.histories(source, catalogue, folder, total)
    yield from cut(batches, job.settings.part_users, PART_ITEMS)


def cut(batches: Iterator[Batch], most_users: int, most_items: int) -> Iterator[Batch]:
    """Cut a stream of users into parts of ``most_users``, or fewer with ``most_items``.

    A part ends before the user with whom it would have more items; one user alone may have more.
    """
    left: Batch | None = None
    for batch in batches:
        left = batch if left is None else _joined(left, batch)
        while (users := _first(left, most_users, most_items)) < left.users.len():
            yield _slice(left, 0, users)
            left = _slice(left, users, left.users.len())
    if left is not None and left.users.len():
        yield left


def _first(batch: Batch, most_users: int, most_items: int) -> int:
    """Users of the first part; all of them if more could join it."""
    fitting = int(np.searchsorted(np.cumsum(batch.lengths), most_items, side="right"))
    return min(most_users, max(1, fitting))


def _joined(first: Batch, second: Batch) -> Batch:
    return Batch(
        pl.concat([first.users, second.users]),
        np.concatenate([first.rows, second.rows]),
        np.concatenate([first.lengths, second.lengths]),
        second.read,
    )


def _slice(batch: Batch, start: int, end: int) -> Batch:
    ends = np.concatenate([[0], np.cumsum(batch.lengths)])
    return Batch(
        batch.users[start:end],
        batch.rows[ends[start] : ends[end]],
        batch.lengths[start:end],
        batch.read,
    )


def _identity(
    job: _Job, allow: list[str] | None, deny: list[str] | None, format: str
) -> dict[str, Any]:
    """What a result depends on; a job with another identity does not go on from its parts."""
    settings = job.settings
    lists = hashlib.sha256(json.dumps([allow, deny]).encode()).hexdigest()
    identity = {
        "slmc": __version__,
        "model": job.served.artefact.digest,
        "input": job.source.fingerprint(),
        "columns": job.source.columns.named,
        "layout": [str(layout) for layout in job.source.layouts],
        "lists": lists,
        "format": format,
        "shard": [settings.shard.number, settings.shard.of],
    }
    names = ("k", "exclude_seen", "unknown", "empty", "malformed", "items_separator", "part_users")
    whole: dict[str, Any] = identity | {name: getattr(settings, name) for name in names}
    return whole


def _target(settings: Settings) -> Path | None:
    """The local file of the output; None for standard output."""
    if settings.output == "-":
        return None
    if settings.output.startswith("file://"):
        return Path(settings.output.removeprefix("file://"))
    if "://" in settings.output:
        name = hashlib.sha256(settings.output.encode()).hexdigest()[:16]
        folder = cache.root() / "scores"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}{Path(settings.output).suffix}"
    target = Path(settings.output).expanduser()
    if not target.absolute().parent.is_dir():
        raise UsageError(
            f"--output: the folder {target.parent} does not exist.", "Make it, or name another one."
        )
    return target


def _refuse_existing(settings: Settings, target: Path) -> None:
    remote = "://" in settings.output and not settings.output.startswith("file://")
    exists = _remote_exists(settings.output) if remote else target.exists()
    if target.is_dir():
        raise UsageError(f"--output: {target} is a folder.", "Name a file.")
    if exists and not settings.force:
        raise UsageError(
            f"{settings.output} exists already; it was not changed.",
            "Name another --output, or pass --force to replace it.",
        )


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """One job at a time writes an output; a second one waits."""
    lock = target.with_name(f".{target.name}.lock")
    with FileLock(lock):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _remote_exists(url: str) -> bool:
    with _remote_errors(url):
        import fsspec

        system, path = fsspec.core.url_to_fs(url)
        return bool(system.exists(path))


def _upload(file: Path, url: str) -> None:
    with _remote_errors(url):
        import fsspec

        system, path = fsspec.core.url_to_fs(url)
        system.put_file(str(file), path)


@contextmanager
def _remote_errors(url: str) -> Iterator[None]:
    """Errors of a remote file system, which have no common base class, in two lines."""
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise MissingError(
            f"{url} cannot be written: {lines[0]}",
            "Check the address, the network, your credentials and the package of its protocol. "
            "What was scored is kept.",
        ) from error
