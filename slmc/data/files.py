"""Open a file of a log: streams kept, gzip undone, lines numbered, what is not UTF-8 set apart.

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
PACKED = {
    "zstd": rb"\x28\xb5\x2f\xfd", "bzip2": rb"BZh[1-9]1AY&SY", "xz": rb"\xfd7zXZ\0",
    "zip": rb"PK\x03\x04",
}  # fmt: skip
"""First bytes of what is compressed in another way than by gzip (zip: Excel's files too)."""
BLOCK_BYTES = 1 << 22
"""Bytes of a text file that are in memory at once, before they are split into lines."""
HEAD_BYTES = 1 << 16
"""Bytes at the beginning of a text file that its format is told from."""
MALFORMED = {"line": pl.Int64, "fault": pl.String, "reason": pl.String}
"""Columns of the malformed rows of a file; ``fault`` is their kind, ``reason`` the detail."""

_kept: dict[Path, Path] = {}


@dataclass(frozen=True)
class Lines:
    """Lines of a file that stand one after the other."""

    frame: pl.DataFrame
    """Columns ``line`` (1-based) and ``text`` (without line end), those that are not UTF-8
    left out; ``text`` may be blank."""
    malformed: list[tuple[int, str, str]]
    """Lines that are not UTF-8."""

    @property
    def filled(self) -> pl.DataFrame:
        """The lines that are not blank."""
        return self.frame.filter(pl.col("text").str.strip_chars() != "")


def line_blocks(path: Path) -> Iterator[Lines]:
    """The lines of a text file, gzipped or not, block after block.

    Raises:
        DataError: The file is empty, unreadable, not text, or a broken gzip stream.
    """
    number, blank = 1, True
    parts: list[bytes] = []  # of a line that goes over several blocks
    for block in _blocks(path, BLOCK_BYTES):
        blank = blank and not block.strip()
        whole, newline, cut = block.rpartition(b"\n")
        parts.append(whole if newline else cut)
        if newline:
            data = b"".join(parts)
            yield _lines(data, number)
            number += data.count(b"\n") + 1
            parts = [cut]
    if last := b"".join(parts):
        yield _lines(last, number)
    if blank:
        raise _empty(path)


def _lines(data: bytes, number: int) -> Lines:
    """Whole lines, the last without its line end; ``number`` is that of the first."""
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
    """The first whole lines of a text file that are not blank, without their line ends.

    Raises:
        DataError: As :func:`line_blocks` does, as far as the first lines tell.
    """
    head = next(_blocks(path, HEAD_BYTES))
    if not head.strip() and len(head) < HEAD_BYTES:
        raise _empty(path)
    lines = head.decode(errors="replace").split("\n")
    if len(lines) > 1 and len(head) >= HEAD_BYTES - 3:  # it may be cut within the last line
        lines.pop()
    return [line.rstrip("\r") for line in lines if line.strip()]


def has_parquet_magic(path: Path) -> bool:
    """Whether a file begins as Parquet does."""
    with opened(path) as stream:
        return stream.read(4) == PARQUET


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A file open for reading; raises :class:`DataError` if it cannot be opened or read."""
    try:
        with stored(path).open("rb") as stream:
            yield stream
    except OSError as error:
        raise _unreadable(path, error) from None


def stored(path: Path) -> Path:
    """Where the content of ``path`` can be read again and again.

    A pipe (``/dev/stdin``, what a shell puts for ``<(zcat log.gz)``) is read once, to a file in
    the cache that lives as long as the process; any other path is that itself.

    Raises:
        DataError: A pipe cannot be read.
    """
    if path in _kept:
        return _kept[path]
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
    _kept[path] = folder / "content"
    return _kept[path]


def is_stream(path: Path) -> bool:
    """Whether a path is a pipe, a socket or a terminal: something that can be read once."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _blocks(path: Path, size: int) -> Iterator[bytes]:
    """The content of a text file from its beginning, gzip undone, without a byte order mark."""
    with opened(path) as raw:
        start = raw.read(10)
        raw.seek(0)
        if not start:
            raise _empty(path)
        _check_packed(path, start)
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
    return DataError(f"{path} is empty.", "Write the log again, or name another file.")


def check_parquet(path: Path) -> None:
    """Raise :class:`DataError` unless the file starts and ends as Parquet does."""
    with opened(path) as stream:
        head = stream.read(4)
        stream.seek(max(0, stream.seek(0, 2) - 4))
        tail = stream.read(4)
    if not head:
        raise _empty(path)
    if head != PARQUET:
        raise DataError(f"{path} is not a Parquet file.", "Set format to what it is.")
    if tail != PARQUET:
        raise DataError(f"{path} is a Parquet file cut short.", "Copy the file again.")


def _check_packed(path: Path, start: bytes) -> None:
    """Tell a file that is compressed in another way than it is named, or than by gzip."""
    way = next((name for name, magic in PACKED.items() if re.match(magic, start)), None)
    if way is not None:
        raise DataError(
            f"{path} is compressed by {way}.",
            "Unpack it, or pack it with gzip; save a spreadsheet as CSV.",
        )
    if path.suffix == ".gz" and start[:2] != GZIP:
        raise DataError(
            f"{path} is not gzip data, though it is named .gz.",
            "Rename it, or compress it with gzip.",
        )


def _check_text(path: Path, data: bytes) -> None:
    """Tell text from anything else by its beginning; a later bad line is one malformed row."""
    head = data[: 1 << 13]
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path} is UTF-16 text.", "Save it as UTF-8.")
    if b"\0" in head:
        line = head[: head.index(b"\0")].count(b"\n") + 1
        raise DataError(
            f"{path} is not text: it has a zero byte in line {line}.",
            "Name a text file, or set format: parquet if it is one.",
        )
    if b"\n" not in head and b"\r" in head.rstrip(b"\r"):
        raise DataError(
            f"The lines of {path} end in a carriage return alone.",
            "Save it with line feeds: `tr '\\r' '\\n' < FILE`.",
        )
    try:
        head.split(b"\n")[0].decode()
    except UnicodeDecodeError as error:
        if error.end >= len(head):  # a long first line, cut in the middle of a character
            return
        raise DataError(
            f"{path} is not UTF-8 text: line 1 has byte 0x{head[error.start]:02x} "
            f"at column {error.start + 1}.",
            "Save it as UTF-8, or set format: parquet if it is one.",
        ) from None
