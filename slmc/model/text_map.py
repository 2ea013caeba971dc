"""The map from item texts to item vectors, stored with every model whose table came from texts.

It gives a new item a vector without training: its text is encoded, whitened and mapped by the
adapter in the same way as the texts of the catalogue.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from slmc.artefact import Artefact
from slmc.errors import UsageError
from slmc.model.sources import digest_of
from slmc.model.text_encoder import Encoder, text_vectors
from slmc.model.text_items import Whitening, adapter, item_vectors

FILE = "text_items.safetensors"
ROLES = ("student", "model", "teacher", "sasrec")
"""Roles of the models that a stage may take its item table from, in this order."""


@dataclass(frozen=True)
class TextMap:
    """Encoder, whitening and adapter of an item table."""

    encoder: Encoder
    whitening: Whitening
    weights: dict[str, Tensor]
    """Weights of the adapter."""
    table: str
    """Digest of the item table."""

    def vectors(self, texts: Sequence[str], device: torch.device | str = "cpu") -> Tensor:
        """Return the vectors ``[N, d]`` of the texts of new items.

        Raises:
            UsageError: The encoder has changed since the item table was trained.
            MissingError: The encoder cannot be downloaded.
        """
        known = self.encoder
        if digest_of(known.name, known.revision) != known.digest:
            raise UsageError(
                f"encoder {known.name}: its files have changed since the item table was trained.",
                "Restore the same files, or train again with this encoder.",
            )
        raw = text_vectors(texts, known, device)
        layers = adapter(self.whitening.directions.shape[1])
        layers.load_state_dict(self.weights)
        with torch.inference_mode():
            return item_vectors(self.whitening(raw), layers)

    def check(self, table: Tensor, label: object) -> None:
        """Raise ``UsageError`` if the item table was trained further after it came from texts."""
        if digest_of_table(table) != self.table:
            raise UsageError(
                f"the item table of {label} was trained further after it came from texts, so texts "
                "alone no longer give matching vectors.",
                "Train with freeze_items: true, or export without new items.",
            )

    def save(self, folder: Path) -> None:
        """Write the map into the folder of a model."""
        tensors = {f"adapter.{name}": tensor for name, tensor in self.weights.items()}
        tensors |= {"mean": self.whitening.mean, "directions": self.whitening.directions}
        metadata = {"encoder": json.dumps(asdict(self.encoder)), "table": self.table}
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(whole, folder / FILE, metadata=metadata)

    @classmethod
    def open(cls, model: Artefact) -> Self:
        """Read the map of a model; raises ``UsageError`` if its table did not come from texts."""
        if FILE not in model.manifest.files:
            raise UsageError(
                f"the item table of {model.path} did not come from texts.",
                "Set sasrec.item_embeddings to text or hybrid, and train again.",
            )
        with safe_open(model.file(FILE), framework="pt") as file:
            metadata: dict[str, Any] = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return cls(
            Encoder(**json.loads(metadata["encoder"])),
            Whitening(tensors.pop("mean"), tensors.pop("directions")),
            {name.removeprefix("adapter."): tensor for name, tensor in tensors.items()},
            metadata["table"],
        )


def digest_of_table(table: Tensor) -> str:
    """Return the SHA-256 of an item table ``[V + 1, d]``, float32."""
    return hashlib.sha256(table.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
