"""Load the first layers of an LLM, without reading the others."""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights

from slmc.errors import UsageError
from slmc.model import decoders, selfcheck, sources
from slmc.model.decoders import EMBEDDING
from slmc.model.origin import Origin, digest
from slmc.model.silence import silence_transformers
from slmc.model.weights import QUANTIZED, Weights

RMS_ROWS = 4096
"""Rows of the token table from which its scale is estimated."""
SMALL = 20_000_000
"""Largest decoder, in parameters of its first layers, that is also checked with random weights."""


@dataclass(frozen=True)
class Backbone:
    """Decoder layers in float32 without a token table, and the scale of that table."""

    model: PreTrainedModel
    token_rms: float
    """Root mean square of the token embeddings: the scale of inputs the LLM was trained with."""
    directory: Path | None
    """Directory of the weights; ``None`` for random ones."""
    origin: Origin | None = None
    """Digests of the tensors in the files; ``None`` for random weights."""
    label: str = "backbone"
    """Its name in messages."""
    prefix: str = ""
    """Prefix of the decoder's tensor names in the files, e.g. ``model.``."""

    def randomised(self) -> "Backbone":
        """Return a backbone of the same shape with random weights, for inputs of the same scale."""
        model = AutoModel.from_config(self.model.config, dtype=torch.float32)
        return replace(self, model=model.eval(), origin=None)

    def prompt(self, text: str) -> Tensor:
        """Return the LLM's input embeddings ``[P, H]`` of the tokens of a text."""
        if not text:
            return torch.zeros(0, self.model.config.hidden_size)
        if self.directory is None:
            raise UsageError(
                "prompt: a random backbone has no tokenizer.",
                "Leave the prompt out, or name a backbone with a tokenizer.",
            )
        ids = AutoTokenizer.from_pretrained(self.directory)(text, add_special_tokens=False)
        width = self.model.config.hidden_size
        with Weights.open(self.directory, self.label) as weights:
            rows = weights.rows(self.prefix + EMBEDDING, width, list(ids["input_ids"]))
        scale = float(getattr(self.model.get_input_embeddings(), "scalar_embed_scale", 1.0))
        return rows * scale


def load(name: str, *, revision: str | None = None, layers: int | None = None) -> Backbone:
    """Read the first ``layers`` decoder layers (all if ``None``) and the final norm.

    Raises:
        UsageError: The backbone is not a supported decoder, has fewer layers, or its weights do
            not match its config.
        MissingError: It cannot be fetched.
    """
    label = f"backbone {name}"
    if name.startswith(sources.RANDOM):
        return _random(name, layers)
    directory = sources.locate(name, revision)
    config = truncated(decoder_config(directory, name), layers, name)
    _check_kind(decoders.build_on_meta(config, label), label)
    with no_init_weights():
        model = AutoModel.from_config(config, dtype=torch.float32)
    with Weights.open(directory, label) as weights:
        prefix, origin = _copy_weights(model, weights, name)
        token_rms = _token_rms(weights, prefix, config.hidden_size)
    selfcheck.check(model.eval(), label, token_rms)
    return Backbone(model, token_rms, directory, origin, label, prefix)


def check(
    name: str,
    *,
    revision: str | None = None,
    layers: int | None = None,
    history: int | None = None,
) -> PreTrainedModel:
    """Refuse what :func:`load` would refuse, with the memory of a few layers.

    Args:
        name: A directory or ``random://…``.
        revision: As in :func:`load`.
        layers: As in :func:`load`.
        history: Longest history in items; ``None`` if not known.

    Returns:
        The decoder without weights, on the meta device.

    Raises:
        UsageError: As :func:`load`, or its rotary positions change within such a history.
    """
    label = f"backbone {name}"
    is_random = name.startswith(sources.RANDOM)
    directory = Path() if is_random else sources.locate(name, revision)
    config = _config_of_name(name) if is_random else decoder_config(directory, name)
    model = decoders.build_on_meta(truncated(config, layers, name), label)
    if history is not None:
        decoders.check_length(model.config, history, label)
    _check_kind(model, label)
    if not is_random:
        with Weights.open(directory, label) as weights:
            prefix, tensors = _decoder_tensors(model, weights)
            for key, tensor in tensors.items():
                weights.read(prefix + key, tensor.shape)
        load(name, revision=revision, layers=decoders.needed_layers(model))
    return model


def decoder_config(directory: Path, name: str) -> PreTrainedConfig:
    """Return the config of the text decoder of a directory; raises ``UsageError``."""
    try:
        _refuse_quantized(json.loads((directory / "config.json").read_text()), name)
        with silence_transformers():
            config: Any = AutoConfig.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
        text: PreTrainedConfig = config.get_text_config(decoder=True)
    except (*decoders.BUILDING, OSError) as error:
        raise UsageError(
            f"backbone {name}: its config.json cannot be read ({decoders.one_line(error)}).",
            "Name a decoder that transformers supports without custom code.",
        ) from None
    return text


