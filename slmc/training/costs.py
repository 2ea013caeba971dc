"""The cost of a validation, relative to training with a sampled softmax.

With the full softmax a validation costs little beside an epoch. A sampled one makes an epoch so
cheap that scoring every item for 10,000 users can take longer than training, so the number of
users follows from the costs. They are counted in floating-point operations, not measured, so that
two runs validate on the same users. Letters: ``V`` items, ``d`` item width.
"""

import logging

from slmc.data.dataset import Dataset
from slmc.model.loading import Recommender
from slmc.training.softmax import Softmax

VALIDATION_SHARE = 0.1
"""Largest share of the training time that validations may take."""
LEAST_USERS = 1_000
"""Fewest validation users, whatever they cost: fewer are too noisy to stop a training by."""
FORWARD, TRAINING = 2, 6
"""Operations per parameter and token, of a forward pass and of training."""
SCORING_PASSES = 2
"""Passes over a catalogue of several blocks (:mod:`slmc.evaluation.ranking`)."""
PER_SCORE = 400
"""Operations that take as long as the element-wise work on one score. Measured on a CPU for
rankings of 1,000,000 items (10 ns a score in all) and for sampled cross-entropy (15 ns)."""

log = logging.getLogger("slmc.train")


class Costs:
    """Operations of a model in training and in validation."""

    def __init__(self, model: Recommender, data: Dataset, softmax: Softmax, rows: int) -> None:
        """Count them.

        Args:
            model: The model to train.
            data: The dataset.
            softmax: Its number of candidates is part of the cost of training.
            rows: Packed rows of a step.
        """
        table = model.item_embeddings
        inside = {id(p) for p in table.parameters()}
        layers = sum(p.numel() for p in model.parameters() if id(p) not in inside)
        width, items = model.config.item_dim, data.num_items
        self.tokens = sum(len(rows) - 1 for rows in data.train_sequences())
        candidates = items
        if softmax.negatives is not None:
            candidates = min(items, softmax.negatives + rows * data.history)
        self.per_token = TRAINING * layers + candidates * (TRAINING * width + PER_SCORE)
        self.per_history_item = FORWARD * layers
        self.per_user = items * (SCORING_PASSES * FORWARD * width + PER_SCORE)

    def affordable_users(self, history: int, most: int, name: str) -> int:
        """Return the number of validation users within the share of an epoch, and log it.

        Args:
            history: Items of a history that is ranked.
            most: Largest number of users.
            name: Of the stage, for the log.
        """
        per_user = self.per_user + self.per_history_item * history
        epoch = self.per_token * self.tokens
        users = min(most, max(LEAST_USERS, int(VALIDATION_SHARE * epoch / per_user)))
        if users < most:
            log.info(
                "%s: validation ranks %s users (validation_users: %s), about %.0f %% of an epoch",
                name,
                f"{users:,}",
                f"{most:,}",
                100 * users * per_user / epoch,
            )
        return users

    def in_tokens(self, users: int, history_items: int) -> int:
        """Return how many forward passes of a token cost as much as one validation.

        Args:
            users: Validation users.
            history_items: Items of all their histories.
        """
        validation = self.per_user * users + self.per_history_item * history_items
        return round(TRAINING / FORWARD * validation / self.per_token)
