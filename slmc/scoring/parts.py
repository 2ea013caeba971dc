"""The parts of a result on disk, until all are there: ``.NAME.partial`` beside the output.

    .top.parquet.partial/
    ├── job.json              what is scored: another job begins anew
    ├── 000000.parquet        the users of a part, written completely before
    └── 000000.json           its counts, which make the part count

A part is the answer for a fixed range of users of the input, so a job that was killed goes on after
the last complete part.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from slmc.scoring import output
from slmc.scoring.output import Format
from slmc.system import write_whole

JOB = "job.json"
COUNTS = ("users", "popular", "skipped", "unknown")
"""Counts of a part."""


@dataclass
class Parts:
    """The parts of one job."""

    folder: Path
    format: Format
    done: int = 0
    """Number of complete parts."""

    @classmethod
    def open(cls, folder: Path, job: Mapping[str, Any], format: Format) -> "Parts":
        """Find the complete parts of a job; those of another job are removed."""
        if _read(folder / JOB) != job:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_whole(folder / JOB, json.dumps(job, indent=2) + "\n")
        parts = cls(folder, format)
        while parts._counts(parts.done).is_file():
            parts.done += 1
        return parts

    @property
    def files(self) -> list[Path]:
        """The complete parts, in order."""
        return [self._file(number) for number in range(self.done)]

    def add(self, frame: pl.DataFrame, counts: Mapping[str, int]) -> None:
        """Write the next part."""
        output.write(frame, self._file(self.done), self.format)
        write_whole(self._counts(self.done), json.dumps(dict(counts)) + "\n")
        self.done += 1

    def totals(self) -> dict[str, int]:
        """The sums of the counts of all parts."""
        counts = [_read(self._counts(number)) or {} for number in range(self.done)]
        return {name: sum(one.get(name, 0) for one in counts) for name in COUNTS}

    def join(self, schema: pl.DataFrame, to: Path) -> None:
        """Join all parts to one file, which appears complete; the parts stay."""
        joined = self.folder / f"joined.{self.format}"
        output.join(self.files, schema, joined, self.format)
        os.replace(joined, to)

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06}.{self.format}"

    def _counts(self, number: int) -> Path:
        return self.folder / f"{number:06}.json"


def _read(file: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
