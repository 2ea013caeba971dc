"""The first layers of an LLM, read without the rest."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from slmc.errors import UsageError
from slmc.model import sources
from slmc.model.loading import quiet
from slmc.model.origin import Origin, digest

EMBEDDING = "embed_tokens.weight"
RMS_ROWS = 4096
"""Rows of the token table that its scale is estimated from."""


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
        with Weights.open(self.directory) as weights:
            table = weights.slice(weights.prefix + EMBEDDING)
            rows = torch.stack([table[i] for i in ids["input_ids"]]).float()
        scale = float(getattr(self.model.get_input_embeddings(), "scalar_embed_scale", 1.0))
        return rows * scale


@dataclass(frozen=True)
class Weights:
    """The tensors of a directory by name, each read from disk when asked for."""

    files: Mapping[str, Any]

    @classmethod
    @contextmanager
    def open(cls, directory: Path) -> Iterator["Weights"]:
        """Open every safetensors shard of a directory."""
        with ExitStack() as stack:
            shards = [
                stack.enter_context(safe_open(file, framework="pt"))
                for file in sorted(directory.glob("*.safetensors"))
            ]
            yield cls({key: shard for shard in shards for key in shard.keys()})  # noqa: SIM118

    @property
    def prefix(self) -> str:
        """What stands before ``layers.0.`` in the names, e.g. ``model.``."""
        names = (n for n in self.files if "layers.0." in n and "vision" not in n)
        first = min(names, default=None)
        if first is None:
            raise UsageError(
                "backbone: its weights hold no decoder layers named layers.0, layers.1 …",
                "Name a decoder LLM such as Llama, Qwen, Gemma, Mistral or Phi.",
            )
        return first[: first.index("layers.0.")]

    def read(self, name: str) -> Tensor:
        """A whole tensor."""
        tensor: Tensor = self.files[name].get_tensor(name)
        return tensor

    def slice(self, name: str) -> Any:
        """A tensor whose rows are read when indexed."""
        return self.files[name].get_slice(name)


def load(name: str, *, revision: str | None = None, layers: int | None = None) -> Backbone:
    """Read the first ``layers`` decoder layers (all if ``None``) and the final norm.

    Raises:
        UsageError: The backbone is no decoder that fits, or has fewer layers.
        MissingError: It cannot be fetched.
    """
    if name.startswith(sources.RANDOM):
        return _random(name, layers)
    directory = sources.locate(name, revision)
    config = decoder_config(directory, name)
    config = truncated(config, layers, name)
    with no_init_weights():
        model = AutoModel.from_config(config, dtype=torch.float32)
    _check_rotary(model, name)
    with Weights.open(directory) as weights:
        origin = _fill(model, weights, name)
        rows = weights.slice(weights.prefix + EMBEDDING)[:RMS_ROWS].float()
    return Backbone(model.eval(), rows.square().mean().sqrt().item(), directory, origin)


def decoder_config(directory: Path, name: str) -> PreTrainedConfig:
    """The text decoder's config of a directory; raises ``UsageError`` if there is none."""
    try:
        with quiet():
            config = AutoConfig.from_pretrained(directory, local_files_only=True)
    except (ValueError, KeyError, json.JSONDecodeError) as error:
        raise UsageError(
            f"backbone {name}: its config.json cannot be read ({str(error).splitlines()[0]}).",
            "Name a decoder that transformers knows without code of its own.",
        ) from None
    text: PreTrainedConfig = config.get_text_config(decoder=True)
    return text


def truncated(config: PreTrainedConfig, layers: int | None, name: str) -> PreTrainedConfig:
    """``config`` with the first ``layers`` layers and no token table."""
    depth = config.num_hidden_layers
    layers = depth if layers is None else layers
    if layers > depth:
        raise UsageError(
            f"layers: {layers} are asked for, but backbone {name} has {depth}.",
            f"Ask for at most {depth}.",
        )
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    config.vocab_size = 1
    config.pad_token_id = config.bos_token_id = config.eos_token_id = None
    config.use_cache = False
    return config


def _check_rotary(model: PreTrainedModel, name: str) -> None:
    """Refuse a decoder whose positions are not turned into its queries and keys.

    Learned positions and biases by distance are added where packed attention does not see them.
    """
    rotary = any("rotary" in type(module).__name__.lower() for module in model.modules())
    if not rotary or not hasattr(model, "layers"):
        raise UsageError(
            f"backbone {name}: {model.config.model_type} is no decoder with rotary positions.",
            "Name one such as Llama, Qwen, Gemma, Mistral, Phi or SmolLM.",
        )


def _fill(model: PreTrainedModel, weights: Weights, name: str) -> Origin:
    """Copy the weights of the layers that ``model`` has, and of those alone."""
    prefix, wanted = weights.prefix, model.state_dict()
    wanted.pop(EMBEDDING)
    digests = {}
    for key, tensor in wanted.items():
        if prefix + key not in weights.files:
            raise UsageError(
                f"backbone {name}: its weights lack {prefix + key}.",
                "Download it again; its config.json and its weights do not belong together.",
            )
        stored = weights.read(prefix + key)
        tensor.copy_(stored)
        digests[key] = digest(stored)
    with torch.no_grad():
        model.get_parameter(EMBEDDING).zero_()
    return Origin(name, digests)


def _random(name: str, layers: int | None) -> Backbone:
    kind, sizes = sources.random_shape(name)
    try:
        config = AutoConfig.for_model(kind, **sizes)
    except ValueError:
        raise UsageError(
            f"backbone {name}: transformers knows no model type {kind!r}.",
            "Name one such as llama, qwen3, gemma2 or mistral.",
        ) from None
    model = AutoModel.from_config(truncated(config, layers, name))
    _check_rotary(model, name)
    return Backbone(model.eval(), token_rms=0.02, directory=None)
