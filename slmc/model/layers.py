"""Choose decoder layers, skip them, and build models of the chosen ones only.

Layers are numbered from 0. A choice of layers is a tuple of their numbers in ascending order.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.initialization import no_init_weights

from slmc.data.batches import pad_left
from slmc.model.recommender import RecommenderConfig, SequentialRecommender

BATCH = 32
"""Histories that are computed at once where hooks watch the layers."""
PER_LAYER = ("layer_types", "no_rope_layers", "mlp_layer_types")
"""Entries of decoder configs that hold one value per layer."""
NUMBER = re.compile(r"(?:^|\.)layers\.(\d+)\.")

Histories = Sequence[NDArray[np.int32]]
Layers = tuple[int, ...]
Value = TypeVar("Value")


def first(keep: int) -> Layers:
    """Return the first ``keep`` layers."""
    return tuple(range(keep))


def spaced(depth: int, keep: int) -> Layers:
    """Return ``keep`` of ``depth`` layers at even distances, the first and the last among them.

    One layer is the first one.
    """
    if keep == 1:
        return (0,)
    return tuple((2 * i * (depth - 1) + keep - 1) // (2 * (keep - 1)) for i in range(keep))


def by_influence(influence: Sequence[float], keep: int) -> Layers:
    """Return the ``keep`` layers with the highest influence, in order; ties keep the first."""
    ranked = sorted(range(len(influence)), key=lambda i: (-influence[i], i))
    return tuple(sorted(ranked[:keep]))


def without_run(angular: Sequence[Sequence[float]], keep: int) -> Layers:
    """Return the layers without the run of consecutive ones that turns the state least.

    Gromov et al. 2024, arXiv 2403.17887, section 3.1: of all runs of ``n = depth - keep`` layers,
    the one with the smallest angular distance of the states before and after it is removed. Ties
    remove the later run.

    Args:
        angular: ``[depth + 1, depth + 1]`` distances of the states before each layer and after the
            last one.
        keep: Layers that remain.
    """
    depth = len(angular) - 1
    run = depth - keep
    start = min(range(keep + 1), key=lambda i: (angular[i][i + run], -i))
    return tuple(i for i in range(depth) if not start <= i < start + run)


def keep_in_config(decoder: Any, kept: Sequence[int]) -> None:
    """Change a decoder's config to the kept layers, in place; raises the errors of its class."""
    decoder.num_hidden_layers = len(kept)
    for name in PER_LAYER:
        if getattr(decoder, name, None):
            setattr(decoder, name, [getattr(decoder, name)[i] for i in kept])


def renumbered(tensors: Mapping[str, Value], kept: Sequence[int]) -> dict[str, Value]:
    """Return tensors by the names that they have in a model of the kept layers only.

    Args:
        tensors: By their names in the whole model; those of other layers are left out.
        kept: Layers in the order of the new model.
    """
    new = {number: i for i, number in enumerate(kept)}
    renamed = {}
    for name, value in tensors.items():
        match = NUMBER.search(name)
        if match is None:
            renamed[name] = value
        elif int(match[1]) in new:
            begin, end = match.span(1)
            renamed[f"{name[:begin]}{new[int(match[1])]}{name[end:]}"] = value
    return renamed


def with_layers(model: SequentialRecommender, kept: Sequence[int]) -> SequentialRecommender:
    """Return a copy of a recommender that has only the kept layers."""
    config = RecommenderConfig.from_dict(model.config.to_dict())
    keep_in_config(config.backbone_config, kept)
    copy = SequentialRecommender(RecommenderConfig.from_dict(config.to_dict()))
    copy.load_state_dict(renumbered(model.state_dict(), kept))
    return copy


def decoder_with_layers(decoder: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """Return a copy of a decoder, in float32, that has only the kept layers."""
    config = type(decoder.config).from_dict(decoder.config.to_dict())
    keep_in_config(config, kept)
    with no_init_weights():
        copy: PreTrainedModel = AutoModel.from_config(config, dtype=torch.float32)
    copy.load_state_dict(renumbered(decoder.state_dict(), kept))
    return copy.eval()


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


@torch.no_grad()
def forward(model: SequentialRecommender, histories: Histories) -> int:
    """Run the model on histories, so that hooks see its activations; returns the tokens."""
    tokens = 0
    for start in range(0, len(histories), BATCH):
        ids = torch.from_numpy(pad_left(histories[start : start + BATCH])).to(model.device)
        model.user_vectors(ids)
        tokens += int((ids != 0).sum()) + len(ids) * len(model.prompt)
    return tokens
