"""The first layers of an LLM, read without the rest."""

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
from slmc.model.quieting import quiet
from slmc.model.weights import QUANTIZED, Weights

RMS_ROWS = 4096
"""Rows of the token table that its scale is estimated from."""
SMALL = 20_000_000
"""Parameters of its first layers up to which a decoder is checked with drawn weights too."""


@dataclass(frozen=True)
class Backbone:
    """Decoder layers in float32 without a token table, and what was learned of that table."""

    model: PreTrainedModel
    token_rms: float
    """Root mean square of the token embeddings: the scale of inputs that the LLM is used to."""
    directory: Path | None
    """Where the weights came from; ``None`` for random ones."""
    origin: Origin | None = None
    """The tensors as they stand in the files; ``None`` for random ones."""
    label: str = "backbone"
    """What messages call it."""
    prefix: str = ""
    """What stands before the decoder's names in the files, e.g. ``model.``."""

    def randomised(self) -> "Backbone":
        """Random weights in the same shape, for inputs of the same scale."""
        model = AutoModel.from_config(self.model.config, dtype=torch.float32)
        return replace(self, model=model.eval(), origin=None)

    def prompt(self, text: str) -> Tensor:
        """Embeddings ``[P, H]`` of a text's tokens, as the LLM would see them."""
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
        UsageError: The backbone is no decoder that fits, has fewer layers, or its files are
            not its weights.
        MissingError: It cannot be fetched.
    """
    label = f"backbone {name}"
    if name.startswith(sources.RANDOM):
        return _random(name, layers)
    directory = sources.locate(name, revision)
    config = truncated(decoder_config(directory, name), layers, name)
    _check_kind(decoders.sketch(config, label), label)
    with no_init_weights():
        model = AutoModel.from_config(config, dtype=torch.float32)
    with Weights.open(directory, label) as weights:
        prefix, origin = _fill(model, weights, name)
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
    """Find out what :func:`load` would refuse, with the memory of a few layers.

    Args:
        name: A directory or ``random://…``.
        revision: As in :func:`load`.
        layers: As in :func:`load`.
        history: Items of a history, at most; ``None`` if not known.

    Returns:
        The decoder without its numbers, on the meta device.

    Raises:
        UsageError: As :func:`load`, or its positions do not hold for so long a history.
    """
    label = f"backbone {name}"
    drawn = name.startswith(sources.RANDOM)
    directory = Path() if drawn else sources.locate(name, revision)
    config = _config_of_name(name) if drawn else decoder_config(directory, name)
    model = decoders.sketch(truncated(config, layers, name), label)
    if history is not None:
        decoders.check_length(model.config, history, label)
    _check_kind(model, label)
    if not drawn:
        with Weights.open(directory, label) as weights:
            prefix, wanted = _wanted(model, weights)
            for key, tensor in wanted.items():
                weights.read(prefix + key, tensor.shape)
        load(name, revision=revision, layers=decoders.needed_layers(model))
    return model


def decoder_config(directory: Path, name: str) -> PreTrainedConfig:
    """The text decoder's config of a directory; raises ``UsageError`` if there is none."""
    try:
        _refuse_quantized(json.loads((directory / "config.json").read_text()), name)
        with quiet():
            config: Any = AutoConfig.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
        text: PreTrainedConfig = config.get_text_config(decoder=True)
    except (*decoders.BUILDING, OSError) as error:
        raise UsageError(
            f"backbone {name}: its config.json cannot be read ({decoders.one_line(error)}).",
            "Name a decoder that transformers knows without code of its own.",
        ) from None
    return text


def _refuse_quantized(config: Any, name: str) -> None:
    """Refuse weights that are codes: read without their scales they are other numbers."""
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    for part in parts:
        settings = part.get("quantization_config") or part.get("compression_config")
        if settings:
            method = settings.get("quant_method") or settings.get("format") or "of some method"
            raise UsageError(
                f"backbone {name}: its weights are quantized ({method}), says its config.json, and "
                "are not read without their scales.",
                QUANTIZED,
            )


