"""Recommend items for one history, with the original ids of the log. No torch."""

import logging
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import numpy as np

from slmc.artefact import Artefact
from slmc.errors import ArtefactError, UsageError
from slmc.export.runtime.engine import Engine
from slmc.export.vocabulary import FILE, Vocabulary, popularity

log = logging.getLogger("slmc.recommend")


@dataclass(frozen=True)
class Recommendation:
    """A recommended item."""

    row: int
    item: str
    """Original id."""
    title: str | None
    score: float
    """The engine's score; the item's number of training interactions for a user without a history.
    """


def recommend(
    engine: Engine | Artefact | Path | str,
    ids: Sequence[str | int],
    k: int = 10,
    exclude_seen: bool = False,
) -> list[Recommendation]:
    """The k best items for a history; the most popular ones if it has no known item.

    Args:
        engine: A running engine, or its artefact or path.
        ids: Original ids, oldest first, as text or whole numbers. Ids that are not in the
            vocabulary are skipped with a warning. If none is left, the items with the most
            interactions in the training part are returned.
        k: Number of items, at most the engine's ``top_k``.
        exclude_seen: Leave out the items of ``ids``. Fewer than k items may remain.

    Raises:
        UsageError: k is out of range, or an argument has a wrong type.
        ArtefactError: ``engine`` is not an engine, or it is broken.
    """
    engine, ids, k = _engine(engine), _texts(ids), _whole(k)
    vocabulary = _vocabulary(engine)
    top_k = engine.description.top_k
    if k < 1 or k > top_k < engine.description.num_items:
        raise UsageError(
            f"k: {k} items were requested; the engine returns 1 to {top_k}.",
            "Choose a number in this range, or export with a larger --top-k.",
        )
    rows = _rows(ids, vocabulary)
    if not rows.size:
        return _popular(engine, vocabulary, k)
    allowed = None
    if exclude_seen:  # also items that are too old for the model to read
        allowed = np.ones((1, engine.description.num_items + 1), dtype=bool)
        allowed[:, rows] = False
    items, scores = engine.top([rows], allowed=allowed)
    recommendations = [
        Recommendation(row, vocabulary.items[row - 1], vocabulary.titles[row - 1], score)
        for row, score in zip(items[0].tolist(), scores[0].tolist(), strict=True)
        if score > -np.inf
    ]
    if exclude_seen and len(recommendations) < k:
        log.warning(
            "only %d of %d items remain without those of the history", len(recommendations), k
        )
    return recommendations[:k]


def _engine(engine: object) -> Engine:
    if isinstance(engine, Engine):
        return engine
    if isinstance(engine, str | os.PathLike):
        return Engine.open(Path(engine))
    if isinstance(engine, Artefact):
        return Engine.open(engine)
    raise UsageError(
        f"engine: expected a path or an engine, not {type(engine).__name__}.",
        'Name the folder of an engine, as in recommend("engine", ["50", "181"]).',
    )


def _texts(ids: object) -> list[str]:
    """The ids as text, as the vocabulary stores them."""
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise UsageError(
            f"ids: expected a list of ids, not {ids!r}.", 'Pass a list such as ["50", "181"].'
        )
    listed = list(ids)
    for one in listed:
        # Floats are refused: 50.0 could stand for "50" or "50.0".
        if isinstance(one, bool) or not isinstance(one, str | Integral):
            raise UsageError(
                f"ids: {one!r} has type {type(one).__name__}.",
                "Pass ids as text, as in the log, or as whole numbers.",
            )
    return [str(one) for one in listed]


def _whole(k: object) -> int:
    if isinstance(k, bool) or not isinstance(k, Integral):
        raise UsageError(f"k: expected a whole number, not {k!r}.", "Pass a number such as 10.")
    return int(k)


def _vocabulary(engine: Engine) -> Vocabulary:
    file = engine.folder / FILE
    vocabulary = Vocabulary.open(file)
    if len(vocabulary.items) != engine.description.num_items:
        raise ArtefactError(
            f"{file} names {len(vocabulary.items)} items, the engine ranks "
            f"{engine.description.num_items}.",
            "Run `slmc export` again.",
        )
    return vocabulary


def _rows(ids: Sequence[str], vocabulary: Vocabulary) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """Rows of the known ids; unknown ids are skipped."""
    unknown = [item for item in ids if item not in vocabulary.row_of]
    if len(unknown) == len(ids):
        log.warning(
            "none of the ids is in the vocabulary: %s; these are the most popular items. "
            "Ids of the log are, for example, %s",
            ", ".join(unknown) or "the list is empty",
            ", ".join(vocabulary.items[:3]),
        )
    elif unknown:
        log.warning("skipped ids that are not in the vocabulary: %s", ", ".join(unknown))
    rows = [vocabulary.row_of[item] for item in ids if item in vocabulary.row_of]
    return np.array(rows, dtype=np.int32)


def _popular(engine: Engine, vocabulary: Vocabulary, k: int) -> list[Recommendation]:
    """The k most popular items, for a user without a history."""
    best = popularity(engine.folder / "items.parquet").head(k)
    return [
        Recommendation(row, vocabulary.items[row - 1], vocabulary.titles[row - 1], float(count))
        for row, count in best.select("row", "count").iter_rows()
    ]


class _Module(ModuleType):
    """This module; raises a clear error if someone calls it instead of its function."""

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        raise UsageError(
            "slmc.recommend is a module and cannot be called.",
            "Call its function: `from slmc.recommend import recommend`.",
        )


sys.modules[__name__].__class__ = _Module
