"""An open engine, and the best items for a batch of requests. Runs in worker threads.

Letters: V items, k returned items.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from slmc import artefact as artefacts
from slmc.artefact import Artefact
from slmc.errors import ArtefactError
from slmc.export.runtime.engine import SERVING
from slmc.export.runtime.engine import Engine as Session
from slmc.server.requests import Ask, RequestError
from slmc.serving.answers import popular
from slmc.serving.catalogue import Catalogue
from slmc.serving.histories import Histories
from slmc.serving.opening import served_at
from slmc.serving.ranking import Best, EngineRanker, Mask, Wish, rank

K = 10
"""Items of an answer, if the request does not say."""
LONG = 256
"""Longer histories are computed alone, so that others do not wait for them."""


@dataclass(frozen=True)
class Answered:
    """The content of an answer."""

    items: list[dict[str, Any]]
    unknown: list[str | int]
    by: str


class Opened:
    """An engine that has answered a warm-up call."""

    def __init__(self, sealed: Artefact, calls: int) -> None:
        """Open a session on a sealed engine, for a number of calls at a time."""
        self.artefact, self.loaded = sealed, datetime.now(UTC)
        self.session = Session(sealed.path, threads=1)
        self.ranker = EngineRanker(self.session, calls)
        self.about = self.session.description
        self.catalogue = Catalogue.open(sealed.path, self.about.num_items, of_engine=True)

    @classmethod
    def open(cls, path: Path, calls: int) -> Self:
        """Open the engine at a path, or the last one of the run there, and warm it up.

        Raises:
            ArtefactError: There is no engine, or it is broken.
            MissingError: onnxruntime is missing.
        """
        sealed = served_at(path)
        if sealed.manifest.kind != "engine":
            raise ArtefactError(
                f"{path} is {artefacts.WITH_ARTICLE[sealed.manifest.kind]}, not an engine.",
                "Export it with `slmc export`, and name the engine or its run.",
            )
        opened = cls(sealed, calls)
        opened.warm_up()
        return opened

    @property
    def version(self) -> str:
        """The first digits of the digest."""
        return self.artefact.digest[:12]

    @cached_property
    def size_mb(self) -> float:
        """Size in 10^6 bytes of the files that serving needs."""
        return artefacts.size_mb(self.artefact, SERVING)

    def warm_up(self) -> None:
        """Answer a history and an empty one, with and without a mask, as requests do.

        Raises:
            ArtefactError: The engine cannot, or its scores are no numbers.
        """
        self.catalogue.has_kind(int)
        item = self.catalogue.items[0]
        asks = [Ask(history=[item], k=1), Ask(history=[])]
        masked = Ask(history=[item], allow=[item], exclude_seen=False)
        for answered in [*answers(self, asks), *answers(self, [masked])]:
            if isinstance(answered, RequestError):
                raise answered
            if not all(np.isfinite(one["score"]) for one in answered.items):
                raise ArtefactError(
                    f"{self.artefact.path}: the scores of its first item are no numbers.",
                    "Run `slmc export` again.",
                )

    def number(self, k: int | None) -> int:
        """The number of items of an answer; raises :class:`RequestError` if it is out of range."""
        top, items = self.about.top_k, self.about.num_items
        if k is None:
            return min(K, top, items)
        if k < 1 or k > top < items:
            raise RequestError(400, f"k: {k} is out of range; this engine returns 1 to {top}")
        return min(k, items)

    def mask(self, ask: Ask) -> Mask | None:
        """Which rows may be returned, ``[V + 1]``; None if all may. Unknown ids are skipped."""
        if ask.allow is None and not ask.deny:
            return None
        row_of = self.catalogue.row_of
        mask = np.full(len(self.catalogue) + 1, ask.allow is None)
        for ids, value in ((ask.allow or (), True), (ask.deny or (), False)):
            mask[[row_of[str(one)] for one in ids if str(one) in row_of]] = value
        mask[0] = False
        return mask


def key_of(ask: Ask) -> tuple[Any, ...]:
    """Requests with equal keys can share a call of the engine."""
    ids = [None if one is None else tuple(map(str, one)) for one in (ask.allow, ask.deny)]
    return ("recommend", ask.exclude_seen, *ids, len(ask.history) > LONG)


def answers(opened: Opened, asks: Sequence[Ask]) -> list[Answered | RequestError]:
    """Answer requests of one key; an error belongs to its own request only."""
    allowed = opened.mask(asks[0])
    row_of = opened.catalogue.row_of
    rows = [[row_of[i] for i in map(str, ask.history) if i in row_of] for ask in asks]
    numbers: list[int | RequestError] = []
    for ask in asks:
        try:
            numbers.append(opened.number(ask.k))
        except RequestError as error:
            numbers.append(error)
    most = max((k for k in numbers if isinstance(k, int)), default=1)
    wish = Wish(most, asks[0].exclude_seen, allowed)
    best = _best(opened, rows, wish)
    return [
        number if isinstance(number, RequestError) else _answered(opened, ask, row, number, one)
        for ask, row, number, one in zip(asks, rows, numbers, best, strict=True)
    ]


def _best(opened: Opened, rows: list[list[int]], wish: Wish) -> list[Best]:
    """Rows and scores of the best items for each history."""
    best: list[Best] = [(np.zeros(0, np.int64), np.zeros(0, np.float32))] * len(rows)
    if wish.allowed is not None and not wish.allowed.any():
        return best
    histories = Histories.of(rows)
    filled = np.flatnonzero(histories.lengths)
    for group in histories.by_length(filled, opened.ranker.batch):
        items, scores = rank(opened.ranker, histories, group, wish)
        for place, index in enumerate(group.tolist()):
            kept = items[place] > 0
            best[index] = items[place][kept], scores[place][kept]
    if filled.size < len(rows):
        most_popular = popular(opened.catalogue, wish)
        best = [one if row else most_popular for one, row in zip(best, rows, strict=True)]
    return best


def _answered(opened: Opened, ask: Ask, rows: list[int], k: int, best: Best) -> Answered:
    catalogue, places = opened.catalogue, best[0][:k]
    whole = bool(ask.history) and all(isinstance(one, int) for one in ask.history)
    ids = catalogue.ids(places, int if whole and catalogue.has_kind(int) else str).to_list()
    items = [
        {"item": item, "title": catalogue.titles[row - 1], "score": score}
        for item, row, score in zip(ids, places.tolist(), best[1][:k].tolist(), strict=True)
    ]
    unknown = {str(one): one for one in ask.history if str(one) not in catalogue.row_of}
    return Answered(items, list(unknown.values()), "model" if rows else "popular")
