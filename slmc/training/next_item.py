"""Next-item prediction: the training task of every recommender, and its validation."""

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
from slmc.evaluation.evaluate import rank
from slmc.evaluation.results import protocol, values
from slmc.evaluation.scorers import VectorScorer
from slmc.model import packing
from slmc.model.device import Placement
from slmc.model.loading import Recommender
from slmc.training import catalogue
from slmc.training.costs import Costs
from slmc.training.schedule import Decay
from slmc.training.softmax import Softmax
from slmc.training.types import Batch, Epochs, Validation

VALIDATION_BATCH = 256
NOT_TRAINED = {"start": 0, "steps": 0}


class NextItem(nn.Module):
    """Cross-entropy of the next item over the catalogue, at every position with a target."""

    def __init__(self, model: Recommender, softmax: Softmax) -> None:
        """Train ``model`` with a full or sampled softmax."""
        super().__init__()
        self.model, self.softmax = model, softmax
        softmax.prepare(model)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss terms ``ce`` and ``total`` of a batch."""
        states = self.model.hidden_states(batch.tokens.flatten(), layout(batch))
        targets = batch.targets.flatten()
        has_target = targets > 0
        candidates = self.softmax.draw(targets[has_target])
        loss = catalogue.cross_entropy(
            self.model.head(states[has_target]),
            candidates.vectors(self.model),
            candidates.targets,
            candidates.log_weights,
        )
        return {"ce": loss, "total": loss}


def layout(batch: Batch) -> packing.Packing:
    """Return the attention layout of a batch: each packed row is one window."""
    return packing.rows(batch.segments, batch.positions)


def training_rows(
    config: TrainConfig,
    data: Dataset,
    *,
    prompt: tuple[int, int] = (0, 0),
    packings: int | None = None,
) -> Epochs:
    """Return the training sequences in packed rows; each packing shuffles and cuts them anew.

    Args:
        config: Its seed and targets are used.
        data: The dataset.
        prompt: Tokens before and after the items of a history.
        packings: Number of packings, repeated over the epochs; ``None`` for a new one each epoch.
    """
    sequences = data.train_sequences()

    def pack_rows(packing: int) -> Rows:
        rng = np.random.default_rng((config.seed, packing))
        return pack(sequences, data.history, rng, targets=config.targets, prompt=prompt)

    return Epochs(pack_rows, packings)


def decay_of(like: Artefact | None) -> Decay | None:
    """Return the decay of the run that trained ``like``, for a control with as many steps.

    Raises:
        UsageError: The model was not trained by this slmc, or not at all.
    """
    if like is None:
        return None
    decay = Decay(**json.loads(like.file("metrics.json").read_bytes()).get("decay", NOT_TRAINED))
    if not decay.end:
        raise UsageError(
            f"like: {like.path} does not record for how many steps it was trained.",
            "Name the artefact of a sasrec, teach or distill step that was trained here.",
        )
    return decay


def validation(
    model: Recommender,
    data: Dataset,
    config: TrainConfig,
    placement: Placement,
    softmax: Softmax,
    name: str,
) -> Validation:
    """Return the validation of a model in training, on a sample of the validation users.

    User vectors are computed in the training precision, scores in float32, and ranks under the
    protocol of the config. With a sampled softmax the number of users is limited, so that
    validating takes about a tenth of an epoch (:mod:`slmc.training.costs`).

    Args:
        model: The model to train.
        data: The dataset.
        config: Protocol, metrics and number of users.
        placement: Device and precision.
        softmax: That of the training.
        name: Of the stage, for the log.

    Raises:
        UndecidedError: There is no validation target.
    """
    targets, evaluation = validation_setup(data, config, (config.select_by, "ce"))
    tokens = sum(rows.size for rows in targets.histories)
    if softmax.negatives is not None:
        costs = Costs(model, data, softmax, config.rows)
        count = len(targets.users)
        targets = targets.sample(costs.affordable_users(tokens // count, count, name), config.seed)
        tokens = costs.in_tokens(len(targets.users), sum(h.size for h in targets.histories))
    return Validation(validator(model, targets, data, evaluation, placement), tokens)


def validation_setup(
    data: Dataset, config: TrainConfig, metrics: tuple[str, ...]
) -> tuple[Targets, EvaluateConfig]:
    """Return the sampled validation users, and how they are ranked.

    Args:
        data: The dataset.
        config: Its protocol, seed and number of validation users are used.
        metrics: Names of the metrics; repeated ones are measured once.

    Raises:
        UndecidedError: There is no validation target.
    """
    targets = data.targets("valid").sample(config.validation_users, config.seed)
    if not targets.users:
        raise UndecidedError(
            "data: no user has a validation target.",
            "Use a log with at least 3 interactions of some users, or another split.",
        )
    evaluation = EvaluateConfig(
        ranking=config.ranking,
        exclude_seen=data.excludes_seen(config.exclude_seen),
        split="valid",
        seed=config.seed,
        batch=VALIDATION_BATCH,
        metrics=tuple(dict.fromkeys(metrics)),
    )
    return targets, evaluation


def validator(
    model: Recommender,
    targets: Targets,
    data: Dataset,
    config: EvaluateConfig,
    placement: Placement,
) -> Callable[[], dict[str, float]]:
    """Return a function that ranks targets with the current weights: metric -> mean.

    Args:
        model: On the device of the placement.
        targets: Users of a split.
        data: Their dataset.
        config: Metrics and protocol, ``exclude_seen`` true or false.
        placement: User vectors are computed in its precision, scores in float32.
    """

    def vectors(item_ids: Tensor) -> Tensor:
        with torch.autocast(placement.device.type, placement.dtype, enabled=placement.mixed):
            return model.user_vectors(item_ids).float()

    def measure() -> dict[str, float]:
        with torch.no_grad():
            scorer = VectorScorer(vectors, model.item_vectors())
        ranked = rank(scorer, targets, data.counts, config, "validation", top=0)
        ranked_by = protocol(config)
        return {name: float(values(ranked, name, ranked_by).mean()) for name in config.metrics}

    return measure
