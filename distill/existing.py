"""Use an existing recommender as teacher: a directory with its weights and ``items.parquet``."""

import json
from pathlib import Path

import polars as pl
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from slmc.data.dataset import Dataset
from slmc.distill.config import TeachConfig
from slmc.errors import UsageError
from slmc.model import decoders, selfcheck
from slmc.model.loading import check_decoder
from slmc.model.quantized import is_quantized
from slmc.model.recommender import FORMER_TYPE, RecommenderConfig, SequentialRecommender
from slmc.model.silence import silence_transformers
from slmc.model.weights import INDEX, SINGLE, Weights

VOCABULARY = "items.parquet"


def is_recommender(directory: Path) -> bool:
    """Return whether a directory holds a recommender, not a plain LLM."""
    try:
        config = json.loads((directory / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") in (
        RecommenderConfig.model_type,
        FORMER_TYPE,
    )


def refuse_texts(config: TeachConfig) -> None:
    """Refuse an item table from texts: an existing recommender keeps its own.

    Raises:
        UsageError: The config asks for one.
    """
    if config.items_from_texts:
        raise UsageError(
            f"item_embeddings: {config.item_embeddings} cannot be used with the backbone "
            f"{config.backbone}: it is a recommender, which keeps its own item table.",
            "Leave item_embeddings out, or name a plain LLM.",
        )


def check(directory: Path, history: int | None = None) -> PreTrainedModel:
    """Check that a recommender is complete; one tensor is read at a time.

    Args:
        directory: Of the recommender.
        history: Longest history, in items; the model's own if ``None``.

    Returns:
        Its decoder, without weights, on the meta device.

    Raises:
        UsageError: It is quantized, its vocabulary or a tensor is missing, a tensor has the wrong
            shape or is not finite, or its decoder does not support packing.
    """
    label = f"backbone {directory}"
    if is_quantized(json.loads((directory / "config.json").read_text())):
        raise UsageError(
            f"{label}: it is quantized: its weights are codes, which cannot be trained.",
            "Name the model that it was made from.",
        )
    if not (directory / VOCABULARY).is_file():
        raise UsageError(
            f"{label}: a recommender needs its vocabulary, {VOCABULARY}.",
            "Write it next to the weights: columns row (1-based) and item (the original id).",
        )
    if (directory / INDEX).is_file() and (directory / SINGLE).is_file():
        raise UsageError(
            f"{label}: it holds both {SINGLE} and {INDEX}, from different saves.",
            "Remove the outdated one.",
        )
    try:
        config = RecommenderConfig.from_pretrained(directory, local_files_only=True)
        with silence_transformers(), torch.device("meta"), no_init_weights():
            model = SequentialRecommender(config)
    except decoders.BUILDING as error:
        raise UsageError(
            f"{label}: its config.json does not describe a recommender "
            f"({decoders.one_line(error)}).",
            "Save it again with `save_pretrained`.",
        ) from None
    if history is not None:
        model.config.history = history
    check_decoder(model, label)
    with Weights.open(directory, label) as weights:
        for name, tensor in model.state_dict().items():
            weights.read(name, tensor.shape)
    backbone: PreTrainedModel = model.backbone
    return backbone


def read(directory: Path, data: Dataset) -> SequentialRecommender:
    """Load the recommender, with its item table in the order of the dataset's vocabulary.

    Raises:
        UsageError: As :func:`check`, or items of the dataset are not in its vocabulary.
    """
    check(directory, data.history)
    label = f"backbone {directory}"
    with silence_transformers():
        model = SequentialRecommender.from_pretrained(directory, dtype=torch.float32)
    selfcheck.check(model.backbone, label)
    rows = _rows(directory, label, model.config.num_items)
    unknown = [item for item in data.items["item"] if item not in rows]
    if unknown:
        raise UsageError(
            f"{label}: {len(unknown)} items of the dataset are not in its "
            f"vocabulary, the first is {unknown[0]!r}.",
            "Train it on these items, or prepare the dataset it was trained on.",
        )
    order = [0] + [rows[item] for item in data.items["item"]]
    table = model.item_embeddings.weight.detach()[order]
    model.item_embeddings = nn.Embedding.from_pretrained(table, freeze=True, padding_idx=0)
    model.config.num_items = data.num_items
    model.config.history = data.history
    return model


def _rows(directory: Path, label: str, num_items: int) -> dict[str, int]:
    """Return original id -> row of the item table."""
    try:
        pairs = pl.read_parquet(directory / VOCABULARY).select("item", "row").rows()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UsageError(
            f"{label}: {VOCABULARY} cannot be read ({decoders.one_line(error)}).",
            "Write it with the columns row (1-based) and item (the original id).",
        ) from None
    beyond = [row for _, row in pairs if not 1 <= row <= num_items]
    if beyond:
        raise UsageError(
            f"{label}: {VOCABULARY} has row {beyond[0]}, and the item table has 1 to {num_items}.",
            "Write the vocabulary that the model was trained with.",
        )
    return dict(pairs)
