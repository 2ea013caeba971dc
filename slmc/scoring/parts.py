"""The parts of a result on disk, until all are there: ``.NAME.partial`` beside the output.

    .top.parquet.partial/
    ├── job.json              what is scored: another job begins anew
    ├── 000000.parquet        the users of a part, written completely before
    └── 000000.json           its counts, which make the part count

A part is the answer for a fixed range of users of the input, so a job that was killed goes on with
the parts that are not there yet. They may come in any order; the numbers are their order in the
result.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from slmc.scoring import output
from slmc.scoring.answering import COUNTS, Counts
from slmc.scoring.output import Format
from slmc.system import write_whole

JOB = "job.json"


@dataclass
class Parts:
    """The parts of one job."""

    folder: Path
    format: Format
    numbers: set[int] = field(default_factory=set)
    """Numbers of the complete parts."""

    @classmethod
    def open(cls, folder: Path, job: Mapping[str, Any], format: Format) -> "Parts":
        """Find the complete parts of a job; those of another job are removed."""
        if _read(folder / JOB) != job:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_whole(folder / JOB, json.dumps(job, indent=2) + "\n")
        counts = folder.glob("*.json")
        return cls(folder, format, {int(file.stem) for file in counts if file.stem.isdigit()})

    @property
    def done(self) -> int:
        """How many parts are complete."""
        return len(self.numbers)

    @property
    def files(self) -> list[Path]:
        """The complete parts, in order."""
        return [self._file(number) for number in sorted(self.numbers)]

    def add(self, number: int, content: bytes, counts: Counts) -> None:
        """Write a part: its content, in the format of the job, and then its counts."""
        output.write(content, self._file(number))
        write_whole(self._counts(number), json.dumps(counts) + "\n")
        self.numbers.add(number)

    def totals(self) -> Counts:
        """The sums of the counts of all parts."""
        counts = [_read(self._counts(number)) or {} for number in self.numbers]
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
