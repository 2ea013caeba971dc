"""What to take next: original ids of one history in, original ids and titles out. No torch."""

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
from slmc.export.vocabulary import FILE, Vocabulary

log = logging.getLogger("slmc.recommend")


@dataclass(frozen=True)
class Recommendation:
    """An item that the engine puts forward."""

    row: int
    item: str
    """Original id."""
    title: str | None
    score: float


def recommend(
    engine: Engine | Artefact | Path | str,
    ids: Sequence[str | int],
    k: int = 10,
    exclude_seen: bool = False,
) -> list[Recommendation]:
    """The k best items after a history.

    Args:
        engine: A running engine, or where one is.
        ids: Original ids, oldest first; a whole number is the id that is written so. Those that
            the vocabulary lacks are skipped, with a warning that names them.
        k: At most the engine's ``top_k``; all items of a smaller catalogue.
        exclude_seen: Leave out the items of ``ids``. Fewer than k may remain then.

    Raises:
        UsageError: No id is known, k is out of range, or an argument is of another kind.
        ArtefactError: The engine is none, or broken.
    """
    engine, ids, k = _engine(engine), _texts(ids), _whole(k)
    vocabulary = _vocabulary(engine)
    top_k = engine.description.top_k
    if k < 1 or k > top_k < engine.description.num_items:
        raise UsageError(
            f"k: {k} items were asked for, the engine gives 1 to {top_k}.",
            "Ask for a number within, or export with a larger --top-k.",
        )
    rows = _rows(ids, vocabulary)
    allowed = None
    if exclude_seen:  # all of them, those too that are older than the history of the model
        allowed = np.ones((1, engine.description.num_items + 1), dtype=bool)
        allowed[:, rows] = False
    items, scores = engine.top([rows], allowed=allowed)
    found = [
        Recommendation(row, vocabulary.items[row - 1], vocabulary.titles[row - 1], score)
        for row, score in zip(items[0].tolist(), scores[0].tolist(), strict=True)
        if score > -np.inf
    ]
    if exclude_seen and len(found) < k:
        log.warning("%d of %d items are left after those of the history", len(found), k)
    return found[:k]


def _engine(given: object) -> Engine:
    if isinstance(given, Engine):
        return given
    if isinstance(given, str | os.PathLike):
        return Engine.open(Path(given))
    if isinstance(given, Artefact):
        return Engine.open(given)
    raise UsageError(
        f"engine: a path or an engine is needed, not {type(given).__name__}.",
        'Name the folder of an engine, as in recommend("engine", ["50", "181"]).',
    )


def _texts(given: object) -> list[str]:
    """Ids as the vocabulary has them, which are text."""
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise UsageError(
            f"ids: a list of ids is needed, not {given!r}.", 'Give one, as ["50", "181"].'
        )
    ids = list(given)
    for one in ids:
        # A float, a truth value or null is no id: 50.0 may have been any of several.
        if isinstance(one, bool) or not isinstance(one, str | Integral):
            raise UsageError(
                f"ids: {one!r} is of type {type(one).__name__}.",
                "Give ids as text, as the log has them, or as whole numbers.",
            )
    return [str(one) for one in ids]


def _whole(given: object) -> int:
    if isinstance(given, bool) or not isinstance(given, Integral):
        raise UsageError(f"k: a whole number is needed, not {given!r}.", "Give one, as 10.")
    return int(given)


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
    """Rows of the known ids; the policy for unknown ones is ``skip``."""
    unknown = [item for item in ids if item not in vocabulary.row_of]
    if len(unknown) == len(ids):
        example = ", ".join(vocabulary.items[:3])
        raise UsageError(
            f"none of the ids is in the vocabulary: {', '.join(unknown) or 'none was given'}.",
            f"Name items by the ids of the log, for example {example}.",
        )
    if unknown:
        log.warning("skipped, not in the vocabulary: %s", ", ".join(unknown))
    rows = [vocabulary.row_of[item] for item in ids if item in vocabulary.row_of]
    return np.array(rows, dtype=np.int32)


class _Module(ModuleType):
    """This module, which is called like the function that it holds."""

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        raise UsageError(
            "slmc.recommend is a module, and cannot be called.",
            "Call the function in it: `from slmc.recommend import recommend`.",
        )


sys.modules[__name__].__class__ = _Module
