"""Recommend items for one history with an engine: a function of its own for scripts. No torch.

:func:`slmc.load` opens models too, and keeps them open for many histories.
"""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from slmc import artefact as artefacts
from slmc.artefact import Artefact
from slmc.errors import UsageError
from slmc.export.runtime.engine import Engine
from slmc.serving.ranking import EngineRanker
from slmc.serving.recommender import Engine as Served
from slmc.serving.recommender import Recommendation

__all__ = ["Recommendation", "recommend"]

log = logging.getLogger("slmc.recommend")


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
    served = _served(engine)
    best = served.recommend(ids, k, exclude_seen)
    if exclude_seen and len(best) < k:
        log.warning("only %d of %d items remain without those of the history", len(best), k)
    return list(best)


def _served(engine: object) -> Served:
    if isinstance(engine, Engine):
        return Served(artefacts.peek(engine.folder), EngineRanker(engine))
    if isinstance(engine, str | os.PathLike):
        engine = artefacts.load(Path(engine), kind="engine")
    if isinstance(engine, Artefact):
        return Served(engine, EngineRanker(engine.path))
    raise UsageError(
        f"engine: expected a path or an engine, not {type(engine).__name__}.",
        'Name the folder of an engine, as in recommend("engine", ["50", "181"]).',
    )


class _Module(ModuleType):
    """This module; raises a clear error if someone calls it instead of its function."""

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        raise UsageError(
            "slmc.recommend is a module and cannot be called.",
            "Call its function: `from slmc.recommend import recommend`.",
        )


sys.modules[__name__].__class__ = _Module
