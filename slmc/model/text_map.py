"""The map from item texts to item vectors, stored with every model whose table came from texts.

It gives a new item a vector without training: its text is encoded, whitened and mapped by the
adapter in the same way as the texts of the catalogue. A student whose table was trained from
the teacher's adds a linear map from the teacher's vectors to its own.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
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
MATRIX, OFFSET = "projection.matrix", "projection.offset"
"""Names of the tensors of a projection in this file."""


@dataclass(frozen=True)
class Projection:
    """A linear map from the vectors of one item table to those of another."""

    matrix: Tensor
    """``[d, r]``."""
    offset: Tensor
    """``[r]``."""

    @classmethod
    def fit(cls, before: Tensor, after: Tensor, weights: Tensor) -> tuple[Self, float]:
        """Fit the map by weighted least squares.

        Args:
            before: ``[V, d]`` vectors of the items.
            after: ``[V, r]`` vectors of the same items.
            weights: ``[V]``, of sum 1.

        Returns:
            The map, and the share of the variance of ``after`` that it explains.
        """
        weights = weights.double()
        means = [weights @ table.double() for table in (before, after)]
        root = weights.sqrt()[:, None]
        x, y = ((t.double() - m) * root for t, m in zip((before, after), means, strict=True))
        matrix = torch.linalg.lstsq(x, y, driver="gelsd").solution
        error = (y - x @ matrix).square().sum() / y.square().sum().clamp_min(1e-30)
        return cls(matrix.float(), (means[1] - means[0] @ matrix).float()), 1 - error.item()

    def __call__(self, vectors: Tensor) -> Tensor:
        """Map ``[N, d]`` to ``[N, r]``."""
        return vectors @ self.matrix + self.offset

    def after(self, first: Self | None) -> Self:
        """Return the map that applies ``first`` (or nothing) and then this one."""
        if first is None:
            return self
        return type(self)(first.matrix @ self.matrix, self(first.offset))


@dataclass(frozen=True)
class TextMap:
    """Encoder, whitening and adapter of an item table."""

    encoder: Encoder
    whitening: Whitening
    weights: dict[str, Tensor]
    """Weights of the adapter."""
    table: str
    """Digest of the item table."""
    projection: Projection | None = None
    """What follows the adapter."""

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
            vectors = item_vectors(self.whitening(raw), layers)
            return vectors if self.projection is None else self.projection(vectors)

    def followed_by(self, projection: Projection, table: Tensor) -> Self:
        """Return the map of another item table, whose vectors follow from those of this one."""
        return replace(
            self, projection=projection.after(self.projection), table=digest_of_table(table)
        )

    def fits(self, table: Tensor) -> bool:
        """Return whether the item table is the one that came from texts, not trained since."""
        return digest_of_table(table) == self.table

    def check(self, table: Tensor, label: object) -> None:
        """Raise ``UsageError`` if the item table was trained further after it came from texts."""
        if not self.fits(table):
            raise UsageError(
                f"the item table of {label} was trained further after it came from texts, so texts "
                "alone no longer give matching vectors.",
                "Train with freeze_items: true, or export without new items.",
            )

    def save(self, folder: Path) -> None:
        """Write the map into the folder of a model."""
        tensors = {f"adapter.{name}": tensor for name, tensor in self.weights.items()}
        tensors |= {"mean": self.whitening.mean, "directions": self.whitening.directions}
        if self.projection is not None:
            tensors |= {MATRIX: self.projection.matrix, OFFSET: self.projection.offset}
        metadata = {"encoder": json.dumps(asdict(self.encoder)), "table": self.table}
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(whole, folder / FILE, metadata=metadata)

    @classmethod
    def open(cls, model: Artefact) -> Self:
        """Read the map of a model; raises ``UsageError`` if its table did not come from texts."""
        if FILE not in model.manifest.files:
            raise UsageError(
                f"the item table of {model.path} did not come from texts.",
                "Give new items a column 'neighbours' or 'vector', or train again with "
                "item_embeddings: hybrid.",
            )
        with safe_open(model.file(FILE), framework="pt") as file:
            metadata: dict[str, Any] = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        whitening = Whitening(tensors.pop("mean"), tensors.pop("directions"))
        projection = None
        if MATRIX in tensors:
            projection = Projection(tensors.pop(MATRIX), tensors.pop(OFFSET))
        return cls(
            Encoder(**json.loads(metadata["encoder"])),
            whitening,
            {name.removeprefix("adapter."): tensor for name, tensor in tensors.items()},
            metadata["table"],
            projection,
        )


def has_map(model: Artefact | None) -> bool:
    """Return whether the item table of a model comes from texts."""
    return model is not None and FILE in model.manifest.files


def digest_of_table(table: Tensor) -> str:
    """Return the SHA-256 of an item table ``[V + 1, d]``, float32."""
    return hashlib.sha256(table.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
