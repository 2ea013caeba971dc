"""Choose the decoder layers to remove: by block influence, or by search on validation users."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slmc.compress.prune.importance import Histories, forward
from slmc.model.recommender import SequentialRecommender

SEARCH_USERS = 2048
"""Validation users on which a search ranks each candidate."""

log = logging.getLogger("slmc.prune")


@torch.no_grad()
def block_influence(model: SequentialRecommender, histories: Histories) -> list[float]:
    r"""Return the block influence of each layer (ShortGPT).

    :math:`BI_i = 1 - E_t \cos(X_{i,t}, X_{i+1,t})` over all tokens of the histories (Men et al.
    2024, arXiv 2403.03853, equation 1): 0 if a layer does not change the direction of the hidden
    state.
    """
    sums = torch.zeros(len(model.layers), dtype=torch.float64)

    def add_similarity(number: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            sums[number] += F.cosine_similarity(before.double(), after.double(), dim=-1).sum().cpu()

        return hook

    handles = [
        layer.register_forward_hook(add_similarity(number), with_kwargs=True)
        for number, layer in enumerate(model.layers)
    ]
    try:
        tokens = forward(model, histories)
    finally:
        for handle in handles:
            handle.remove()
    return [float(value) for value in 1 - sums / tokens]


def by_influence(influence: Sequence[float], keep: int) -> tuple[int, ...]:
    """Return the ``keep`` layers with the highest influence, in order; ties keep the first."""
    ranked = sorted(range(len(influence)), key=lambda i: (-influence[i], i))
    return tuple(sorted(ranked[:keep]))


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


@contextmanager
def skipping(layers: nn.ModuleList, numbers: Sequence[int]) -> Iterator[None]:
    """Skip these layers: hidden states bypass them unchanged."""

    def bypass(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states

    for number in numbers:
        layers[number].forward = bypass
    try:
        yield
    finally:
        for number in numbers:
            del layers[number].forward
