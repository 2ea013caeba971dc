"""Split a table of any length into buckets of rows, so that each bucket fits in memory.

A log is sorted in buckets of users, and the interactions of ``slmc score`` are grouped in them.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from slmc.data.spool import Appended, Spool

MOST_BUCKETS = 256
"""Each is a file that is open at the same time."""
Numbers = Callable[[pl.DataFrame], NDArray[np.integer]]
"""The bucket of each row of a table, from 0."""


class Buckets(Appended):
    """Rows that are read back bucket after bucket.

    Up to ``memory`` rows stay in memory, as one table. Each time there are more, all of them are
    written to the disk, each into the file of its bucket.
    """

    def __init__(
        self,
        number: int,
        of: Numbers,
        *,
        memory: int | None = None,
        folder: Path | None = None,
    ) -> None:
        """Start ``number`` empty buckets.

        Args:
            number: Buckets, at most :data:`MOST_BUCKETS`.
            of: The buckets of rows; called only for rows that are written.
            memory: Rows that are kept in memory; default: CHUNK_ROWS.
            folder: Where the files are, which have no names; default: the cache.
        """
        super().__init__(memory)
        self._spools = [Spool(0, folder) for _ in range(number)]
        self._of = of

    def tables(self) -> Iterator[pl.DataFrame]:
        """Yield the rows and drop them: bucket after bucket, without the empty ones.

        If nothing was written to the disk, all rows are one table. The rows of a table are in the
        order in which they were appended.
        """
        self.height = 0
        if not any(spool.height for spool in self._spools):
            if self._recent:
                yield self._taken()
            return
        self._write()
        for spool in self._spools:
            if spool.height:
                yield spool.frame()
                spool.close()

    def _write(self) -> None:
        if not self._waiting:
            return
        frame = self._taken()
        buckets = self._of(frame)
        frame = frame[np.argsort(buckets, kind="stable")]
        ends = np.cumsum(np.bincount(buckets, minlength=len(self._spools)))
        for spool, start, end in zip(self._spools, [0, *ends[:-1]], ends, strict=True):
            if end > start:
                spool.append(frame[int(start) : int(end)])
