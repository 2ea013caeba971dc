"""From a part of the histories to a part of the result: in this process, or in a worker."""

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from slmc.scoring.batches import Batch
from slmc.serving.answers import Empty, as_frame
from slmc.serving.catalogue import Id
from slmc.serving.histories import Histories
from slmc.serving.ranking import Batches, Best, Wish
from slmc.serving.recommender import Served

COUNTS = ("users", "popular", "skipped", "unknown")
"""Counts of a part."""
Counts = dict[str, int]


@dataclass(frozen=True, eq=False)
class Request:
    """What is asked for each part."""

    wish: Wish
    kind: type[Id]
    """Type of the items in the result."""
    empty: Empty


class Answerer:
    """A model or an engine that answers parts; the ranking of several can overlap."""

    def __init__(self, served: Served, request: Request) -> None:
        """Start a thread per worker of the ranker."""
        self._served, self._request = served, request
        self._batches = Batches(served.ranker)

    def start(self, batch: Batch) -> Callable[[], tuple[pl.DataFrame, Counts]]:
        """Begin to rank a part; the returned function waits, and gives the result and its counts.

        It raises ``UsageError`` if a history is empty, and that is an error.
        """
        histories, unknown = Histories.known(batch.rows, batch.lengths)
        answer = self._batches.start(histories, self._request.wish)

        def finish() -> tuple[pl.DataFrame, Counts]:
            frame = self.frame(batch.users, histories, answer())
            empty = int((histories.lengths == 0).sum())
            popular = empty if self._request.empty == "popular" else 0
            counts = (frame.height, popular, empty - popular, int(unknown.sum()))
            return frame, dict(zip(COUNTS, counts, strict=True))

        return finish

    def frame(self, users: pl.Series, histories: Histories, answer: Best) -> pl.DataFrame:
        """The answers for some histories as a table."""
        request = self._request
        return as_frame(
            self._served.catalogue, users, histories.lengths, answer, request.wish, request.kind,
            request.empty,
        )  # fmt: skip

    def close(self) -> None:
        """End the threads, without the calls that have not begun."""
        self._batches.close()
