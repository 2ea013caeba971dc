"""Score on the workers of a Ray cluster: ``slmc score --on ray``.

The machine on which the command runs reads the input and writes the output, and the model travels
through Ray. So the machines share no folder; each needs slmc. A part of the result is a row of a
Ray dataset, with the number that gives its place in the result: a worker that dies is started
again, and its parts are ranked again. What was found wrong travels in rows too.
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from importlib import import_module
from typing import Any

from slmc import errors
from slmc.errors import BrokenRunError, MissingError, SlmcError, UsageError
from slmc.export.runtime.engine import cores
from slmc.scoring import output
from slmc.scoring.answering import Answerer, Request
from slmc.scoring.batches import Batch
from slmc.scoring.output import Format
from slmc.scoring.parts import Parts
from slmc.scoring.pieces import MOST_PARTS, Findings, Piece, pieces, read
from slmc.scoring.settings import Settings
from slmc.scoring.shipping import Shipped
from slmc.scoring.source import SHOWN, Source
from slmc.serving.catalogue import Catalogue
from slmc.serving.opening import load
from slmc.serving.recommender import Served

READERS = 4
"""Pieces of the input that are read at the same time."""
STORE_BYTES = 1 << 30
"""Size of Ray's object store on this machine, if no cluster is there: parts that wait."""

log = logging.getLogger("slmc.score")
Table = Any
"""A table of pyarrow: ``number``, ``content`` (bytes) and ``note`` (JSON), one row."""


def check(settings: Settings) -> None:
    """Check that a job can run where it is to run, before anything is read.

    Raises:
        UsageError: An option does not fit.
        MissingError: Ray is not installed.
    """
    if settings.on != "ray":
        if settings.workers is not None:
            raise UsageError(
                "--workers: this process has threads, no workers.",
                "Pass --on ray, or --threads instead.",
            )
        return
    if settings.input == "-":
        raise UsageError(
            "--input -: on Ray the input is read by processes without this standard input.",
            "Write it to a file, or leave out --on ray.",
        )
    if settings.output == "-":
        raise UsageError(
            "--output -: on Ray the parts of the result come in no fixed order.",
            "Name a file, or leave out --on ray.",
        )
    if os.environ.get("RAY_ADDRESS", "").startswith("ray://"):
        raise UsageError(
            f"RAY_ADDRESS={os.environ['RAY_ADDRESS']} is an address of Ray Client, whose tasks "
            "cannot read files of this machine.",
            "Run the command on a machine of the cluster with RAY_ADDRESS=auto, for example with "
            "`ray job submit`.",
        )
    _ray()


def rank(served: Served, source: Source, request: Request, parts: Parts) -> None:
    """Rank all parts that are not there yet, and write them.

    Afterwards ``source`` knows of malformed rows and unknown items.

    Raises:
        SlmcError: As for one process.
        BrokenRunError: Workers failed, and failed again.
    """
    settings = source.settings
    todo = pieces(source, served.catalogue, parts.folder / "histories")
    found = Findings(source.malformed, [*source.unknown])
    if todo:
        # Ray prints of workers that die; standard output is for the result of the command.
        with redirect_stdout(sys.stderr), _cluster(settings) as (workers, shared):
            model = Shipped.of(served.artefact, with_files=not shared)
            catalogue = _CatalogueOf(model, len(served.catalogue))
            reading = _Reading(catalogue, frozenset(parts.numbers))
            ranking = {
                "model": model, "request": request, "format": parts.format,
                "threads": settings.threads or 1,
            }  # fmt: skip
            rows = _rows(_dataset(todo, reading, ranking, workers))
            _collect(rows, todo, source.total(), parts, found)
    source.malformed, source.unknown = found.malformed, dict.fromkeys(found.unknown[:SHOWN])
    for message in found.warnings[:SHOWN]:
        log.warning("%s", message)


def _ray() -> Any:
    try:
        import_module("pyarrow")
        import_module("ray.data")
        return import_module("ray")
    except ImportError as error:
        raise MissingError(
            f"--on ray: {error.name or 'ray'} is not installed.",
            "Install it with `pip install 'slmc[ray]'`.",
        ) from None


