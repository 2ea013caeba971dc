"""What a decoder's config says of its shape, and what it says when parts are gone."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from slmc.compress.config import PruneConfig
from slmc.errors import UsageError
from slmc.model.recommender import RecommenderConfig

PER_LAYER = ("layer_types", "no_rope_layers", "mlp_layer_types")
"""Entries of decoder configs that hold one value for each layer."""

log = logging.getLogger("slmc.prune")


@dataclass(frozen=True)
class Sizes:
    """What a decoder's config says of its shape; the same in all layers."""

    layers: int
    kv_groups: int
    heads: int
    channels: int

    @classmethod
    def of(cls, config: Any) -> "Sizes":
        """Those of a decoder's config."""
        heads = config.num_attention_heads
        groups = getattr(config, "num_key_value_heads", None) or heads
        return cls(config.num_hidden_layers, groups, heads, config.intermediate_size)


@dataclass(frozen=True)
class Kept:
    """What stays. The units are listed for each layer that stays, in its order."""

    layers: tuple[int, ...]
    units: Mapping[str, Sequence[tuple[int, ...]]]
    """Field of the config, ``heads`` or ``ffn`` -> the units of each layer; a field is missing
    where all stay."""


def resized(config: RecommenderConfig, kept: Kept) -> RecommenderConfig:
    """The config of what stays.

    Raises:
        StrictDataclassError: The decoder's config class refuses the shape.
    """
    small = RecommenderConfig.from_dict(config.to_dict())
    resize(small.backbone_config, kept)
    return RecommenderConfig.from_dict(small.to_dict())


def resize(decoder: Any, kept: Kept) -> None:
    """Give a decoder's config the shape of what stays, in place; raises what its class raises."""
    before = Sizes.of(decoder)
    decoder.num_hidden_layers = len(kept.layers)
    for name in PER_LAYER:
        if getattr(decoder, name, None):
            setattr(decoder, name, [getattr(decoder, name)[i] for i in kept.layers])
    if "heads" in kept.units:
        groups = len(kept.units["heads"][0])
        # Without it a config takes hidden_size / heads, which no longer is the width of a head.
        width = getattr(decoder, "head_dim", None)
        decoder.head_dim = width or decoder.hidden_size // before.heads
        decoder.num_key_value_heads = groups
        decoder.num_attention_heads = groups * (before.heads // before.kv_groups)
    if "ffn" in kept.units:
        decoder.intermediate_size = len(kept.units["ffn"][0])


def takes_groups(config: RecommenderConfig, groups: int) -> bool:
    """Whether the decoder's config class lets the shape have this many kv groups.

    Llama's, for one, wants the query heads to divide the hidden size, whatever their width.
    """
    layers = tuple(range(config.backbone_config.num_hidden_layers))
    try:
        resized(config, Kept(layers, {"heads": [tuple(range(groups))] * len(layers)}))
    except StrictDataclassError:
        return False
    return True


def wanted(config: PruneConfig, model: RecommenderConfig) -> Sizes:
    """The sizes that the shares come to.

    The kv groups are rounded to the nearest number, then up to one that the decoder's config
    class takes; the channels to the nearest multiple of ``round_to``. Both are said where
    they keep other than what was asked, or all.

    Raises:
        UsageError: More layers than there are, or no head or channel at all, would be kept.
    """
    has = Sizes.of(model.backbone_config)
    layers = config.layers or has.layers
    if layers > has.layers:
        raise UsageError(
            f"layers: {layers} are to be kept, but the model has {has.layers}.",
            f"Ask for at most {has.layers}.",
        )
    groups = _groups(config.heads, has, model) if config.heads is not None else has.kv_groups
    kept = _channels(config.ffn, has, config.round_to) if config.ffn is not None else has.channels
    if config.layers == has.layers:
        log.warning("prune: layers: %d keeps all layers; nothing is saved by it", layers)
    if config.heads is not None and groups == has.kv_groups:
        log.warning(
            "prune: heads: %g keeps all %d kv groups; nothing is saved by it", config.heads, groups
        )
    if config.ffn is not None and kept == has.channels:
        log.warning(
            "prune: ffn: %g keeps all %d channels, rounded to a multiple of %d; nothing is saved "
            "by it",
            config.ffn,
            kept,
            config.round_to,
        )
    return Sizes(layers, groups, groups * (has.heads // has.kv_groups), kept)


def _groups(share: float, has: Sizes, model: RecommenderConfig) -> int:
    asked = _nearest(share * has.kv_groups)
    if not asked:
        raise UsageError(
            f"heads: {share:g} of {has.kv_groups} kv groups is none.",
            f"Ask for at least {1 / has.kv_groups:.2g}.",
        )
    groups = next(n for n in range(asked, has.kv_groups + 1) if takes_groups(model, n))
    if groups != asked:
        log.warning(
            "prune: %d kv groups are kept instead of %d: a config of %s takes no such number of "
            "heads at a hidden size of %d",
            groups,
            asked,
            model.backbone_config.model_type,
            model.backbone_config.hidden_size,
        )
    return groups


def _channels(share: float, has: Sizes, round_to: int) -> int:
    asked = share * has.channels
    if not _nearest(asked):
        raise UsageError(
            f"ffn: {share:g} of {has.channels} channels is none.",
            f"Ask for at least {1 / has.channels:.2g}.",
        )
    below = max(round_to, int(asked // round_to) * round_to)
    above = min(has.channels, below + round_to)
    return min(min(below, has.channels), above, key=lambda n: (abs(n - asked), -n))


def _nearest(value: float) -> int:
    """The nearest whole number, halves up."""
    return math.floor(value + 0.5)
