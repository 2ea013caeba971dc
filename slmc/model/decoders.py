"""Which decoders can be a backbone: only attention, with rotary positions, no experts.

The modules are inspected on the meta device, before any weight is read. What they do not show is
checked by :mod:`slmc.model.selfcheck`.
"""

import re
from collections.abc import Iterator
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from slmc.errors import UsageError
from slmc.model.silence import silence_transformers

EMBEDDING = "embed_tokens.weight"
ATTENTION = frozenset({"full_attention", "sliding_attention", "attention"})
"""Kinds of layers (``layer_types`` of a config) whose attention packing computes."""
OTHER_MIXERS = re.compile(
    r"Mamba|Mixer|Conv\d?d?$|ShortConv|Recurrent|RgLru|LinearAttention|Lightning|Delta|Rwkv|LSTM|SSM"
)
"""Modules, other than attention, that mix tokens."""
EXPERTS = re.compile(r"(Experts?|Router|MoE|Moe|MoeBlock|MoELayer|MoA)$")
LENGTH_BOUND = ("dynamic", "longrope")
"""Kinds of rotary positions that change if a sequence is longer than a bound."""
REMEDY = "Name an attention-only decoder such as Llama, Qwen 3, Gemma, Mistral, Phi or SmolLM."
BUILDING = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError,
    NotImplementedError, RuntimeError, StrictDataclassError, TypeError, ValueError,
)  # fmt: skip
"""Errors that transformers raises if it cannot build a model of a config."""


def build_on_meta(config: PreTrainedConfig, label: str) -> PreTrainedModel:
    """Build the decoder of a config without weights, on the meta device.

    Args:
        config: Config of the decoder.
        label: Its name in messages.

    Raises:
        UsageError: transformers cannot build it, or it cannot be a backbone.
    """
    if config.model_type not in MODEL_MAPPING_NAMES:
        raise UsageError(f"{label}: transformers has no decoder {config.model_type}.", REMEDY)
    try:
        with silence_transformers(), torch.device("meta"), no_init_weights():
            model: PreTrainedModel = AutoModel.from_config(config, dtype=torch.float32)
    except BUILDING as error:
        raise UsageError(
            f"{label}: transformers cannot build this {config.model_type} ({one_line(error)}).",
            "Check its config.json or its sizes, and the number of layers.",
        ) from None
    check(model, label)
    return model


def check(model: PreTrainedModel, label: str) -> None:
    """Refuse a decoder of a kind that packed attention does not support.

    Raises:
        UsageError: The decoder is of such a kind.
    """
    kind = model.config.model_type
    check_kinds(model.config, model.config.num_hidden_layers, label)
    _check_mixers(model, f"{label}: {kind}")
    experts = next(_matching(model, EXPERTS, "experts", "block_sparse_moe"), None)
    if experts is not None:
        raise UsageError(
            f"{label}: {kind} is a mixture of experts ({experts}), which is not supported.",
            REMEDY,
        )
    _check_rotary(model, f"{label}: {kind}")


def check_length(config: Any, longest: int, label: str) -> None:
    """Refuse rotary positions that a long history would change for its whole batch.

    Args:
        config: Config of the decoder.
        longest: Tokens of the longest history, with its prompt.
        label: Name of the decoder in messages.

    Raises:
        UsageError: Its positions change at a length that histories exceed.
    """
    ropes = getattr(config, "rope_parameters", None) or {}
    for rope in [ropes, *(part for part in ropes.values() if isinstance(part, dict))]:
        kind = rope.get("rope_type")
        if kind not in LENGTH_BOUND:
            continue
        bound = config.max_position_embeddings
        if kind == "longrope":
            bound = rope.get("original_max_position_embeddings") or bound
        if longest > bound:
            raise UsageError(
                f"{label}: its rotary positions ({kind}) change beyond {bound} tokens, and "
                f"histories have up to {longest}: a long one would change the scores of others.",
                f"Set data.history so that a history with its prompt has at most {bound} tokens, "
                "or name another backbone.",
            )


def drop_final_norm(model: PreTrainedModel) -> None:
    """Let a decoder return the hidden states after its last layer as they are.

    Raises:
        UsageError: It has no norm after the last layer, or several modules that may be it.
    """
    norms = [name for name, _ in model.named_children() if "norm" in name]
    if len(norms) != 1:
        raise UsageError(
            f"{model.config.model_type}: the norm after its last layer is not known "
            f"({', '.join(norms) or 'none'}).",
            "Use a decoder with one final norm, such as Llama, Qwen, Gemma, Mistral or Phi.",
        )
    setattr(model, norms[0], nn.Identity())


def needed_layers(model: PreTrainedModel) -> int:
    """Return how many of the first layers contain one of each kind; at least two."""
    seen: dict[Any, int] = {}
    types = getattr(model.config, "layer_types", None) or ()
    layers = cast(nn.ModuleList, model.layers)
    for i, layer in enumerate(layers):
        parts = tuple(
            (name, type(part).__name__, *(getattr(part, at, None) for at in PER_LAYER))
            for name, part in layer.named_modules()
        )
        seen.setdefault((types[i] if i < len(types) else None, parts), i)
    return min(len(layers), max(2, 1 + max(seen.values())))


PER_LAYER = ("sliding_window", "use_rope", "is_sliding", "use_sliding_window")
"""Attributes of an attention module that differ between layers of one decoder."""


def check_kinds(config: Any, layers: int, label: str) -> None:
    """Refuse layers that are not attention, by their kind in the config.

    Args:
        config: Config of the decoder.
        layers: Number of layers, from the first, that are checked.
        label: Name of the decoder in messages.

    Raises:
        UsageError: A layer is of another kind.
    """
    for field in ("layer_types", "layers_block_type"):
        kinds = getattr(config, field, None) or ()
        other = next((kind for kind in kinds[:layers] if kind not in ATTENTION), None)
        if other is not None:
            raise UsageError(
                f"{label}: {config.model_type} has layers of {other}, but only attention is "
                "supported.",
                REMEDY,
            )


def _check_mixers(model: PreTrainedModel, what: str) -> None:
    mixer = next(_matching(model, OTHER_MIXERS), None)
    if mixer is not None:
        raise UsageError(
            f"{what} mixes tokens by {mixer}, but only attention is supported.", REMEDY
        )


def _check_rotary(model: PreTrainedModel, what: str) -> None:
    """Refuse a decoder without rotary positions.

    Packed attention does not support learned positions or biases by distance.
    """
    rotary = any("rotary" in type(module).__name__.lower() for module in model.modules())
    if not rotary or not hasattr(model, "layers"):
        raise UsageError(
            f"{what} is not a decoder with rotary positions.",
            "Name one such as Llama, Qwen, Gemma, Mistral, Phi or SmolLM.",
        )
    if EMBEDDING not in dict(model.named_parameters()):
        raise UsageError(f"{what} has no token table named embed_tokens.", REMEDY)


def _matching(model: PreTrainedModel, pattern: re.Pattern[str], *names: str) -> Iterator[str]:
    """Yield the classes of modules of the layers that match, or that are named in ``names``."""
    for name, module in model.named_modules():
        kind = type(module).__name__
        if "layers." in name and (pattern.search(kind) or name.rsplit(".", 1)[-1] in names):
            yield kind


def one_line(error: BaseException) -> str:
    """Return the message of an error as one short line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
