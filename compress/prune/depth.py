"""Which decoder layers can go: by how little they change, or by what validation says."""

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
"""Validation users that a search measures each candidate on."""

log = logging.getLogger("slmc.prune")


@torch.no_grad()
def block_influence(model: SequentialRecommender, histories: Histories) -> list[float]:
    r"""How much each layer turns the hidden state: ShortGPT's block influence.

    :math:`BI_i = 1 - E_t \cos(X_{i,t}, X_{i+1,t})` over all tokens of the histories (Men et al.
    2024, arXiv 2403.03853, equation 1): 0 for a layer that changes no direction.
    """
    sums = torch.zeros(len(model.layers), dtype=torch.float64)

    def measured(number: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            sums[number] += F.cosine_similarity(before.double(), after.double(), dim=-1).sum().cpu()

        return hook

    handles = [
        layer.register_forward_hook(measured(number), with_kwargs=True)
        for number, layer in enumerate(model.layers)
    ]
    try:
        tokens = forward(model, histories)
    finally:
        for handle in handles:
            handle.remove()
    return [float(value) for value in 1 - sums / tokens]


def by_influence(influence: Sequence[float], keep: int) -> tuple[int, ...]:
    """The ``keep`` layers of the highest influence, in order; of two alike the first stays."""
    ranked = sorted(range(len(influence)), key=lambda i: (-influence[i], i))
    return tuple(sorted(ranked[:keep]))


def by_search(
    model: SequentialRecommender, measure: Callable[[], float], keep: int
) -> tuple[tuple[int, ...], list[dict[str, float]]]:
    """Drop one layer after the other, each time that without which the model ranks best.

    Args:
        model: Its layers are passed over while they are measured, and stay in it.
        measure: Mean NDCG of validation users, of the model as it is.
        keep: Layers to keep.

    Returns:
        The layers that are kept, in order, and for each that went its number ``removed`` and
        the ``valid_ndcg`` after that.
    """
    left = list(range(len(model.layers)))
    gone: list[dict[str, float]] = []
    total = sum(range(keep + 1, len(left) + 1))
    done = 0
    while len(left) > keep:
        found: dict[int, float] = {}
        for candidate in left:
            with skipping(model.layers, [int(one["removed"]) for one in gone] + [candidate]):
                found[candidate] = measure()
            done += 1
            progress = {"task": "prune", "done": done, "total": total, "unit": "models"}
            log.debug("progress", extra={"progress": progress | {"valid_ndcg": found[candidate]}})
        best = max(found, key=lambda i: (found[i], i))  # of two alike the later layer goes
        left.remove(best)
        gone.append({"removed": best, "valid_ndcg": found[best]})
        log.info("prune: without layer %d the validation NDCG is %.4f", best, found[best])
    return tuple(left), gone


@contextmanager
def skipping(layers: nn.ModuleList, numbers: Sequence[int]) -> Iterator[None]:
    """Let hidden states pass by these layers, which are not computed."""

    def passed(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states

    for number in numbers:
        layers[number].forward = passed
    try:
        yield
    finally:
        for number in numbers:
            del layers[number].forward
