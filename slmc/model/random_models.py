"""Decoders and recommenders with random weights, by kind and sizes: for tests and benchmarks."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from slmc.model import backbone
from slmc.model.recommender import RecommenderConfig, SequentialRecommender
from slmc.model.sources import SIZES

SMALL: dict[str, Any] = {"layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "intermediate": 128}
"""Sizes of a decoder unless others are given, by the names of ``random://``."""
SMOLLM2: dict[str, Any] = {
    "hidden": 576,
    "heads": 9,
    "kv_heads": 3,
    "intermediate": 1536,
    "head_dim": 64,
}
"""Sizes of SmolLM2-135M, without its number of layers."""


def llm_config(kind: str = "llama", **options: Any) -> PreTrainedConfig:
    """Return the config of a small decoder of a kind, with its token table.

    Args:
        kind: Model type of transformers.
        options: Sizes by the names of ``random://``, and other fields of the config by their own.
    """
    fields: dict[str, Any] = {
        SIZES.get(name, name): value for name, value in (SMALL | options).items()
    }
    return backbone.random_config(kind, fields, kind)


def backbone_config(kind: str = "llama", **options: Any) -> PreTrainedConfig:
    """As :func:`llm_config`, but with a token table of one row, like a backbone."""
    return backbone.truncated(llm_config(kind, **options), None, kind)


def recommender(
    kind: str = "llama", decoder: Mapping[str, Any] | None = None, **shape: Any
) -> SequentialRecommender:
    """Build a recommender with random initial weights (torch's random state), in evaluation mode.

    Args:
        kind: Model type of its decoder.
        decoder: Options of :func:`llm_config`.
        shape: Fields of :class:`RecommenderConfig`.
    """
    config = RecommenderConfig(backbone_config(kind, **(decoder or {})), **shape)
    return SequentialRecommender(config).eval()
