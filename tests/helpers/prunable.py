"""Random recommenders of every kind that is pruned, their shapes, and artefacts of them."""

import json
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoConfig

from slmc.artefact import Artefact
from slmc.compress.prune.units import channels, kv_groups
from slmc.model.recommender import RecommenderConfig, SequentialRecommender

KINDS = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral", "phi3", "smollm3")
WITH_HEAD_DIM = ("qwen3", "gemma2", "gemma3_text")
"""Kinds whose config has a width of heads of its own."""
ITEMS, HISTORY, HIDDEN, HEADS, WIDTH, CHANNELS = 30, 10, 32, 4, 8, 48
HALF = {"heads": 0.5, "ffn": 0.5, "round_to": 8, "calibration": 40}
"""Settings that keep half of the heads and channels."""
Inputs = dict[str, Artefact]


def build(
    kind: str, *, kv_heads: int = 2, layers: int = 2, **options: Any
) -> SequentialRecommender:
    """A recommender with random weights and biases; histories longer than its windows."""
    sizes = {"head_dim": WIDTH} if kind in WITH_HEAD_DIM else {}
    config = AutoConfig.for_model(
        kind,
        vocab_size=1,
        hidden_size=HIDDEN,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=kv_heads,
        intermediate_size=CHANNELS,
        sliding_window=4,
        use_cache=False,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
        **sizes,
    )
    model = SequentialRecommender(
        RecommenderConfig(config, num_items=ITEMS, item_dim=16, history=HISTORY, **options)
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.2, generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(std=0.5, generator=generator)
        model.prompt.normal_(generator=generator)
        model.get_parameter("item_embeddings.weight")[0] = 0
    return model.eval()


def some_histories(count: int = 12, *, longest: int = HISTORY) -> list[NDArray[np.int32]]:
    rng = np.random.default_rng(3)
    sizes = [2 + i % (longest - 1) for i in range(count)]
    return [rng.integers(1, ITEMS + 1, size).astype(np.int32) for size in sizes]


def some_ids() -> Tensor:
    ids = torch.randint(1, ITEMS + 1, (5, HISTORY), generator=torch.Generator().manual_seed(2))
    ids[1, :6] = 0
    ids[2, :9] = 0
    return ids


def groups_of(model: SequentialRecommender) -> list[Any]:
    return [kv_groups(layer, model.config.backbone_config) for layer in model.layers]


def channels_of(model: SequentialRecommender) -> list[Any]:
    return [channels(layer, model.config.backbone_config) for layer in model.layers]


def numbers_of(artefact: Artefact) -> dict[str, Any]:
    numbers: dict[str, Any] = json.loads(artefact.file("metrics.json").read_text())
    return numbers


def shape_of(artefact: Artefact) -> tuple[int, int, int, int]:
    config = json.loads(artefact.file("config.json").read_text())["backbone_config"]
    names = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    layers, heads, groups, channels = (config[name] for name in names)
    return layers, heads, groups, channels
