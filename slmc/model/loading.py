"""Load the model of an artefact."""

import json
import logging
from contextlib import nullcontext

import torch
from transformers import AutoModel, PreTrainedModel

from slmc.artefact import Artefact
from slmc.errors import ArtefactError, UsageError
from slmc.model import decoders, quantized, recommender, sasrec
from slmc.model.recommender import RecommenderConfig, SequentialRecommender
from slmc.model.sasrec import Sasrec, SasrecModelConfig
from slmc.model.silence import silence_transformers

Recommender = SequentialRecommender | Sasrec
"""Models that can be evaluated and exported. Both have ``item_vectors``, ``user_vectors`` (packed
and padded), ``layers``, ``prefix_states`` and ``serving``."""
MODEL_TYPES = (
    RecommenderConfig.model_type,
    recommender.FORMER_TYPE,
    SasrecModelConfig.model_type,
    sasrec.FORMER_TYPE,
)
"""``model_type`` of the models that slmc saves, and has saved."""
SERVING = ("config.json", "model.safetensors", "items.parquet", "preprocessor.json")
"""Files that are needed to serve a model; ``size_mb`` is their size."""

log = logging.getLogger("slmc.model")


def load_model(artefact: Artefact, device: torch.device | str = "cpu") -> Recommender:
    """Load the model of an artefact in evaluation mode, in float32.

    Quantized weights are dequantized; a quantized item table stays quantized.

    Raises:
        ArtefactError: The artefact has no recommender that this slmc can load.
        MissingError: It is quantized, and compressed-tensors is not installed.
    """
    config = json.loads(artefact.file("config.json").read_text())
    if config.get("model_type") not in MODEL_TYPES:
        raise ArtefactError(
            f"{artefact.path / 'config.json'}: model_type is {config.get('model_type')!r}, "
            "not a sequential recommender.",
            "Build one on an LLM with `slmc teach --backbone DIRECTORY`.",
        )
    compressed = "quantization_config" in config
    if compressed:
        quantized.require()
    with silence_transformers(), quantized.silence_libraries() if compressed else nullcontext():
        loaded = AutoModel.from_pretrained(
            artefact.path, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        model: Recommender = loaded[0]
        lacking = sorted(loaded[1]["missing_keys"])
        if lacking:
            raise ArtefactError(
                f"{artefact.path / 'model.safetensors'}: it lacks {lacking[0]}"
                + (f" and {len(lacking) - 1} other tensors." if len(lacking) > 1 else "."),
                "Make the model again: missing weights would be random.",
            )
        if compressed:
            quantized.as_floats(model)
    if isinstance(model, SequentialRecommender):
        check_decoder(model, str(artefact.path))
    place(model, device)
    return model


def load_recommender(
    artefact: Artefact, device: torch.device | str = "cpu"
) -> SequentialRecommender:
    """As :func:`load_model`, for stages that need a recommender on an LLM.

    Raises:
        UsageError: The model is a SASRec.
    """
    model = load_model(artefact, device)
    if not isinstance(model, SequentialRecommender):
        raise UsageError(
            f"{artefact.path} is a {type(model).__name__}, not a recommender on an LLM.",
            "Name the artefact of a teach, distill or prune step.",
        )
    return model


def check_decoder(model: SequentialRecommender, label: str) -> None:
    """Refuse a recommender whose scores for a user would depend on the rest of the batch.

    Args:
        model: The recommender.
        label: Its name in messages.

    Raises:
        UsageError: Its decoder is of a kind that packed attention does not support, or its rotary
            positions change within the length of its histories.
    """
    decoders.check(model.backbone, label)
    config = model.config
    longest = config.history + config.prefix_length + config.suffix_length
    decoders.check_length(config.backbone_config, longest, label)


def place(model: PreTrainedModel, device: torch.device | str) -> None:
    """Move a model to a device, in evaluation mode."""
    # transformers wraps nn.Module.to in a way that type checkers cannot follow.
    torch.nn.Module.to(model, device)
    model.eval()
