"""Remove layers, KV groups and MLP channels from a recommender."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.initialization import no_init_weights

from slmc.compress.prune.sizes import Kept, resize, resized
from slmc.compress.prune.units import ROWS, Units, channels, kv_groups, refusal
from slmc.errors import BrokenRunError, MissingError
from slmc.model.decoders import BUILDING
from slmc.model.layers import skipping
from slmc.model.recommender import SequentialRecommender
from slmc.model.silence import silence_transformers

SAME = 1e-4
"""Largest allowed difference of user vectors between the pruned and the masked model, as a share
of the largest entry; rounding in float32 gives differences of 1e-6."""
FIND: Mapping[str, Callable[[nn.Module, Any], Units]] = {"heads": kv_groups, "ffn": channels}
"""Field of the config -> function that returns the units of a layer."""


def check_cuttable(backbone: PreTrainedModel, field: str) -> None:
    """Check that units of a decoder can be removed, and that its config allows the new shape.

    Args:
        backbone: The decoder, on any device, including the meta device.
        field: ``heads`` or ``ffn``.

    Raises:
        UsageError: The decoder cannot be pruned by this field.
    """
    layers: Any = backbone.layers
    units = [FIND[field](layer, backbone.config) for layer in layers]
    config = copy.deepcopy(backbone.config)
    try:
        resize(config, Kept(tuple(range(len(units))), {field: [(0,)] * len(units)}))
        with silence_transformers(), torch.device("meta"), no_init_weights():
            small: Any = AutoModel.from_config(config)
    except BUILDING:
        raise refusal(field, backbone.config) from None
    for layer, pruned, whole in zip(units, small.layers, layers, strict=True):
        names = {id(module): name for name, module in whole.named_modules()}
        for one in layer.slices:
            shape = list(one.linear.weight.shape)
            shape[one.dim] -= one.index[1:].numel()
            if list(pruned.get_submodule(names[id(one.linear)]).weight.shape) != shape:
                raise refusal(field, backbone.config)


def cut(model: SequentialRecommender, kept: Kept) -> SequentialRecommender:
    """Return a smaller model with the kept weights; ``model`` is unusable afterwards.

    Raises:
        UsageError: The decoder has an unsupported structure.
        MissingError: torch-pruning is not installed.
    """
    pruning = torch_pruning()
    config = resized(model.config, kept)
    for field, layer, keep in _chosen(model, kept):
        units = FIND[field](layer, model.config.backbone_config)
        removed = [i for i in range(len(units)) if i not in set(keep)]
        for one in units.slices:
            remove = (
                pruning.prune_linear_out_channels
                if one.dim == ROWS
                else pruning.prune_linear_in_channels
            )
            remove(one.linear, one.index[removed].flatten().tolist())
    model.backbone.layers = nn.ModuleList(model.layers[i] for i in kept.layers)
    small = SequentialRecommender(config)
    small.load_state_dict(model.state_dict())
    torch.nn.Module.to(small, model.device)
    return small.eval()


@contextmanager
def masked(model: SequentialRecommender, kept: Kept) -> Iterator[None]:
    """Make the full model compute what the pruned one will: removed units contribute nothing."""
    skipped = [i for i in range(len(model.layers)) if i not in kept.layers]
    with ExitStack() as stack:
        stack.enter_context(skipping(model.layers, skipped))
        for field, layer, keep in _chosen(model, kept):
            output = FIND[field](layer, model.config.backbone_config).output
            mask = torch.zeros(output.linear.in_features, device=model.device)
            mask[output.index[list(keep)].flatten()] = 1
            handle = output.linear.register_forward_pre_hook(_times(mask))
            stack.callback(handle.remove)
        yield


def check_same(small: Tensor, expected: Tensor, kind: str) -> None:
    """Raise ``BrokenRunError`` unless the pruned model returns the vectors of the masked one."""
    off = (small - expected).abs().max() / expected.abs().max()
    if not off <= SAME:
        raise BrokenRunError(
            f"prune: the pruned {kind} differs from the masked one by {off:.1e} of its largest "
            "value.",
            f"This is a bug in slmc with the model type {kind}: please report it with the recipe.",
        )


def torch_pruning() -> ModuleType:
    """Import the library of the extra ``prune``; raises :class:`MissingError` if it is missing."""
    try:
        import torch_pruning as library
    except ImportError as error:
        raise MissingError(
            f"torch_pruning cannot be imported ({error}).",
            "Install it with `pip install 'slmc[prune]'`.",
        ) from None
    return library


def _chosen(
    model: SequentialRecommender, kept: Kept
) -> Iterator[tuple[str, nn.Module, tuple[int, ...]]]:
    """Yield field, layer and kept units for every kept layer."""
    for field, by_layer in kept.units.items():
        for number, keep in zip(kept.layers, by_layer, strict=True):
            yield field, model.layers[number], keep


def _times(mask: Tensor) -> Callable[[nn.Module, Any], tuple[Tensor]]:
    return lambda _, inputs: (inputs[0] * mask,)
