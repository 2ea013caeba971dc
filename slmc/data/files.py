"""Open a text file of a log: gzip undone, lines numbered, what is not UTF-8 set apart."""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from slmc.errors import DataError

GZIP = b"\x1f\x8b"
PARQUET = b"PAR1"
MALFORMED = {"line": pl.Int64, "fault": pl.String, "reason": pl.String}
"""Columns of the malformed rows of a file; ``fault`` is their kind, ``reason`` the detail."""


@dataclass(frozen=True)
class Lines:
    """The lines of a file that are neither blank nor broken."""

    frame: pl.DataFrame
    """Columns ``line`` (1-based) and ``text``."""
    malformed: list[tuple[int, str, str]]
    """Lines that are not UTF-8."""


def read_lines(path: Path) -> Lines:
    """Read a text file, gzipped or not.

    Raises:
        DataError: The file is empty, unreadable, not text, or a broken gzip stream.
    """
    data = read_bytes(path).removeprefix(b"\xef\xbb\xbf")
    _check_text(path, data)
    malformed: list[tuple[int, str, str]] = []
    texts: list[str | None]
    try:
        texts = [*data.decode().split("\n")]
    except UnicodeDecodeError:
        texts = []
        for number, raw in enumerate(data.split(b"\n"), start=1):
            try:
                texts.append(raw.decode())
            except UnicodeDecodeError as error:
                texts.append(None)
                found = f"byte 0x{raw[error.start]:02x} at column {error.start + 1}"
                malformed.append((number, "encoding", f"not UTF-8: {found}"))
    frame = pl.DataFrame({"text": pl.Series(texts, dtype=pl.String)}).with_row_index("line", 1)
    frame = frame.select(pl.col("line").cast(pl.Int64), pl.col("text").str.strip_chars_end("\r"))
    # A null text (not UTF-8) fails the comparison and goes with the blank lines.
    return Lines(frame.filter(pl.col("text").str.strip_chars() != ""), malformed)


def read_bytes(path: Path) -> bytes:
    """The content of a file, gzip undone; raises :class:`DataError` as :func:`read_lines`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}.", "Check the path and its permissions."
        ) from None
    if not data:
        raise DataError(f"{path} is empty.", "Write the log again, or name another file.")
    if data[:2] == GZIP:
        try:
            data = gzip.decompress(data)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            what = (
                "ends in the middle of its gzip stream"
                if isinstance(error, EOFError)
                else (f"is a broken gzip file ({error})")
            )
            raise DataError(f"{path} {what}.", "Copy or download the file again.") from None
    elif path.suffix == ".gz":
        raise DataError(
            f"{path} is not gzip data, though it is named .gz.",
            "Rename it, or compress it with gzip.",
        )
    if not data.strip():
        raise DataError(f"{path} is empty.", "Write the log again, or name another file.")
    return data


def check_parquet(path: Path) -> None:
    """Raise :class:`DataError` unless the file starts and ends as Parquet does."""
    with path.open("rb") as stream:
        head = stream.read(4)
        stream.seek(max(0, path.stat().st_size - 4))
        tail = stream.read(4)
    if not head:
        raise DataError(f"{path} is empty.", "Write the log again, or name another file.")
    if head != PARQUET:
        raise DataError(f"{path} is not a Parquet file.", "Set format to what it is.")
    if tail != PARQUET:
        raise DataError(f"{path} is a Parquet file cut short.", "Copy the file again.")


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