def truncated(config: PreTrainedConfig, layers: int | None, name: str) -> PreTrainedConfig:
    """``config`` with the first ``layers`` layers and no token table."""
    depth = config.num_hidden_layers
    layers = depth if layers is None else layers
    if layers > depth:
        raise UsageError(
            f"layers: {layers} are asked for, but backbone {name} has {depth}.",
            f"Ask for at most {depth}.",
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
    """Let packing be compared with the decoder's own attention, on weights drawn for it."""
    few = decoders.needed_layers(model)
    layers = cast(nn.ModuleList, model.layers)[:few]
    if sum(p.numel() for p in layers.parameters()) <= SMALL:
        config = truncated(copy.deepcopy(model.config), few, label)
        selfcheck.check_kind(config, label)


def _wanted(model: PreTrainedModel, weights: Weights) -> tuple[str, dict[str, Tensor]]:
    """The prefix of the decoder's names in the files, and the tensors that it takes from them."""
    wanted: dict[str, Tensor] = model.state_dict()
    wanted.pop(EMBEDDING)
    prefix = weights.prefix(wanted, EMBEDDING)
    depth = model.config.num_hidden_layers
    held = frozenset(prefix + key for key in wanted)
    weights.refuse_others(tuple(f"{prefix}layers.{i}." for i in range(depth)), held)
    return prefix, wanted


def _fill(model: PreTrainedModel, weights: Weights, name: str) -> tuple[str, Origin]:
    """Copy the weights of the layers that ``model`` has, and of those alone."""
    prefix, wanted = _wanted(model, weights)
    digests = {}
    for key, tensor in wanted.items():
        stored = weights.read(prefix + key, tensor.shape)
        tensor.copy_(stored)
        digests[key] = digest(stored)
    with torch.no_grad():
        model.get_parameter(EMBEDDING).zero_()
    return prefix, Origin(name, digests)


def _token_rms(weights: Weights, prefix: str, width: int) -> float:
    """Root mean square of the token table, estimated from its first rows."""
    rows = weights.rows(prefix + EMBEDDING, width, slice(RMS_ROWS))
    rms = rows.square().mean().sqrt().item()
    if not rms:
        raise UsageError(
            f"{weights.label}: {prefix + EMBEDDING} is 0 everywhere: it was never filled.",
            "Download it again, or make it again from the LLM.",
        )
    return rms


def _random(name: str, layers: int | None) -> Backbone:
    config, label = truncated(_config_of_name(name), layers, name), f"backbone {name}"
    _check_kind(decoders.sketch(config, label), label)
    model = AutoModel.from_config(config).eval()
    return Backbone(model, token_rms=0.02, directory=None, label=label)


def _config_of_name(name: str) -> PreTrainedConfig:
    """The config of a ``random://`` backbone."""
    return random_config(*sources.random_shape(name), name)


def random_config(kind: str, fields: Mapping[str, Any], name: str) -> PreTrainedConfig:
    """The config of a decoder of a kind.

    Args:
        kind: Model type of transformers.
        fields: Fields of its config, such as ``hidden_size``.
        name: Name of the backbone, for messages.

    Raises:
        UsageError: transformers has no such decoder, or does not accept these fields.
    """
    if kind not in CONFIG_MAPPING:
        raise UsageError(
            f"backbone {name}: transformers knows no model type {kind!r}.",
            "Name one such as llama, qwen3, gemma2 or mistral.",
        )
    try:
        config: PreTrainedConfig = AutoConfig.for_model(kind, **fields)
        text: Any = config.get_text_config(decoder=True)
    except decoders.BUILDING as error:
        raise UsageError(
            f"backbone {name}: {kind} cannot have these sizes ({decoders.one_line(error)}).",
            "Change its sizes, or name one such as llama, qwen3, gemma2 or mistral.",
        ) from None
    if text is not config:
        raise UsageError(
            f"backbone {name}: {kind} has parts besides its decoder, which is {text.model_type}.",
            f"Name random://{text.model_type}?… instead.",
        )
    return config
