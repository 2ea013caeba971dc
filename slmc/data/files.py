"""Read a file of a log: pipes, gzip, numbered lines, and lines that are not UTF-8.

A text file is read in blocks of whole lines, so memory does not grow with the file.
"""

import atexit
import gzip
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import polars as pl

from slmc import cache
from slmc.errors import DataError

GZIP = b"\x1f\x8b"
PARQUET = b"PAR1"
COMPRESSIONS = {
    "zstd": rb"\x28\xb5\x2f\xfd", "bzip2": rb"BZh[1-9]1AY&SY", "xz": rb"\xfd7zXZ\0",
    "zip": rb"PK\x03\x04",
}  # fmt: skip
"""First bytes of other kinds of compressed files (zip: also those of Excel)."""
OTHERS = {
    "an Arrow (Feather) file": b"ARROW1", "an Avro file": b"Obj\x01", "an ORC file": b"ORC",
    "an SQLite database": b"SQLite format 3\0", "an HDF5 file": b"\x89HDF\r\n",
    "a pickle": b"\x80\x04\x95", "an old Excel file": b"\xd0\xcf\x11\xe0",
}  # fmt: skip
"""First bytes of other binary files, which all contain zero bytes."""
BLOCK_BYTES = 1 << 22
"""Bytes of a text file that are read at once and then split into lines."""
HEAD_BYTES = 1 << 16
"""Bytes at the beginning of a text file from which its format is detected."""
MALFORMED = {"line": pl.Int64, "fault": pl.String, "reason": pl.String}
"""Columns of the malformed rows of a file; ``fault`` is their kind, ``reason`` the detail."""

_stream_copies: dict[Path, Path] = {}
"""Pipe -> file with its content."""


@dataclass(frozen=True)
class Lines:
    """Consecutive lines of a file."""

    frame: pl.DataFrame
    """``line`` (1-based) and ``text`` (without line end, maybe blank) of lines in UTF-8."""
    malformed: list[tuple[int, str, str]]
    """Other lines: number, fault, reason."""

    @property
    def filled(self) -> pl.DataFrame:
        """The lines that are not blank."""
        return self.frame.filter(pl.col("text").str.strip_chars() != "")


def line_blocks(path: Path, skip: int = 0) -> Iterator[Lines]:
    """Read the lines of a text file, gzipped or not, block by block.

    Args:
        path: A local file.
        skip: First lines to leave out; blank ones are not counted.

    Raises:
        DataError: The file is empty, unreadable, not text, or a broken gzip stream.
    """
    number, blank = 1, True
    parts: list[bytes] = []  # of a line that spans several blocks
    for block in _blocks(path, BLOCK_BYTES):
        blank = blank and not block.strip()
        whole, newline, cut = block.rpartition(b"\n")
        parts.append(whole if newline else cut)
        if newline:
            data = b"".join(parts)
            lines, skip = _without_first(_lines(data, number), skip)
            yield lines
            number += data.count(b"\n") + 1
            parts = [cut]
    if last := b"".join(parts):
        yield _without_first(_lines(last, number), skip)[0]
    if blank:
        raise _empty(path)


def _without_first(lines: Lines, skip: int) -> tuple[Lines, int]:
    """Leave out the first filled lines; return the others, and how many are still to be skipped."""
    if not skip:
        return lines, 0
    numbers = lines.filled["line"].head(skip)
    if numbers.is_empty():
        return lines, skip
    rest = lines.frame.filter(pl.col("line") > numbers[-1])
    return Lines(rest, lines.malformed), skip - numbers.len()


def _lines(data: bytes, number: int) -> Lines:
    """Decode whole lines; ``number`` is that of the first line."""
    malformed: list[tuple[int, str, str]] = []
    texts: list[str | None]
    try:
        texts = [*data.decode().split("\n")]
    except UnicodeDecodeError:
        texts = []
        for place, raw in enumerate(data.split(b"\n"), start=number):
            try:
                texts.append(raw.decode())
            except UnicodeDecodeError as error:
                texts.append(None)
                where = f"byte 0x{raw[error.start]:02x} at column {error.start + 1}"
                malformed.append((place, "encoding", f"not UTF-8: {where}"))
    frame = pl.DataFrame({"text": pl.Series(texts, dtype=pl.String)}).select(
        pl.int_range(number, number + pl.len(), dtype=pl.Int64).alias("line"),
        pl.col("text").str.strip_chars_end("\r"),
    )
    return Lines(frame.drop_nulls("text") if malformed else frame, malformed)


def head_lines(path: Path) -> list[str]:
    """Return the first whole lines of a text file that are not blank, without line ends.

    Raises:
        DataError: As :func:`line_blocks`, as far as the first lines show.
    """
    head = next(_blocks(path, HEAD_BYTES))
    if not head.strip() and len(head) < HEAD_BYTES:
        raise _empty(path)
    lines = head.decode(errors="replace").split("\n")
    if len(lines) > 1 and len(head) >= HEAD_BYTES - 3:  # it may be cut within the last line
        lines.pop()
    return [line.rstrip("\r") for line in lines if line.strip()]


