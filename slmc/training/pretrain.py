"""Train SASRec: the strongest cheap baseline, and the source of the item table."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from slmc.artefact import Artefact, draft
from slmc.data.dataset import Dataset
from slmc.errors import UsageError
from slmc.model import device
from slmc.model.device import Placement
from slmc.model.sasrec import Sasrec, SasrecModelConfig
from slmc.model.saving import seal_model
from slmc.model.text_encoder import Encoder, text_vectors
from slmc.model.text_items import TextItems, Whitening
from slmc.model.text_map import TextMap, digest_of_table
from slmc.training.config import SasrecConfig
from slmc.training.loop import train
from slmc.training.next_item import NextItem, training_rows, validation
from slmc.training.softmax import Softmax
from slmc.training.types import TrainSetup


def sasrec(config: SasrecConfig, inputs: dict[str, Artefact], out: Path) -> Artefact:
    """Train SASRec with cross-entropy over the catalogue and early stopping on the ranking."""
    data = Dataset.open(inputs["data"])
    placement = device.choose(config.device, config.dtype)
    with draft(out) as work:
        torch.manual_seed(config.seed)
        model = _model(config, data)
        if config.item_embeddings != "ids":
            texts = Dataset.texts(inputs["data"])
            trained = torch.from_numpy(data.counts > 0)
            encoder, whitening, items = _text_items(config, texts, trained, placement)
            cast(Any, model).item_embeddings = items
        softmax = Softmax.of(config, data.num_items, "sasrec")
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
        if config.item_embeddings != "ids":
            weights = items.adapter.state_dict()
            model.item_embeddings = items.folded()
            table = digest_of_table(model.item_vectors())
            TextMap(encoder, whitening, weights, table).save(work.path)
        return seal_model(
            work,
            model,
            stage="sasrec",
            config=config,
            inputs=inputs,
            numbers=asdict(outcome),
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


def _text_items(
    config: SasrecConfig,
    texts: Sequence[str | None],
    trained: Tensor,
    placement: Placement,
) -> tuple[Encoder, Whitening, TextItems]:
    """Return the encoder, the whitening and the item table before training.

    Args:
        config: Encoder and kind of the item embeddings.
        texts: Texts of the rows from 1 on; None for an item without one.
        trained: ``[V + 1]`` bool, whether an item has training interactions.
        placement: Device of the encoder.
    """
    assert config.encoder is not None  # the config is checked
    assert config.item_embeddings != "ids"
    rows = [row for row, text in enumerate(texts, start=1) if text]
    encoder = Encoder.of(config.encoder, config.encoder_revision, config.encoder_layer)
    vectors = text_vectors([text for text in texts if text], encoder, placement.device)
    whitening = Whitening.fit(vectors, config.dim, f"encoder {encoder.name}")
    table = torch.zeros(len(texts) + 1, config.dim)
    table[rows] = whitening(vectors)
    items = TextItems(table, config.item_embeddings, trained, config.id_dropout)
    return encoder, whitening, items
