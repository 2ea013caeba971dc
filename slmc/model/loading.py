"""Open the model of an artefact."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from transformers import AutoModel, PreTrainedModel
from transformers.utils import logging as transformers_logging

from slmc.artefact import Artefact
from slmc.errors import ArtefactError
from slmc.model import quantized
from slmc.model.recommender import SequentialRecommender
from slmc.model.sasrec import Sasrec

Recommender = SequentialRecommender | Sasrec
"""What can be scored and exported. Both have ``item_vectors`` and ``user_vectors``, packed and
padded, ``layers``, ``prefix_states`` of a prompt, if there is one, and ``serving``."""
SERVING = ("config.json", "model.safetensors", "items.parquet", "preprocessor.json")
"""Files that serving a model needs: what ``size_mb`` counts."""

log = logging.getLogger("slmc.model")


def load_model(artefact: Artefact, device: torch.device | str = "cpu") -> Recommender:
    """The model of an artefact in evaluation mode, float32.

    Quantized weights become floats of the same values; a quantized item table stays as stored.

    Raises:
        ArtefactError: The artefact holds no recommender that this slmc can load.
        MissingError: It is quantized, and compressed-tensors is not installed.
    """
    config = json.loads(artefact.file("config.json").read_text())
    if config.get("model_type") not in ("slmc", "slmc_sasrec"):
        raise ArtefactError(
            f"{artefact.path / 'config.json'}: model_type is {config.get('model_type')!r}, "
            "not a sequential recommender.",
            "Make one of an LLM with `slmc teach --backbone DIRECTORY`.",
        )
    compressed = "quantization_config" in config
    if compressed:
        quantized.require()
    with quiet(), quantized.quiet() if compressed else nullcontext():
        model: Recommender = AutoModel.from_pretrained(
            artefact.path, dtype=torch.float32, local_files_only=True
        )
        if compressed:
            quantized.as_floats(model)
    place(model, device)
    return model


def place(model: PreTrainedModel, device: torch.device | str) -> None:
    """Move a model to a device, in evaluation mode."""
    # transformers wraps nn.Module.to in a way that type checkers cannot follow.
    torch.nn.Module.to(model, device)
    model.eval()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from drawing bars and from advising on what is meant here."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
