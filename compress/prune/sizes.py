"""The shape of a decoder by its config, before and after pruning."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from slmc.compress.config import PruneConfig
from slmc.errors import UsageError
from slmc.model.layers import keep_in_config
from slmc.model.recommender import RecommenderConfig

log = logging.getLogger("slmc.prune")


@dataclass(frozen=True)
class Sizes:
    """The shape of a decoder; the same in all layers."""

    layers: int
    kv_groups: int
    heads: int
    channels: int

    @classmethod
    def of(cls, config: Any) -> "Sizes":
        """Read the sizes from a decoder's config."""
        heads = config.num_attention_heads
        groups = getattr(config, "num_key_value_heads", None) or heads
        return cls(config.num_hidden_layers, groups, heads, config.intermediate_size)


@dataclass(frozen=True)
class Kept:
    """The layers and units to keep; units are listed per kept layer, in order."""

    layers: tuple[int, ...]
    units: Mapping[str, Sequence[tuple[int, ...]]]
    """Field of the config, ``heads`` or ``ffn`` -> kept units of each layer; without the field, all
    units are kept."""


def resized(config: RecommenderConfig, kept: Kept) -> RecommenderConfig:
    """Return the config of the pruned model.

    Raises:
        StrictDataclassError: The decoder's config class does not allow the shape.
    """
    small = RecommenderConfig.from_dict(config.to_dict())
    resize(small.backbone_config, kept)
    return RecommenderConfig.from_dict(small.to_dict())


def resize(decoder: Any, kept: Kept) -> None:
    """Change a decoder's config to the pruned shape, in place; raises the errors of its class."""
    before = Sizes.of(decoder)
    keep_in_config(decoder, kept.layers)
    if "heads" in kept.units:
        groups = len(kept.units["heads"][0])
        # Without head_dim, the config would use hidden_size / heads, which is wrong after pruning.
        width = getattr(decoder, "head_dim", None)
        decoder.head_dim = width or decoder.hidden_size // before.heads
        decoder.num_key_value_heads = groups
        decoder.num_attention_heads = groups * (before.heads // before.kv_groups)
    if "ffn" in kept.units:
        decoder.intermediate_size = len(kept.units["ffn"][0])


def takes_groups(config: RecommenderConfig, groups: int) -> bool:
    """Return whether the decoder's config class allows this number of KV groups.

    Llama, for example, requires the number of query heads to divide the hidden size.
    """
    layers = tuple(range(config.backbone_config.num_hidden_layers))
    try:
        resized(config, Kept(layers, {"heads": [tuple(range(groups))] * len(layers)}))
    except StrictDataclassError:
        return False
    return True


def target_sizes(config: PruneConfig, model: RecommenderConfig) -> Sizes:
    """Return the target sizes of the config's shares.

    KV groups are rounded to the nearest number, then up to one that the decoder's config class
    allows; channels are rounded to the nearest multiple of ``round_to``. A warning is logged if
    this differs from the requested number, or keeps all.

    Raises:
        UsageError: More layers than the model has, or no head or channel, would be kept.
    """
    now = Sizes.of(model.backbone_config)
    layers = config.layers or now.layers
    if layers > now.layers:
        raise UsageError(
            f"layers: {layers} is more than the {now.layers} layers of the model.",
            f"Set at most {now.layers}.",
        )
    groups = _groups(config.heads, now, model) if config.heads is not None else now.kv_groups
    kept = _channels(config.ffn, now, config.round_to) if config.ffn is not None else now.channels
    if config.layers == now.layers:
        log.warning("prune: layers: %d keeps all layers, so nothing is removed", layers)
    if config.heads is not None and groups == now.kv_groups:
        log.warning(
            "prune: heads: %g keeps all %d KV groups, so nothing is removed", config.heads, groups
        )
    if config.ffn is not None and kept == now.channels:
        log.warning(
            "prune: ffn: %g keeps all %d channels, rounded to a multiple of %d, so nothing is "
            "removed",
            config.ffn,
            kept,
            config.round_to,
        )
    return Sizes(layers, groups, groups * (now.heads // now.kv_groups), kept)


def _groups(share: float, now: Sizes, model: RecommenderConfig) -> int:
    requested = _nearest(share * now.kv_groups)
    if not requested:
        raise UsageError(
            f"heads: {share:g} of {now.kv_groups} KV groups keeps none.",
            f"Set at least {1 / now.kv_groups:.2g}.",
        )
    groups = next(n for n in range(requested, now.kv_groups + 1) if takes_groups(model, n))
    if groups != requested:
        log.warning(
            "prune: keeps %d KV groups instead of %d: a config of %s does not allow that number of "
            "heads with a hidden size of %d",
            groups,
            requested,
            model.backbone_config.model_type,
            model.backbone_config.hidden_size,
        )
    return groups


def _channels(share: float, now: Sizes, round_to: int) -> int:
    requested = share * now.channels
    if not _nearest(requested):
        raise UsageError(
            f"ffn: {share:g} of {now.channels} channels keeps none.",
            f"Set at least {1 / now.channels:.2g}.",
        )
    below = max(round_to, int(requested // round_to) * round_to)
    above = min(now.channels, below + round_to)
    return min(min(below, now.channels), above, key=lambda n: (abs(n - requested), -n))


def _nearest(value: float) -> int:
    """Round to the nearest integer, halves up."""
    return math.floor(value + 0.5)
