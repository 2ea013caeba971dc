"""Score histories with a model or an engine, part by part: in this process, or on Ray.

While the threads of this process rank one part, the next one is read and the one before is written.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from slmc import __version__
from slmc.artefact import Artefact
from slmc.export.runtime.engine import cores
from slmc.scoring import grouping, on_ray, output
from slmc.scoring.answering import COUNTS, Answerer, Counts, Request
from slmc.scoring.batches import Batch, cut
from slmc.scoring.id_lists import read_ids
from slmc.scoring.output import format_of
from slmc.scoring.parts import Parts
from slmc.scoring.settings import PART_ITEMS, Settings
from slmc.scoring.source import Source
from slmc.scoring.target import Target
from slmc.serving.catalogue import shown
from slmc.serving.histories import Histories
from slmc.serving.opening import load
from slmc.serving.ranking import Wish, check_k
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
    request: Request
    answerer: Answerer


def score(model: Artefact, settings: Settings, write: Write | None = None) -> Scored:
    """Score the histories of an input, and write the best items of each user.

    The output appears when it is complete. What is done by then is kept beside it, and the same
    call goes on from there. Standard output gets each part when it is done, and is not resumed.

    Args:
        model: A model or an engine.
        settings: Input, output and options.
        write: Writes to standard output, for the output ``-``.

    Raises:
        UsageError: The output exists, or a setting does not fit the model or the place.
        DataError: The input cannot be read as it is, or has something that is an error.
        MissingError: Ray is not installed, a remote place cannot be reached, or the disk is full.
        BrokenRunError: Workers of Ray failed; what was scored is kept.
    """
    start = time.perf_counter()
    format = format_of(settings.output)
    on_ray.check(settings)
    target = None if settings.output == "-" else Target.of(settings.output, settings.force)
    source = Source.open(settings)
    served = load(model, threads=_threads(settings))
    allow, deny = (
        None if file is None else read_ids(file, option)
        for file, option in ((settings.allow, "--allow"), (settings.deny, "--deny"))
    )
    request = _request(settings, served, source, allow, deny)
    job = _Job(settings, served, source, request, Answerer(served, request))
    try:
        if target is None:
            counts, resumed = _stream(job, write or (lambda _: None)), 0
        else:
            with target.locked():
                identity = _identity(job, allow, deny, format)
                counts, resumed = _to_file(job, identity, target, format)
    finally:
        job.answerer.close()
    if source.unknown:
        log.warning(
            "%s of the histories are not in the vocabulary and were skipped, such as %s",
            f"{counts['unknown']:,} items", shown([*source.unknown]),
        )  # fmt: skip
    seconds = time.perf_counter() - start
    return Scored(settings.output, **counts, malformed=source.malformed, seconds=seconds,
                  resumed=resumed)  # fmt: skip


def _threads(settings: Settings) -> int:
    """Cores on which this process ranks; on Ray it only opens the model."""
    return 1 if settings.on == "ray" else settings.threads or cores()


def _request(
    settings: Settings,
    served: Served,
    source: Source,
    allow: list[str] | None,
    deny: list[str] | None,
) -> Request:
    catalogue = served.catalogue
    if settings.empty == "popular":
        _ = catalogue.popular  # raises now if the artefact has no popularity
    k, mask = check_k(served.ranker, settings.k), catalogue.mask(allow, deny)
    kind = source.kind if catalogue.has_kind(source.kind) else str
    return Request(Wish(k, settings.exclude_seen, mask), kind, settings.empty)


def _stream(job: _Job, write: Write) -> Counts:
    """Write each part to standard output."""
    totals = dict.fromkeys(COUNTS, 0)
    for _, frame, counts in _scored(job, set(), None):
        write(output.text_of(frame, "jsonl"))
        totals = {name: totals[name] + counts[name] for name in totals}
    return totals


def _to_file(
    job: _Job, identity: dict[str, Any], target: Target, format: output.Format
) -> tuple[Counts, int]:
    """Write all parts, then the output; returns the counts, and the users of earlier calls."""
    parts = Parts.open(target.file.with_name(f".{target.file.name}.partial"), identity, format)
    resumed = parts.totals()["users"]
    if parts.done:
        log.info("score: resuming after %s users", f"{resumed:,}")
    if job.settings.on == "ray":
        on_ray.rank(job.served, job.source, job.request, parts)
    else:
        for number, frame, counts in _scored(job, parts.numbers, parts.folder):
            parts.add(number, output.content_of(frame, format), counts)
    totals = parts.totals()
    parts.join(_nobody(job), target.file)
    target.publish()
    parts.remove()
    return totals, resumed


def _scored(
    job: _Job, done: set[int], folder: Path | None
) -> Iterator[tuple[int, pl.DataFrame, Counts]]:
    """Number, answers and counts of the parts that are not done."""
    total = job.source.total()
    pending: tuple[int, Callable[[], tuple[pl.DataFrame, Counts]], int] | None = None
    for number, batch in enumerate(_parts(job, total, folder)):
        if number in done:
            _progress(batch.read, total)
            continue
        started = number, job.answerer.start(batch), batch.read
        if pending is not None:
            yield pending[0], *pending[1]()
            _progress(pending[2], total)
        pending = started
    if pending is not None:
        yield pending[0], *pending[1]()
        _progress(pending[2], pending[2])


def _progress(read: int, total: int | None) -> None:
    total = None if total is None else max(read, total)
    done = {"task": "score", "done": read, "total": total, "unit": "rows"}
    log.debug("progress", extra={"progress": done})


def _nobody(job: _Job) -> pl.DataFrame:
    """A result without rows."""
    users = pl.Series(job.source.columns.user or "row", [], dtype=job.source.users)
    shape = (0, job.request.wish.k)
    answer = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.float32)
    return job.answerer.frame(users, Histories.of([]), answer)


def _parts(job: _Job, total: int | None, folder: Path | None) -> Iterator[Batch]:
    """The histories of the input in parts whose limits depend on the input alone."""
    source, catalogue = job.source, job.served.catalogue
    if source.by_user:
        batches = source.histories(catalogue)
    else:
        batches = grouping.histories(source, catalogue, folder, total)
    yield from cut(batches, job.settings.part_users, PART_ITEMS)


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
    names = ("k", "exclude_seen", "unknown", "empty", "malformed", "items_separator", "part_users",
             "on")  # fmt: skip
    whole: dict[str, Any] = identity | {name: getattr(settings, name) for name in names}
    return whole
