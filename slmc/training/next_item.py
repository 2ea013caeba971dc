"""Next-item prediction: the loss that every recommender is trained with, and its validation."""

import json
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from slmc.artefact import Artefact
from slmc.config import TrainConfig
from slmc.data.batches import Rows, pack
from slmc.data.dataset import Dataset, Targets
from slmc.errors import UndecidedError, UsageError
from slmc.evaluation.config import EvaluateConfig
from slmc.evaluation.evaluate import VectorScorer, rank
from slmc.evaluation.measured import protocol, values
from slmc.model import packing
from slmc.model.device import Placement
from slmc.model.loading import Recommender
from slmc.training import catalogue
from slmc.training.schedule import Decay
from slmc.training.types import Batch, Epochs, Validation

VALIDATION_BATCH = 256
NOT_TRAINED = {"start": 0, "steps": 0}


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


def decay_of(like: Artefact | None) -> Decay | None:
    """The decay of the run that made a model, for a control that is trained for as many steps.

    Raises:
        UsageError: The model was not trained by this slmc, or not at all.
    """
    if like is None:
        return None
    decay = Decay(**json.loads(like.file("metrics.json").read_bytes()).get("decay", NOT_TRAINED))
    if not decay.end:
        raise UsageError(
            f"like: {like.path} does not say for how many steps it was trained.",
            "Name the artefact of a sasrec, teach or distill step that was trained here.",
        )
    return decay


def validation(
    model: Recommender, data: Dataset, config: TrainConfig, placement: Placement
) -> Validation:
    """How a model in training ranks the validation users (a sample of them, if there are many).

    Vectors are computed in the precision of training, scores in float32, ranks under the
    protocol of the config. Raises :class:`UndecidedError` if there is no validation target.
    """
    targets = data.targets("valid").sample(config.validation_users, config.seed)
    if not targets.users:
        raise UndecidedError(
            "data: no user has a validation target.",
            "Use a log with at least 3 interactions of some users, or another split.",
        )
    asked = EvaluateConfig(
        ranking=config.ranking,
        exclude_seen=data.excludes_seen(config.exclude_seen),
        split="valid",
        seed=config.seed,
        batch=VALIDATION_BATCH,
        metrics=tuple(dict.fromkeys((config.select_by, "ce"))),
    )
    tokens = sum(rows.size for rows in targets.histories)
    return Validation(ranking(model, targets, data, asked, placement), tokens)


def ranking(
    model: Recommender,
    targets: Targets,
    data: Dataset,
    config: EvaluateConfig,
    placement: Placement,
) -> Callable[[], dict[str, float]]:
    """A function that ranks targets with the model as it is: the mean of each metric.

    Args:
        model: On the placement's device.
        targets: Users of a split.
        data: The dataset that they are of.
        config: Metrics and protocol, ``exclude_seen`` a truth value.
        placement: Vectors are computed in its precision, scores in float32.
    """

    def vectors(item_ids: Tensor) -> Tensor:
        with torch.autocast(placement.device.type, placement.dtype, enabled=placement.mixed):
            return model.user_vectors(item_ids).float()

    def measure() -> dict[str, float]:
        scorer = VectorScorer(vectors, model.item_vectors().detach())
        ranked = rank(scorer, targets, data.counts, config, "validation", top=0)
        shared = protocol(config)
        return {name: float(values(ranked, name, shared).mean()) for name in config.metrics}

    return measure
