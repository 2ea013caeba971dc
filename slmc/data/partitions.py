"""Columns in the names of folders, as Spark writes them: ``dt=2023-11-14/part-0.parquet``."""

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

import polars as pl

from slmc.data.files import has_parquet_magic, head_lines, rereadable

PART = re.compile(r"([^=]+)=(.*)")
MISSING = "__HIVE_DEFAULT_PARTITION__"
"""The name of a folder whose rows have no value."""
FIRST_LINES = 3


def folder_values(path: Path, columns: Mapping[str, str]) -> dict[str, str | None]:
    """Return role -> value of the columns that only the names of a file's folders have.

    Args:
        path: A local file.
        columns: Role -> column.
    """
    folders = {match[1]: unquote(match[2]) for match in map(PART.fullmatch, path.parts[:-1])
               if match}  # fmt: skip
    return {
        role: None if folders[column] == MISSING else folders[column]
        for role, column in columns.items()
        if column in folders and not _in_file(path, column)
    }


def inside(path: Path, columns: Mapping[str, str]) -> dict[str, str]:
    """Return the columns, role -> column, that are sought in the file itself."""
    outside = folder_values(path, columns)
    return {role: column for role, column in columns.items() if role not in outside}


def partition(path: Path) -> str:
    """Return the name of a file with those of its folders that hold columns."""
    return "/".join([*(part for part in path.parts[:-1] if PART.fullmatch(part)), path.name])


def _in_file(path: Path, column: str) -> bool:
    """Return whether a file names a column; such a file is not partitioned by it."""
    if has_parquet_magic(path):
        return column in pl.scan_parquet(rereadable(path), glob=False).collect_schema()
    name = re.compile(rf"(?<!\w){re.escape(column)}(?!\w)")
    return any(name.search(line) for line in head_lines(path)[:FIRST_LINES])
