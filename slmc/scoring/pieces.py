"""An input in pieces that several processes read at the same time, for ``slmc score --on ray``.

Of an input with one row per user, a piece is a range of rows of a Parquet file, or a text file. One
with one row per interaction is grouped by user first, by this process; then a piece is a part that
lies on disk. Each piece gives parts; its number and theirs give their order in the result.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from slmc.scoring import grouping
from slmc.scoring.batches import Batch, cut
from slmc.scoring.blocks import count_rows
from slmc.scoring.settings import PART_ITEMS
from slmc.scoring.source import SHOWN, Source
from slmc.serving.catalogue import Catalogue

PIECE_ROWS = 1 << 20
"""Rows of a Parquet file that one process reads."""
MOST_PARTS = 1_000_000
"""Parts of a piece: more than a file on any disk has."""

log = logging.getLogger("slmc.score")


@dataclass(frozen=True)
class Piece:
    """What one process reads."""

    number: int
    content: Source | Path
    """Rows of the input, or a file with the users of one part."""
    part_users: int


@dataclass
class Findings:
    """What was found wrong in a piece."""

    malformed: int = 0
    unknown: list[str] = field(default_factory=list)
    """The first ids that are not in the catalogue."""
    warnings: list[str] = field(default_factory=list)


def pieces(source: Source, catalogue: Catalogue, folder: Path) -> list[Piece]:
    """Cut an input into pieces, in its order.

    Args:
        source: The input.
        catalogue: Names the items.
        folder: Where users with their histories are written, if rows are interactions.

    Raises:
        DataError: Rows are interactions, and a row or an item is not as it should be.
    """
    users = source.settings.part_users
    if source.by_user:
        return [Piece(i, one, users) for i, one in enumerate(_ranges(source))]
    folder.mkdir(exist_ok=True)
    batches = grouping.histories(source, catalogue, folder, source.total())
    files = []
    for number, batch in enumerate(cut(batches, users, PART_ITEMS)):
        files.append(folder / f"{number:06}.users")
        files[-1].write_bytes(batch.packed())
    return [Piece(i, file, users) for i, file in enumerate(files)]


def _ranges(source: Source) -> Iterator[Source]:
    texts = any(layout.format != "parquet" for layout in source.layouts)
    if source.columns.user is None and texts:
        yield source  # its users are numbered by the well-formed rows before them
        return
    before = 0
    for path, layout in zip(source.paths, source.layouts, strict=True):
        one = replace(source, paths=[path], layouts=[layout], unknown={})
        if layout.format != "parquet":
            yield one
            continue
        rows = count_rows(path, layout) or 0
        for start in range(0, rows, PIECE_ROWS):
            yield replace(one, rows=(start, PIECE_ROWS), before=before + start, unknown={})
        before += rows


def read(piece: Piece, catalogue: Catalogue, findings: Findings) -> Iterator[tuple[int, Batch]]:
    """The parts of a piece and their numbers; ``findings`` is complete at the end.

    Raises:
        DataError: A row is malformed or an item unknown, and that is an error.
    """
    first = piece.number * MOST_PARTS
    if isinstance(piece.content, Path):
        yield first, Batch.unpacked(piece.content.read_bytes())
        return
    source = piece.content
    with _warnings(findings.warnings):
        for part, batch in enumerate(
            cut(source.histories(catalogue), piece.part_users, PART_ITEMS)
        ):
            yield first + part, batch
    findings.malformed, findings.unknown = source.malformed, [*source.unknown][:SHOWN]


@contextmanager
def _warnings(messages: list[str]) -> Iterator[None]:
    """Collect the warnings of this module's logger, which another process shows."""

    class Collecting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler = Collecting(logging.WARNING)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
