"""Choose the decoder layers to remove by search on validation users.

By block influence they are chosen in :mod:`slmc.model.layers`.
"""

import logging
from collections.abc import Callable

from slmc.model.layers import skipping
from slmc.model.recommender import SequentialRecommender

SEARCH_USERS = 2048
"""Validation users on which a search ranks each candidate."""

log = logging.getLogger("slmc.prune")


def by_search(
    model: SequentialRecommender, measure: Callable[[], float], keep: int
) -> tuple[tuple[int, ...], list[dict[str, float]]]:
    """Remove one layer at a time, each time the one whose removal leaves the best ranking.

    Args:
        model: Its layers are skipped during the search, not removed.
        measure: Returns the mean validation NDCG of the model in its current state.
        keep: Number of layers to keep.

    Returns:
        The kept layers, in order, and for each removed one its number ``removed`` and the
        ``valid_ndcg`` after its removal.
    """
    remaining = list(range(len(model.layers)))
    removed: list[dict[str, float]] = []
    total = sum(range(keep + 1, len(remaining) + 1))
    done = 0
    while len(remaining) > keep:
        ndcg: dict[int, float] = {}
        for candidate in remaining:
            with skipping(model.layers, [int(one["removed"]) for one in removed] + [candidate]):
                ndcg[candidate] = measure()
            done += 1
            progress = {"task": "prune", "done": done, "total": total, "unit": "models"}
            log.debug("progress", extra={"progress": progress | {"valid_ndcg": ndcg[candidate]}})
        best = max(ndcg, key=lambda i: (ndcg[i], i))  # ties remove the later layer
        remaining.remove(best)
        removed.append({"removed": best, "valid_ndcg": ndcg[best]})
        log.info("prune: without layer %d the validation NDCG is %.4f", best, ndcg[best])
    return tuple(remaining), removed
