"""The formats of a result: Parquet and JSON lines (a row per user), CSV (a row per item)."""

import io
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import polars as pl

from slmc.errors import UsageError

Format = Literal["parquet", "jsonl", "csv"]
SUFFIXES: dict[str, Format] = {
    ".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv",
}  # fmt: skip
ROW_GROUP = 100_000
"""Users of a row group of the joined Parquet file."""


def format_of(output: str) -> Format:
    """The format of an output by its name; JSON lines for standard output.

    Raises:
        UsageError: The name shows no format.
    """
    if output == "-":
        return "jsonl"
    suffix = Path(output.partition("?")[0]).suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(
            f"--output: the name {output} shows no format.",
            f"Let it end in {', '.join(SUFFIXES)}; or write - for JSON lines on standard output.",
        )
    return SUFFIXES[suffix]


def content_of(frame: pl.DataFrame, format: Format) -> bytes:
    """The content of the file of a part of a result; it may have no row."""
    if format != "parquet":
        return text_of(frame, format).encode()
    out = io.BytesIO()
    frame.write_parquet(out)
    return out.getvalue()


def write(content: bytes, file: Path) -> None:
    """Write a part of a result to disk, completely."""
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def text_of(frame: pl.DataFrame, format: Format) -> str:
    """Rows as JSON lines, or as CSV without a header."""
    out = io.StringIO()
    if format == "jsonl":
        out.write(frame.write_ndjson())
    else:
        out.write(by_item(frame).write_csv(include_header=False))
    return out.getvalue()


def by_item(frame: pl.DataFrame) -> pl.DataFrame:
    """One row per recommended item: user, rank from 1, item, score, by."""
    user = frame.columns[0]
    rank = pl.int_ranges(1, pl.col("items").list.len() + 1)
    return (
        frame.filter(pl.col("items").list.len() > 0)
        .select(
            user, rank.alias("rank"), pl.col("items").alias("item"),
            pl.col("scores").alias("score"), "by",
        )
        .explode("rank", "item", "score")
    )  # fmt: skip


def join(parts: Sequence[Path], schema: pl.DataFrame, file: Path, format: Format) -> None:
    """Join the parts of a result, in their order, with flat memory.

    Args:
        parts: Files in ``format``.
        schema: A result without rows.
        file: Where to write.
        format: The format of all.
    """
    if format == "parquet":
        if not parts:
            schema.write_parquet(file)
        else:
            pl.scan_parquet(list(parts), glob=False).sink_parquet(file, row_group_size=ROW_GROUP)
        _sync(file)
        return
    with file.open("wb") as out:
        if format == "csv":
            out.write(by_item(schema).write_csv().encode())
        for part in parts:
            with part.open("rb") as stream:
                shutil.copyfileobj(stream, out, 1 << 20)
        out.flush()
        os.fsync(out.fileno())


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
