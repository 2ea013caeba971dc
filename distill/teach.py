"""Train an LLM to rank a catalogue (E4SRec, arXiv 2312.02443): the teacher of the distillation."""

import logging
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from slmc.artefact import Artefact, draft
from slmc.data.dataset import Dataset
from slmc.distill import existing, must_beat
from slmc.distill.config import TeachConfig
from slmc.distill.student import (
    add_adapters,
    fresh,
    merge_adapters,
    origin_of,
    parameter_groups,
)
from slmc.errors import UsageError
from slmc.evaluation.scorers import VectorScorer
from slmc.model import backbone, device
from slmc.model.device import Placement
from slmc.model.loading import load_model, place
from slmc.model.origin import Origin
from slmc.model.recommender import SequentialRecommender
from slmc.model.saving import seal_model
from slmc.training.loop import train
from slmc.training.next_item import NextItem, decay_of, training_rows, validation
from slmc.training.softmax import Softmax
from slmc.training.types import Outcome, TrainSetup

log = logging.getLogger("slmc.teach")


def teach(config: TeachConfig, inputs: dict[str, Artefact], out: Path) -> Artefact:
    """Train the first layers of an LLM as a recommender, and compare it with the baselines.

    The comparison is stored in the artefact; :func:`slmc.distill.must_beat.check` acts on it.

    A backbone that is already a recommender (a directory with its ``items.parquet``) keeps its
    weights; with ``epochs: 0`` it is not trained.

    Raises:
        UsageError: The backbone is unsuitable.
        BrokenRunError: Training diverged.
    """
    data = Dataset.open(inputs["data"])
    placement = device.choose(config.device, config.dtype)
    with draft(out) as work:
        torch.manual_seed(config.seed)
        model, origin = _untrained(config, inputs["sasrec"], data)
        outcome = _train(config, model, origin, data, placement, work.resume, inputs.get("like"))
        comparison = {}
        if config.must_beat is not None:
            comparison = must_beat.compare(
                config.must_beat,
                VectorScorer.of(model.eval()),
                inputs["baselines"],
                data,
                config.seed,
            )
        return seal_model(
            work,
            model,
            stage="teach",
            config=config,
            inputs=inputs,
            numbers=asdict(outcome) | {"must_beat": comparison},
            device=placement.device.type,
        )


def _untrained(
    config: TeachConfig, sasrec: Artefact, data: Dataset
) -> tuple[SequentialRecommender, Origin]:
    """Return the recommender before training, and the weights that it must start from."""
    directory = Path(config.backbone)
    if existing.is_recommender(directory):
        model = existing.read(directory, data)
        # Its item table is reordered to this dataset's vocabulary.
        return model, Origin.of_files(directory, excluded="item_embeddings.")
    if config.epochs == 0:
        raise UsageError(
            f"epochs: 0 trains nothing, but {config.backbone} is a plain LLM "
            "without trained projections.",
            "Set epochs to at least 1, or name the directory of a trained recommender.",
        )
    llm = backbone.load(config.backbone, revision=config.revision, layers=config.layers)
    if config.init == "random":
        llm = llm.randomised()
    items = _items(config, sasrec, data)
    prompt = config.prompt
    prefix = llm.prompt(prompt.prefix) if prompt else None
    suffix = llm.prompt(prompt.suffix) if prompt else None
    model = fresh(llm, items, history=data.history, prefix=prefix, suffix=suffix)
    model.item_embeddings.requires_grad_(not config.freeze_items)
    return model, origin_of(llm, items, (prefix, suffix))


def _items(config: TeachConfig, sasrec: Artefact, data: Dataset) -> Tensor:
    if config.item_embeddings == "sasrec":
        return load_model(sasrec).item_vectors().detach()
    items = torch.randn(data.num_items + 1, config.item_dim) * 0.02
    items[0] = 0
    return items


def _train(
    config: TeachConfig,
    model: SequentialRecommender,
    origin: Origin,
    data: Dataset,
    placement: Placement,
    resume: Path,
    like: Artefact | None,
) -> Outcome:
    if config.epochs == 0:
        place(model, placement.device)
        return Outcome.untrained(config.select_by)
    model.set_dropout(config.dropout, config.residual_dropout, config.attention_dropout)
    if config.tune == "lora":
        add_adapters(model, config.lora)
    origin.check(model)
    prompt = (model.config.prefix_length, model.config.suffix_length)
    name = "teach" if config.init == "backbone" else "teach from random weights"
    softmax = Softmax.of(config, data.num_items, name)
    outcome = train(
        NextItem(model, softmax),
        parameter_groups(model, lr=config.lr, projection_lr=config.projection_lr),
        TrainSetup(
            config=config,
            epochs=training_rows(config, data, prompt=prompt),
            validation=validation(model, data, config, placement, softmax, name),
            name=name,
            placement=placement,
            num_items=data.num_items,
            resume=resume,
            like=decay_of(like),
        ),
    )
    if config.tune == "lora":
        merge_adapters(model)
    return outcome
