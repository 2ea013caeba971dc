"""Many histories as one array of rows. No torch here.

Letters: B histories, L their padded length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Histories:
    """B histories, concatenated."""

    flat: NDArray[np.int32]
    """Rows 1..V of all histories, each oldest first."""
    lengths: Ints
    """``[B]`` items of each history."""

    @classmethod
    def of(cls, histories: Sequence[Sequence[int]]) -> Self:
        """Concatenate lists of rows."""
        lengths = np.array([len(rows) for rows in histories], dtype=np.int64)
        return cls(np.array([row for rows in histories for row in rows], dtype=np.int32), lengths)

    @classmethod
    def known(cls, rows: NDArray[np.int32], lengths: Ints) -> tuple[Self, Ints]:
        """Histories without their unknown items, and the number of unknown items of each.

        Args:
            rows: Rows of all histories, concatenated; 0 is an unknown item.
            lengths: ``[B]`` items of each history, unknown ones included.
        """
        history = np.repeat(np.arange(lengths.size), lengths)
        unknown = np.bincount(history[rows == 0], minlength=lengths.size)
        return cls(rows[rows != 0], lengths - unknown), unknown

    def __len__(self) -> int:
        """B."""
        return self.lengths.size

    @cached_property
    def ends(self) -> Ints:
        """``[B]`` index in ``flat`` after the last item of each history."""
        return np.cumsum(self.lengths)

    def padded(self, chosen: Ints, most: int | None = None) -> Ints:
        """The newest items of some histories, ``[b, L]``, padded with 0 on the left.

        Args:
            chosen: ``[b]`` indices of histories.
            most: Largest L; by default the length of the longest history.
        """
        lengths = self.lengths[chosen]
        longest = int(lengths.max(initial=1))
        width = longest if most is None else min(longest, most)
        # Column j of a row is the item that stands width - j places before the history's end.
        back = np.arange(width, 0, -1)
        places = self.ends[chosen][:, None] - back
        real = back <= lengths[:, None]
        out = np.zeros(real.shape, dtype=np.int64)
        out[real] = self.flat[places[real]]
        return out

    def by_length(self, chosen: Ints, size: int) -> list[Ints]:
        """Split histories into groups of at most ``size``, of similar length, the longest first."""
        order = chosen[np.argsort(-self.lengths[chosen], kind="stable")]
        return [order[start : start + size] for start in range(0, order.size, size)]
