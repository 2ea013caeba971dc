"""Cut layers, kv groups and MLP channels out of a recommender: a plain smaller one is left."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.initialization import no_init_weights

from slmc.compress.prune.depth import skipping
from slmc.compress.prune.sizes import Kept, resize, resized
from slmc.compress.prune.units import ROWS, Units, channels, kv_groups, refusal
from slmc.errors import BrokenRunError, MissingError
from slmc.model.decoders import BUILDING
from slmc.model.quieting import quiet
from slmc.model.recommender import SequentialRecommender

SAME = 1e-4
"""Largest difference of user vectors, as a share of the largest entry, between the cut model
and the masked one: float32 sums of fewer terms in another order differ by 1e-6."""
FIND: Mapping[str, Callable[[nn.Module, Any], Units]] = {"heads": kv_groups, "ffn": channels}
"""Field of the config -> the units that it takes a share of."""


def check_cuttable(backbone: PreTrainedModel, field: str) -> None:
    """See that a decoder can lose units, and that its config can say the shape that is left.

    Args:
        backbone: The decoder, on any device, the meta device too.
        field: ``heads`` or ``ffn``.

    Raises:
        UsageError: It cannot.
    """
    layers: Any = backbone.layers
    units = [FIND[field](layer, backbone.config) for layer in layers]
    config = copy.deepcopy(backbone.config)
    try:
        resize(config, Kept(tuple(range(len(units))), {field: [(0,)] * len(units)}))
        with quiet(), torch.device("meta"), no_init_weights():
            small: Any = AutoModel.from_config(config)
    except BUILDING:
        raise refusal(field, backbone.config) from None
    for layer, left, whole in zip(units, small.layers, layers, strict=True):
        names = {id(module): name for name, module in whole.named_modules()}
        for one in layer.slices:
            shape = list(one.linear.weight.shape)
            shape[one.dim] -= one.index[1:].numel()
            if list(left.get_submodule(names[id(one.linear)]).weight.shape) != shape:
                raise refusal(field, backbone.config)


def cut(model: SequentialRecommender, kept: Kept) -> SequentialRecommender:
    """A smaller model with the weights that stay; ``model`` itself is used up.

    Raises:
        UsageError: The decoder has another form than what is to be cut.
        MissingError: torch-pruning is not installed.
    """
    pruning = torch_pruning()
    config = resized(model.config, kept)
    for field, layer, stays in _chosen(model, kept):
        units = FIND[field](layer, model.config.backbone_config)
        gone = [i for i in range(len(units)) if i not in set(stays)]
        for one in units.slices:
            remove = (
                pruning.prune_linear_out_channels
                if one.dim == ROWS
                else pruning.prune_linear_in_channels
            )
            remove(one.linear, one.index[gone].flatten().tolist())
    model.backbone.layers = nn.ModuleList(model.layers[i] for i in kept.layers)
    small = SequentialRecommender(config)
    small.load_state_dict(model.state_dict())
    torch.nn.Module.to(small, model.device)
    return small.eval()


@contextmanager
def masked(model: SequentialRecommender, kept: Kept) -> Iterator[None]:
    """Let the full model compute what the cut one will: what goes adds nothing."""
    gone = [i for i in range(len(model.layers)) if i not in kept.layers]
    with ExitStack() as stack:
        stack.enter_context(skipping(model.layers, gone))
        for field, layer, stays in _chosen(model, kept):
            output = FIND[field](layer, model.config.backbone_config).output
            mask = torch.zeros(output.linear.in_features, device=model.device)
            mask[output.index[list(stays)].flatten()] = 1
            handle = output.linear.register_forward_pre_hook(_times(mask))
            stack.callback(handle.remove)
        yield


def check_same(small: Tensor, expected: Tensor, kind: str) -> None:
    """Raise ``BrokenRunError`` unless the cut model gives the vectors of the masked one."""
    off = (small - expected).abs().max() / expected.abs().max()
    if not off <= SAME:
        raise BrokenRunError(
            f"prune: the smaller {kind} differs from the masked one by {off:.1e} of its largest "
            "score.",
            f"This is a defect of slmc with the model type {kind}: report it with the recipe.",
        )


def torch_pruning() -> ModuleType:
    """The library of the extra ``prune``; raises :class:`MissingError` if it is not there."""
    try:
        import torch_pruning as found
    except ImportError as error:
        raise MissingError(
            f"torch_pruning cannot be imported ({error}).",
            "Install it with `pip install 'slmc[prune]'`.",
        ) from None
    return found


def _chosen(
    model: SequentialRecommender, kept: Kept
) -> Iterator[tuple[str, nn.Module, tuple[int, ...]]]:
    """Field, layer and the units that stay, for every layer that stays."""
    for field, by_layer in kept.units.items():
        for number, stays in zip(kept.layers, by_layer, strict=True):
            yield field, model.layers[number], stays


def _times(mask: Tensor) -> Callable[[nn.Module, Any], tuple[Tensor]]:
    return lambda _, inputs: (inputs[0] * mask,)
