"""Users and their histories, and the parts into which they are cut."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from slmc.serving.histories import Ints


@dataclass(frozen=True, eq=False)
class Batch:
    """Users and their histories."""

    users: pl.Series
    """``[B]``."""
    rows: NDArray[np.int32]
    """Rows of the catalogue of all histories, concatenated; 0 for an unknown item."""
    lengths: Ints
    """``[B]`` items of each history."""
    read: int
    """Rows of the input that have been read so far."""

    def packed(self) -> bytes:
        """Users and histories as bytes, for another process: two tables in Arrow's IPC format."""
        out = io.BytesIO()
        users = pl.DataFrame([self.users, pl.Series("#length", self.lengths)])
        for table in (users, pl.DataFrame({"row": self.rows})):
            content = io.BytesIO()
            table.write_ipc(content)
            out.write(content.tell().to_bytes(8, "little"))
            out.write(content.getbuffer())
        return out.getvalue()

    @classmethod
    def unpacked(cls, content: bytes, read: int = 0) -> Self:
        """What :meth:`packed` has made."""
        tables, place = [], 0
        for _ in range(2):
            size = int.from_bytes(content[place : place + 8], "little")
            tables.append(pl.read_ipc(content[place + 8 : place + 8 + size]))
            place += 8 + size
        users, rows = tables
        return cls(
            users.to_series(0), rows["row"].to_numpy(), users["#length"].to_numpy(), read
        )  # fmt: skip


def cut(batches: Iterator[Batch], most_users: int, most_items: int) -> Iterator[Batch]:
    """Cut a stream of users into parts of ``most_users``, or fewer with ``most_items``.

    A part ends before the user with whom it would have more items; one user alone may have more.
    """
    left: Batch | None = None
    for batch in batches:
        left = batch if left is None else _joined(left, batch)
        while (users := _first(left, most_users, most_items)) < left.users.len():
            yield _slice(left, 0, users)
            left = _slice(left, users, left.users.len())
    if left is not None and left.users.len():
        yield left


def _first(batch: Batch, most_users: int, most_items: int) -> int:
    """Users of the first part; all of them if more could join it."""
    fitting = int(np.searchsorted(np.cumsum(batch.lengths), most_items, side="right"))
    return min(most_users, max(1, fitting))


def _joined(first: Batch, second: Batch) -> Batch:
    return Batch(
        pl.concat([first.users, second.users]),
        np.concatenate([first.rows, second.rows]),
        np.concatenate([first.lengths, second.lengths]),
        second.read,
    )


def _slice(batch: Batch, start: int, end: int) -> Batch:
    ends = np.concatenate([[0], np.cumsum(batch.lengths)])
    return Batch(
        batch.users[start:end],
        batch.rows[ends[start] : ends[end]],
        batch.lengths[start:end],
        batch.read,
    )
