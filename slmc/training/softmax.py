"""The items that the softmax of a training step sums over: the whole catalogue, or a sample.

The cross-entropy of a position needs the sum of ``exp(score)`` over all V items. Over a large
catalogue that sum is estimated from two parts: the targets of the batch, each counted once, and
``negatives`` of the other items, drawn uniformly without replacement, each counted as often as
items stand behind it, ``(V - targets) / negatives`` times. For every batch the expected value of
this sum is the sum over the catalogue, and with all items drawn it is that sum. This is the scaled
cross-entropy of Xu et al. 2024 (arXiv 2408.14238, section 4), with the scale that makes the sum
unbiased, as in sampled softmax (Jean et al. 2015, arXiv 1412.2007). Unlike there, all positions
share the negatives, so that one matmul scores thousands of them.

The logarithm of an unbiased sum is too small on average, by half of the sum's relative variance:
the bias of the loss shrinks like ``1 / negatives``. Letters: ``N`` positions, ``V`` items, ``d``
item width, ``C`` candidates (targets and negatives).
"""

import logging
import math
from dataclasses import dataclass
from typing import Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from slmc.config import TrainConfig
from slmc.model.loading import Recommender
from slmc.model.text_items import TextItems

LARGE_CATALOGUE = 100_000
"""Items above which ``softmax: auto`` samples. Below, the full softmax takes less than a second a
step on one CPU core and needs no more memory."""

log = logging.getLogger("slmc.train")


@dataclass(frozen=True)
class Candidates:
    """Items of one training step, and the step's targets among them."""

    rows: Tensor | None
    """``[C + 1]`` int64 rows, ascending, padding (row 0) first; ``None`` for all rows."""
    targets: Tensor
    """``[N]`` int64, place of each target in ``rows``."""
    log_weights: Tensor | None
    """``[C]`` float32: logarithm of how many items each one stands for; ``None`` for all 1."""

    def vectors(self, model: Recommender) -> Tensor:
        """Return the vectors ``[C + 1, d]`` of the candidates, with gradient."""
        if self.rows is None:
            return model.item_vectors()
        return cast(Tensor, model.item_embeddings(self.rows))

    def select(self, table: Tensor) -> Tensor:
        """Return their rows of a table ``[V + 1, e]``."""
        return table if self.rows is None else table[self.rows]


@dataclass(frozen=True)
class Softmax:
    """How many items the loss of a training run sums over."""

    num_items: int
    negatives: int | None
    """Items drawn at each step; ``None`` for the full softmax."""

    @classmethod
    def of(cls, config: TrainConfig, num_items: int, name: str) -> Self:
        """Resolve the settings for a catalogue, and log what ``auto`` chose."""
        asked = (
            num_items > LARGE_CATALOGUE if config.softmax == "auto" else config.softmax == "sampled"
        )
        if not asked:
            return cls(num_items, None)
        sampled = config.negatives < num_items
        kind = "sampled softmax over the targets of a batch and" if sampled else "full softmax:"
        log.info(
            "%s: %s %s of %s items (softmax: %s)",
            name,
            kind,
            f"{min(config.negatives, num_items):,}",
            f"{num_items:,}",
            config.softmax,
        )
        return cls(num_items, config.negatives if sampled else None)

    def prepare(self, model: Recommender) -> None:
        """Let the item table of ``model`` have gradients for the rows of a step only, if sampled.

        The full softmax gives every row a gradient.
        """
        table = model.item_embeddings
        if self.negatives is not None and isinstance(table, nn.Embedding | TextItems):
            table.sparse = True

    def draw(self, targets: Tensor) -> Candidates:
        """Return the candidates of a step; the draw follows torch's random state.

        Args:
            targets: ``[N]`` int64 in 1..V, the targets of all positions of the step.
        """
        if self.negatives is None:
            return Candidates(None, targets, None)
        known = targets.unique()
        others = self.num_items - len(known)
        count = min(self.negatives, others)
        rows = torch.cat([known.new_zeros(1), known, _rows_except(known, others, count)])
        rows, order = rows.sort()
        log_weights = torch.zeros(len(rows), device=targets.device)
        if count:
            log_weights[1 + len(known) :] = math.log(others / count)
        return Candidates(rows, torch.searchsorted(rows, targets), log_weights[order][1:])


def _rows_except(known: Tensor, others: int, count: int) -> Tensor:
    """Return distinct rows that are not ``known``, uniform among them, in O(count).

    Args:
        known: Sorted rows, without duplicates.
        others: Number of all other rows.
        count: Number of rows to draw.
    """
    rng = np.random.default_rng(int(torch.randint(2**62, ())))
    drawn = rng.choice(others, size=count, replace=False, shuffle=False)
    places = torch.from_numpy(drawn).to(known.device)
    # The place of a row among the others is its number minus the known rows below it.
    below = known - 1 - torch.arange(len(known), device=known.device)
    return places + 1 + torch.searchsorted(below, places, right=True)
