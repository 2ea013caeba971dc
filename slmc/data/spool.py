"""Tables of any length, in memory while they are small and on disk from then on.

The disk holds one file per spool, which has no name: it is gone when the process ends, however it
ends. By default it is in the cache, because ``/tmp`` is memory on many machines.
"""

import io
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import polars as pl

from slmc import cache

CHUNK_ROWS = 1 << 20
"""Rows that a spool keeps in memory; one of fewer rows never touches the disk."""


class Appended(ABC):
    """Rows that are appended, of which only so many wait in memory."""

    def __init__(self, memory: int | None) -> None:
        """Start empty; ``memory`` rows may wait (default: CHUNK_ROWS)."""
        self.height = 0
        """Rows in memory and on the disk."""
        self._memory = CHUNK_ROWS if memory is None else memory
        self._recent: list[pl.DataFrame] = []
        self._waiting = 0

    def append(self, frame: pl.DataFrame) -> None:
        """Append rows; all frames have the same columns."""
        self._recent.append(frame)
        self._waiting += frame.height
        self.height += frame.height
        if self._waiting > self._memory:
            self._write()

    def _taken(self) -> pl.DataFrame:
        """Take the waiting rows out of memory, as one table."""
        recent, self._recent, self._waiting = self._recent, [], 0
        return joined(recent)

    @abstractmethod
    def _write(self) -> None:
        """Write the waiting rows to the disk."""


class Spool(Appended):
    """Rows of a table, chunk after chunk, in the order in which they were appended.

    A chunk holds whole frames, one or several.
    """

    def __init__(self, memory: int | None = None, folder: Path | None = None) -> None:
        """Start an empty spool.

        Args:
            memory: Rows that are kept in memory; default: CHUNK_ROWS.
            folder: Where the file is; default: the cache.
        """
        super().__init__(memory)
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._written: list[tuple[int, int]] = []  # bytes and rows of each chunk on disk

    def chunks(self) -> Iterator[pl.DataFrame]:
        """Yield the rows in order; rows must not be appended meanwhile."""
        place = 0
        for size, _ in self._written:
            yield self._read(place, size)
            place += size
        yield from self._recent

    def rows(self, start: int, stop: int) -> pl.DataFrame:
        """Return the rows from ``start`` to ``stop`` (excluded); reads only their chunks."""
        parts, first, place = [], 0, 0
        for size, height in self._written:
            if first < stop and first + height > start:
                parts.append(self._read(place, size)[max(start - first, 0) : stop - first])
            first, place = first + height, place + size
        for frame in self._recent:
            if first < stop and first + frame.height > start:
                parts.append(frame[max(start - first, 0) : stop - first])
            first += frame.height
        return joined(parts)

    def frame(self) -> pl.DataFrame:
        """Return all rows as one table."""
        return joined([*self.chunks()])

    def close(self) -> None:
        """Drop all rows."""
        if self._file is not None:
            self._file.close()
        self._file, self._recent, self._written = None, [], []
        self._waiting = self.height = 0

    def _write(self) -> None:
        if self._file is None:
            folder = self._folder or cache.root() / "scratch"
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115, it outlives this call
            weakref.finalize(self, self._file.close)
        content, rows = io.BytesIO(), self._waiting
        self._taken().write_ipc(content, compression="uncompressed")
        self._file.seek(0, io.SEEK_END)
        self._file.write(content.getbuffer())
        self._written.append((content.tell(), rows))

    def _read(self, place: int, size: int) -> pl.DataFrame:
        assert self._file is not None
        self._file.seek(place)
        return pl.read_ipc(self._file.read(size))


def joined(frames: list[pl.DataFrame]) -> pl.DataFrame:
    """Concatenate tables; a column of integers gets the widest type that it has in any of them."""
    if not frames:
        return pl.DataFrame()
    return pl.concat(frames, how="vertical_relaxed")