def _refuse_quantized(config: Any, name: str) -> None:
    """Refuse quantized weights: without their scales, the codes are other numbers."""
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    for part in parts:
        settings = part.get("quantization_config") or part.get("compression_config")
        if settings:
            method = settings.get("quant_method") or settings.get("format") or "unknown method"
            raise UsageError(
                f"backbone {name}: its config.json says that its weights are quantized ({method}), "
                "but only float weights can be read.",
                QUANTIZED,
            )


def truncated(config: PreTrainedConfig, layers: int | None, name: str) -> PreTrainedConfig:
    """Cut ``config`` to its first ``layers`` layers and a token table of one row."""
    depth = config.num_hidden_layers
    layers = depth if layers is None else layers
    if layers > depth:
        raise UsageError(
            f"layers: {layers} are requested, but backbone {name} has {depth}.",
            f"Set layers to at most {depth}.",
        )
    decoders.check_kinds(config, layers, f"backbone {name}")
    try:
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
        config.vocab_size = 1
        config.pad_token_id = config.bos_token_id = config.eos_token_id = None
        config.use_cache = False
    except decoders.BUILDING as error:
        raise UsageError(
            f"backbone {name}: {config.model_type} cannot be cut to its first layers "
            f"({decoders.one_line(error)}).",
            decoders.REMEDY,
        ) from None
    return config


def _check_kind(model: PreTrainedModel, label: str) -> None:
    """Compare packed attention with the decoder's own, on random weights."""
    few = decoders.needed_layers(model)
    layers = cast(nn.ModuleList, model.layers)[:few]
    if sum(p.numel() for p in layers.parameters()) <= SMALL:
        config = truncated(copy.deepcopy(model.config), few, label)
        selfcheck.check_kind(config, label)


def _decoder_tensors(model: PreTrainedModel, weights: Weights) -> tuple[str, dict[str, Tensor]]:
    """Return the prefix of the tensor names in the files, and the decoder's tensors to read."""
    tensors: dict[str, Tensor] = model.state_dict()
    tensors.pop(EMBEDDING)
    prefix = weights.prefix(tensors, EMBEDDING)
    depth = model.config.num_hidden_layers
    names = frozenset(prefix + key for key in tensors)
    weights.refuse_others(tuple(f"{prefix}layers.{i}." for i in range(depth)), names)
    return prefix, tensors


def _copy_weights(model: PreTrainedModel, weights: Weights, name: str) -> tuple[str, Origin]:
    """Copy the weights of the layers of ``model`` from the files."""
    prefix, tensors = _decoder_tensors(model, weights)
    digests = {}
    for key, tensor in tensors.items():
        source = weights.read(prefix + key, tensor.shape)
        tensor.copy_(source)
        digests[key] = digest(source)
    with torch.no_grad():
        model.get_parameter(EMBEDDING).zero_()
    return prefix, Origin(name, digests)


def _token_rms(weights: Weights, prefix: str, width: int) -> float:
    """Return the root mean square of the token table, estimated from its first rows."""
    rows = weights.rows(prefix + EMBEDDING, width, slice(RMS_ROWS))
    rms = rows.square().mean().sqrt().item()
    if not rms:
        raise UsageError(
            f"{weights.label}: {prefix + EMBEDDING} holds only zeros: it was never initialised.",
            "Download it again, or create it again from the LLM.",
        )
    return rms


def _random(name: str, layers: int | None) -> Backbone:
    config, label = truncated(_config_of_name(name), layers, name), f"backbone {name}"
    _check_kind(decoders.build_on_meta(config, label), label)
    model = AutoModel.from_config(config).eval()
    return Backbone(model, token_rms=0.02, directory=None, label=label)


def _config_of_name(name: str) -> PreTrainedConfig:
    """Return the config of a ``random://`` backbone."""
    return random_config(*sources.random_shape(name), name)


def random_config(kind: str, fields: Mapping[str, Any], name: str) -> PreTrainedConfig:
    """Return the config of a decoder of a kind.

    Args:
        kind: Model type of transformers.
        fields: Fields of its config, such as ``hidden_size``.
        name: Name of the backbone, for messages.

    Raises:
        UsageError: transformers has no such decoder, or does not accept these fields.
    """
    if kind not in CONFIG_MAPPING:
        raise UsageError(
            f"backbone {name}: transformers has no model type {kind!r}.",
            "Name one such as llama, qwen3, gemma2 or mistral.",
        )
    try:
        config: PreTrainedConfig = AutoConfig.for_model(kind, **fields)
        text: Any = config.get_text_config(decoder=True)
    except decoders.BUILDING as error:
        raise UsageError(
            f"backbone {name}: {kind} cannot be built with these sizes "
            f"({decoders.one_line(error)}).",
            "Change its sizes, or name one such as llama, qwen3, gemma2 or mistral.",
        ) from None
    if text is not config:
        raise UsageError(
            f"backbone {name}: {kind} is more than a decoder: its decoder is {text.model_type}.",
            f"Name random://{text.model_type}?… instead.",
        )
    return config