@contextmanager
def _cluster(settings: Settings) -> Iterator[tuple[int, bool]]:
    """Connect to the cluster of ``RAY_ADDRESS``, or start one on this machine.

    Yields:
        The number of workers, and whether all of them see the files of this machine.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray, threads = _ray(), settings.threads or 1
    workers = settings.workers or max(1, cores() // threads)
    address, quiet = os.environ.get("RAY_ADDRESS"), {"log_to_driver": False}
    connected = ray.is_initialized()
    if not connected and address:
        ray.init(address=address, logging_level=logging.ERROR, **quiet)
    elif not connected:
        ray.init(
            address="local", num_cpus=workers * threads + READERS, include_dashboard=False,
            object_store_memory=STORE_BYTES, logging_level=logging.ERROR, **quiet,
        )  # fmt: skip
    try:
        if connected or address:
            available = int(ray.cluster_resources().get("CPU", 1))
            workers = settings.workers or max(1, (available - 1) // threads)
        log.info("score: %s on Ray", "1 worker" if workers == 1 else f"{workers} workers")
        yield workers, sum(node["Alive"] for node in ray.nodes()) == 1
    finally:
        if not connected:
            ray.shutdown()


def _dataset(todo: list[Piece], reading: "_Reading", ranking: dict[str, Any], workers: int) -> Any:
    """The dataset whose rows are the ranked parts."""
    import ray
    from ray.data import ActorPoolStrategy, DataContext
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    class Pieces(Datasource):  # type: ignore[misc]
        @property
        def supports_distributed_reads(self) -> bool:
            return False  # the files are those of this machine

        def estimate_inmemory_data_size(self) -> None:
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
            unknown = BlockMetadata(
                num_rows=None, size_bytes=None, input_files=None, exec_stats=None
            )
            return [ReadTask(_Task(reading, piece), unknown) for piece in todo]

    context = DataContext.get_current()
    context.target_max_block_size = 1  # one row per block, so that each part is a task of its own
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    dataset = ray.data.read_datasource(
        Pieces(), override_num_blocks=len(todo), concurrency=min(READERS, len(todo)), num_cpus=0.1
    )
    return dataset.map_batches(
        Worker, batch_size=1, batch_format="pyarrow", num_cpus=ranking["threads"],
        compute=ActorPoolStrategy(size=workers), fn_constructor_kwargs=ranking,
    )  # fmt: skip


def _rows(dataset: Any) -> Iterator[dict[str, Any]]:
    """The rows of a dataset; errors of Ray in two lines."""
    import ray

    try:
        yield from dataset.iter_rows()
    except SlmcError:
        raise
    except (ray.exceptions.RayError, RuntimeError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise BrokenRunError(
            f"score: workers on Ray failed: {lines[-1] if lines else type(error).__name__}",
            "Ray's logs of the session say more. The same command goes on from what was scored.",
        ) from error


def _collect(
    rows: Iterator[dict[str, Any]],
    todo: list[Piece],
    total: int | None,
    parts: Parts,
    found: Findings,
) -> None:
    """Write the parts as they come; at the end each part of each piece is there."""
    read = dict.fromkeys((piece.number for piece in todo), 0)
    ends: dict[int, int] = {}
    for row in rows:
        note = json.loads(row["note"])
        if "error" in note:
            name, what, remedy = note["error"]
            raise getattr(errors, name)(what, remedy)
        piece = row["number"] // MOST_PARTS
        read[piece] = max(read[piece], note["read"])
        if "parts" in note:
            ends[piece] = note["parts"]
            found.malformed += note["malformed"]
            found.unknown += note["unknown"]
            found.warnings += note["warnings"]
        else:
            parts.add(row["number"], row["content"], note["counts"])
        done = {"task": "score", "done": sum(read.values()), "total": total, "unit": "rows"}
        log.debug("progress", extra={"progress": done})
    expected = {piece * MOST_PARTS + part for piece in ends for part in range(ends[piece])}
    if ends.keys() != read.keys() or parts.numbers != expected:
        raise BrokenRunError(
            f"score: {len(expected - parts.numbers)} parts of the result are missing.",
            "Run the same command again: it goes on from what was scored.",
        )


@dataclass(frozen=True)
class _CatalogueOf:
    """The catalogue of a model, for the processes that read."""

    model: Shipped
    num_items: int


@lru_cache(maxsize=1)
def _catalogue(digest: str, open_model: Callable[[], Catalogue]) -> Catalogue:
    return open_model()


@dataclass(frozen=True)
class _Reading:
    """What the processes that read need, besides their piece."""

    catalogue: _CatalogueOf
    done: frozenset[int]
    """Numbers of the parts that are there already."""


@dataclass(frozen=True)
class _Task:
    """Reads a piece, in a process of Ray."""

    reading: _Reading
    piece: Piece

    __name__ = "read"

    def __call__(self) -> Iterator[Table]:
        try:
            yield from self._tables()
        except SlmcError as error:
            yield _failed(error)

    def _tables(self) -> Iterator[Table]:
        of, findings = self.reading.catalogue, Findings()
        number, parts, seen = self.piece.number * MOST_PARTS, 0, 0

        def opened() -> Catalogue:
            model = of.model.open()
            return Catalogue.open(
                model.path, of.num_items, of_engine=model.manifest.kind == "engine"
            )

        catalogue = _catalogue(of.model.digest, opened)
        for one, batch in read(self.piece, catalogue, findings):
            parts, seen = parts + 1, batch.read
            if one not in self.reading.done:
                yield _table(one, batch.packed(), {"read": batch.read})
        yield _table(number, b"", {"read": seen, "parts": parts} | asdict(findings))


class Worker:
    """Ranks parts, in a process of Ray that keeps the model open."""

    def __init__(self, model: Shipped, request: Request, format: Format, threads: int) -> None:
        """Take what is needed; the model is opened at the first part."""
        self._model, self._request = model, request
        self._format, self._threads = format, threads

    @cached_property
    def _answerer(self) -> Answerer:
        return Answerer(load(self._model.open(), threads=self._threads), self._request)

    def __call__(self, table: Table) -> Table:
        """The table of a part of the histories becomes that of a part of the result."""
        (row,) = table.to_pylist()
        note = json.loads(row["note"])
        if "read" not in note or "parts" in note:
            return table  # an error, or the end of a piece
        try:
            frame, counts = self._answerer.start(Batch.unpacked(row["content"]))()
        except SlmcError as error:
            return _failed(error)
        content = output.content_of(frame, self._format)
        return _table(row["number"], content, note | {"counts": counts})


def _failed(error: SlmcError) -> Table:
    return _table(-1, b"", {"error": [type(error).__name__, error.what, error.remedy]})


def _table(number: int, content: bytes, note: dict[str, Any]) -> Table:
    import pyarrow

    columns = {"number": [number], "content": [content], "note": [json.dumps(note)]}
    types = {"number": "int64", "content": "large_binary", "note": "string"}
    return pyarrow.table(
        {name: pyarrow.array(columns[name], getattr(pyarrow, types[name])()) for name in columns}
    )
