"""Next-item prediction: the loss that every recommender is trained with, and its validation."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from slmc import catalogue
from slmc.config import TrainConfig
from slmc.data.batches import Rows, pack, pad_left
from slmc.data.dataset import Dataset, Targets
from slmc.errors import UndecidedError
from slmc.model import packing
from slmc.model.device import Placement
from slmc.model.loading import Recommender
from slmc.train import Batch, Epochs

VALIDATION_BATCH = 64


class NextItem(nn.Module):
    """Cross-entropy of the next item over the catalogue, at every position with a target."""

    def __init__(self, model: Recommender) -> None:
        """Train ``model``."""
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The terms ``ce`` and ``total`` of a batch."""
        states = self.model.hidden_states(batch.tokens.flatten(), layout(batch))
        wanted = batch.targets.flatten()
        kept = wanted > 0
        loss = catalogue.cross_entropy(
            self.model.head(states[kept]), self.model.item_vectors(), wanted[kept]
        )
        return {"ce": loss, "total": loss}


def layout(batch: Batch) -> packing.Packing:
    """Each training row as a window of attention."""
    return packing.rows(batch.segments, batch.positions)


def training_rows(
    config: TrainConfig,
    data: Dataset,
    *,
    prompt: tuple[int, int] = (0, 0),
    packings: int | None = None,
) -> Epochs:
    """The training sequences in packed rows, shuffled and cut anew for every packing.

    Args:
        config: Its seed and targets.
        data: The dataset.
        prompt: Tokens before and after the items of a history.
        packings: How many packings there are, in turn; ``None`` for a new one each epoch.
    """
    sequences = data.train_sequences()

    def make(packing: int) -> Rows:
        rng = np.random.default_rng((config.seed, packing))
        return pack(sequences, data.history, rng, targets=config.targets, prompt=prompt)

    return Epochs(make, packings)


def validation(model: Recommender, targets: Targets, placement: Placement) -> Callable[[], float]:
    """A function that gives the mean cross-entropy of validation targets, in nats.

    It computes in the precision of training, in batches of like length. Raises
    :class:`UndecidedError` if there is no target.
    """
    if not len(targets.targets):
        raise UndecidedError(
            "data: no user has a validation target.",
            "Use a log with at least 3 interactions of some users, or another split.",
        )
    order = sorted(range(len(targets.histories)), key=lambda u: len(targets.histories[u]))
    batches = [order[i : i + VALIDATION_BATCH] for i in range(0, len(order), VALIDATION_BATCH)]

    @torch.no_grad()
    def measure() -> float:
        total = 0.0
        for users in batches:
            ids = torch.from_numpy(pad_left([targets.histories[u] for u in users]))
            wanted = torch.from_numpy(targets.targets[users]).to(placement.device)
            with torch.autocast(placement.device.type, placement.dtype, enabled=placement.mixed):
                vectors = model.user_vectors(ids.to(placement.device))
            loss = catalogue.cross_entropy(vectors, model.item_vectors(), wanted)
            total += loss.item() * len(users)
        return total / len(order)

    return measure