def has_parquet_magic(path: Path) -> bool:
    """Return whether a file begins like Parquet."""
    with open_file(path) as stream:
        return stream.read(4) == PARQUET


@contextmanager
def open_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading; raises :class:`DataError` if it cannot be opened or read."""
    try:
        with rereadable(path).open("rb") as stream:
            yield stream
    except OSError as error:
        raise _unreadable(path, error) from None


def rereadable(path: Path) -> Path:
    """Return a path from which the content of ``path`` can be read more than once.

    A pipe (``/dev/stdin``, or ``<(zcat log.gz)`` of a shell) is copied to a file in the cache,
    which is deleted when the process ends; any other path is returned as it is.

    Raises:
        DataError: A pipe cannot be read.
    """
    if path in _stream_copies:
        return _stream_copies[path]
    if not is_stream(path):
        return path
    downloads = cache.root() / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="stream-", dir=downloads))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        with path.open("rb") as stream, (folder / "content").open("wb") as copy:
            shutil.copyfileobj(stream, copy)
    except OSError as error:
        raise _unreadable(path, error) from None
    _stream_copies[path] = folder / "content"
    return _stream_copies[path]


def is_stream(path: Path) -> bool:
    """Return whether a path is a pipe, a socket or a terminal, which can be read only once."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _blocks(path: Path, size: int) -> Iterator[bytes]:
    """Read a text file block by block, decompressed, without a byte order mark."""
    with open_file(path) as raw:
        start = raw.read(10)
        raw.seek(0)
        if not start:
            raise _empty(path)
        _check_compression(path, start)
        stream = gzip.GzipFile(fileobj=raw) if start[:2] == GZIP else raw
        try:
            first = stream.read(size).removeprefix(b"\xef\xbb\xbf")
            _check_text(path, first)
            yield first
            while block := stream.read(size):
                yield block
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            what = f"is a broken gzip file ({error})"
            if isinstance(error, EOFError):
                what = "ends in the middle of its gzip stream"
            raise DataError(f"{path} {what}.", "Copy or download the file again.") from None


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path} cannot be read: {error.strerror}.", "Check the path and its permissions."
    )


def _empty(path: Path) -> DataError:
    return DataError(f"{path} is empty.", "Export the log again, or name another file.")


def check_parquet(path: Path) -> None:
    """Raise :class:`DataError` unless the file starts and ends as Parquet does."""
    with open_file(path) as stream:
        head = stream.read(4)
        stream.seek(max(0, stream.seek(0, 2) - 4))
        tail = stream.read(4)
    if not head:
        raise _empty(path)
    if head != PARQUET:
        raise DataError(f"{path} is not a Parquet file.", "Set format to its real format.")
    if tail != PARQUET:
        raise DataError(f"{path} is an incomplete Parquet file.", "Copy the file again.")


def _check_compression(path: Path, start: bytes) -> None:
    """Refuse files that are not compressed as their name says, or not by gzip."""
    compression = next(
        (name for name, magic in COMPRESSIONS.items() if re.match(magic, start)), None
    )
    if compression is not None:
        raise DataError(
            f"{path} is compressed with {compression}.",
            "Decompress it, or use gzip; save a spreadsheet as CSV.",
        )
    if path.suffix == ".gz" and start[:2] != GZIP:
        raise DataError(
            f"{path} is not gzip data, although it is named .gz.",
            "Rename it, or compress it with gzip.",
        )


def _check_text(path: Path, data: bytes) -> None:
    """Refuse a file whose beginning is not UTF-8 text; later bad lines are malformed rows."""
    head = data[: 1 << 13]
    other = next((name for name, magic in OTHERS.items() if head.startswith(magic)), None)
    if other is not None and b"\0" in head:
        raise DataError(
            f"{path} is {other}, not a log that slmc reads.", "Save the table as Parquet or CSV."
        )
    zeros = max(head[start::2].count(0) for start in (0, 1))
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or zeros > len(head) / 4:
        raise DataError(
            f"{path} is UTF-16 text.",
            "Save it as UTF-8: `iconv -f utf-16 -t utf-8 FILE > log.csv`.",
        )
    if b"\0" in head:
        line = head[: head.index(b"\0")].count(b"\n") + 1
        raise DataError(
            f"{path} is not text: line {line} contains a zero byte.",
            "Name a text file, or set format: parquet if it is one.",
        )
    if b"\n" not in head and b"\r" in head.rstrip(b"\r"):
        raise DataError(
            f"The lines of {path} end with a carriage return only.",
            "Save it with line feeds: `tr '\\r' '\\n' < FILE`.",
        )
    try:
        head.split(b"\n")[0].decode()
    except UnicodeDecodeError as error:
        if error.end >= len(head):  # a long first line, cut within a character
            return
        raise DataError(
            f"{path} is not UTF-8 text: line 1 has byte 0x{head[error.start]:02x} "
            f"at column {error.start + 1}.",
            "Save it as UTF-8; if it is Latin-1: `iconv -f latin1 -t utf-8 FILE > log.csv`.",
        ) from None
