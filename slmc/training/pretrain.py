"""Train SASRec: the strongest cheap baseline, and the source of the item table."""

from dataclasses import asdict
from pathlib import Path

import torch

from slmc.artefact import Artefact, draft
from slmc.data.dataset import Dataset
from slmc.errors import UsageError
from slmc.model import device
from slmc.model.device import Placement
from slmc.model.sasrec import Sasrec, SasrecModelConfig
from slmc.model.saving import seal_model
from slmc.training.config import SasrecConfig
from slmc.training.loop import train
from slmc.training.next_item import NextItem, training_rows, validation
from slmc.training.softmax import Softmax
from slmc.training.text_table import TextTable
from slmc.training.types import TrainSetup


def sasrec(config: SasrecConfig, inputs: dict[str, Artefact], out: Path) -> Artefact:
    """Train SASRec with cross-entropy over the catalogue and early stopping on the ranking."""
    data = Dataset.open(inputs["data"])
    placement = device.choose(config.device, config.dtype)
    with draft(out) as work:
        torch.manual_seed(config.seed)
        model = _model(config, data)
        texts = _text_table(config, inputs["data"], placement)
        if texts is not None:
            texts.put_into(model)
        softmax = Softmax.of(config, data.counts, "sasrec", from_texts=texts is not None)
        outcome = train(
            NextItem(model, softmax),
            [{"params": list(model.parameters()), "lr": config.lr}],
            TrainSetup(
                config=config,
                epochs=training_rows(config, data),
                validation=validation(model, data, config, placement, softmax, "sasrec"),
                name="sasrec",
                placement=placement,
                num_items=data.num_items,
                resume=work.resume,
            ),
        )
        if texts is not None:
            texts.fold(model, work.path)
        return seal_model(
            work,
            model,
            stage="sasrec",
            config=config,
            inputs=inputs,
            numbers=asdict(outcome) | (texts.numbers if texts is not None else {}),
            device=placement.device.type,
        )


def _model(config: SasrecConfig, data: Dataset) -> Sasrec:
    if config.dim % config.heads:
        raise UsageError(
            f"sasrec: dim {config.dim} is not a multiple of heads {config.heads}.",
            "Choose a number of heads that divides dim.",
        )
    return Sasrec(
        SasrecModelConfig(
            num_items=data.num_items,
            item_dim=config.dim,
            history=data.history,
            num_layers=config.layers,
            num_heads=config.heads,
            dropout=config.dropout,
        )
    )


def _text_table(config: SasrecConfig, dataset: Artefact, placement: Placement) -> TextTable | None:
    """Return the item table before training; None if it does not come from texts."""
    if config.item_embeddings == "ids":
        return None
    assert config.encoder is not None  # the config is checked
    return TextTable.of(
        config, config.encoder, config.encoder_revision, config.dim, dataset, placement
    )
