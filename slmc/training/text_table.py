"""The item table from texts that SASRec and teachers train: made, trained along, folded at the end.

During training it replaces the ``nn.Embedding`` of a model; at the end it becomes one again, and
the map from texts to vectors is stored with the model.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, Self, cast

import torch
from torch import Tensor

from slmc.artefact import Artefact
from slmc.config import TrainConfig
from slmc.data.dataset import Dataset
from slmc.model.device import Placement
from slmc.model.loading import Recommender
from slmc.model.text_encoder import Encoder, text_vectors
from slmc.model.text_items import Kind, TextItems, Whitening, table_of
from slmc.model.text_map import TextMap, digest_of_table
from slmc.training.encoder_layer import Choice, choose_layer

TEXT: tuple[Kind, ...] = ("text", "hybrid")
"""Values of ``item_embeddings`` with texts."""


class TextSettings(Protocol):
    """Settings of a stage whose item table may come from texts."""

    @property
    def item_embeddings(self) -> str:
        """With ``text`` or ``hybrid`` the table comes from texts."""

    @property
    def encoder_layer(self) -> int | Literal["auto"] | None:
        """Hidden layer of the encoder."""

    @property
    def id_dropout(self) -> float:
        """Share of the items that a training step sees without their learned part."""


@dataclass(frozen=True)
class TextTable:
    """An item table from texts in training."""

    encoder: Encoder
    whitening: Whitening
    items: TextItems
    choice: Choice | None
    """The comparison of layers; None if the layer was not chosen here."""

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        name: str,
        revision: str | None,
        width: int,
        dataset: Artefact,
        placement: Placement,
    ) -> Self:
        """Encode the texts of a dataset and return the table before training.

        Args:
            config: Also has the fields of :class:`TextSettings`.
            name: The encoder: a directory, hub id or GGUF file.
            revision: Its commit, tag or branch.
            width: Item width d.
            dataset: The dataset, with texts.
            placement: Device of the encoder.

        Raises:
            UsageError: The dataset has no texts, the encoder cannot be used, or the texts do not
                differ in d directions.
            MissingError: The encoder has to be downloaded, and the download fails.
        """
        settings = cast(TextSettings, config)
        data, texts = Dataset.open(dataset), Dataset.texts(dataset)
        rows = [row for row, text in enumerate(texts, start=1) if text]
        written = [text for text in texts if text]
        layer = settings.encoder_layer
        encoder = Encoder.of(name, revision, None if layer == "auto" else layer)
        choice = None
        if layer == "auto":
            choice = choose_layer(encoder, written, rows, width, data, config, placement)
            encoder = replace(encoder, layer=choice.layer)
        vectors = text_vectors(written, encoder, placement.device)
        whitening = Whitening.fit(vectors, width, f"encoder {name}")
        table = table_of(whitening(vectors), rows, len(texts))
        trained = torch.from_numpy(data.counts > 0)
        kind = cast(Kind, settings.item_embeddings)
        items = TextItems(table, kind, trained, settings.id_dropout)
        return cls(encoder, whitening, items, choice)

    @property
    def start(self) -> Tensor:
        """The table before training, ``[V + 1, d]``."""
        return self.items.eval().weight.detach()

    def put_into(self, model: Recommender) -> None:
        """Make the model train this table in the place of its own."""
        cast(Any, model).item_embeddings = self.items

    def fold(self, model: Recommender, folder: Path) -> None:
        """Give the model a plain table of the trained vectors, and store the map from texts.

        Args:
            model: The trained model.
            folder: Folder of the artefact that is being written.
        """
        weights = self.items.adapter.state_dict()
        model.item_embeddings = self.items.folded()
        table = digest_of_table(model.item_vectors())
        TextMap(self.encoder, self.whitening, weights, table).save(folder)

    @property
    def numbers(self) -> dict[str, Any]:
        """Metrics of the stage: ``encoder_layer`` with the compared layers, if it was chosen."""
        return {} if self.choice is None else {"encoder_layer": self.choice.as_dict()}
