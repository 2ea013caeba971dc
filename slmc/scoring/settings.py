"""The settings of a scoring job. No torch here."""

import re
from dataclasses import dataclass, field
from typing import Literal, Self
from zlib import crc32

import numpy as np
import polars as pl
from numpy.typing import NDArray

from slmc.data.config import Format
from slmc.data.sniff import Header
from slmc.errors import UsageError
from slmc.serving.answers import Empty
from slmc.serving.frames import Columns
from slmc.serving.recommender import Unknown

Malformed = Literal["skip", "error"]
Place = Literal["process", "ray"]
"""Who ranks: this process, or the workers of a Ray cluster."""
SHARD = re.compile(r"(\d+)/(\d+)")
PART_USERS = 1 << 15
"""Users of a part: what a killed job computes again is less than that."""
PART_ITEMS = 1 << 22
"""Items of the histories of a part, at most."""


@dataclass(frozen=True)
class Shard:
    """The users of one of several jobs that together score the whole input."""

    number: int = 1
    """From 1."""
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``i/n``, i from 1 to n; raises :class:`UsageError` for anything else."""
        match = SHARD.fullmatch(text.strip())
        number, of = (int(one) for one in match.groups()) if match else (0, 0)
        if not 1 <= number <= of:
            raise UsageError(
                f"--shard: {text!r} is not the number of a shard.",
                "Write i/n with i from 1 to n: --shard 1/4 and so on to --shard 4/4.",
            )
        return cls(number, of)

    def holds(self, users: pl.Series) -> NDArray[np.bool_]:
        """Which of these users belong to it; it depends on the text of the id alone."""
        return hashes(users) % self.of == self.number - 1


def hashes(users: pl.Series) -> NDArray[np.int64]:
    """A hash of each user that is the same in every process and version: the CRC-32 of its text."""
    texts = users.cast(pl.String)
    return np.fromiter((crc32(text.encode()) for text in texts), np.int64, count=users.len())


@dataclass(frozen=True)
class Settings:
    """What to score, how, and where the result goes."""

    input: str
    """A path, a glob, a URL, or ``-`` for standard input."""
    output: str
    """A path, a URL, or ``-`` for standard output."""
    k: int = 10
    exclude_seen: bool = False
    allow: str | None = None
    """File of the only items that may be recommended."""
    deny: str | None = None
    """File of items that must not be recommended."""
    unknown: Unknown = "skip"
    empty: Empty = "popular"
    malformed: Malformed = "error"
    shard: Shard = Shard()
    columns: Columns = field(default_factory=Columns)
    format: Format = "auto"
    separator: str | None = None
    header: Header = "auto"
    """Whether the first line names the columns; without a header they are numbers from 1."""
    items_separator: str | None = None
    """Separator of the ids of a list that is written as text; None for blanks."""
    threads: int | None = None
    """Cores; None for all that the process may use. On Ray: of each worker; None for one."""
    on: Place = "process"
    workers: int | None = None
    """Workers on Ray; None for as many as the cluster has cores for."""
    force: bool = False
    """Whether to replace an existing output."""
    part_users: int = PART_USERS
