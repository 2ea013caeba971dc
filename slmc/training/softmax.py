"""The items that the softmax of a training step sums over: the whole catalogue, or a sample.

The cross-entropy of a position needs the sum of ``exp(score)`` over all V items. Over a large
catalogue that sum is estimated from two parts: the targets of the batch, each counted once, and
``negatives`` of the other items, drawn uniformly without replacement, each counted as often as
items stand behind it, ``(V - targets) / negatives`` times. For every batch the expected value of
this sum is the sum over the catalogue, and with all items drawn it is that sum. This is the scaled
cross-entropy of Xu et al. 2024 (arXiv 2408.14238, section 4), with the scale that makes the sum
unbiased, as in sampled softmax (Jean et al. 2015, arXiv 1412.2007). Unlike there, all positions
share the negatives, so that one matmul scores thousands of them.

Items without training interactions are left out where item vectors come from texts. They are new:
as negatives of every target they would teach the model never to recommend their kind.

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
from numpy.typing import NDArray
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
    """V, without the items that are left out."""
    negatives: int | None
    """Items drawn at each step; ``None`` for the full softmax."""
    rows: Tensor | None = None
    """``[V + 1]`` int64, ascending: the rows that take part, padding first; ``None`` for all."""

    @classmethod
    def of(
        cls, config: TrainConfig, counts: NDArray[np.integer], name: str, *, from_texts: bool
    ) -> Self:
        """Resolve the settings for a catalogue, and log what ``auto`` chose.

        Args:
            config: The training.
            counts: Training interactions of each row, with that of padding.
            name: Of the stage, for the log.
            from_texts: Whether the item table comes from texts.
        """
        rows, new = None, int((counts[1:] == 0).sum())
        num_items = len(counts) - 1
        if from_texts and new:
            rows = torch.from_numpy(np.flatnonzero(np.append(True, counts[1:] > 0)))
            num_items -= new
            log.info(
                "%s: %d items without training interactions take no part in the loss; their "
                "vectors follow from their texts",
                name, new,
            )  # fmt: skip
        asked = (
            num_items > LARGE_CATALOGUE if config.softmax == "auto" else config.softmax == "sampled"
        )
        if not asked:
            return cls(num_items, None, rows)
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
        return cls(num_items, config.negatives if sampled else None, rows)

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
        rows = None if self.rows is None else self.rows.to(targets.device)
        places = targets if rows is None else torch.searchsorted(rows, targets)
        if self.negatives is None:
            return Candidates(rows, places, None)
        drawn, log_weights = self._drawn(places.unique())
        places = torch.searchsorted(drawn, places)
        return Candidates(drawn if rows is None else rows[drawn], places, log_weights)

    def _drawn(self, known: Tensor) -> tuple[Tensor, Tensor]:
        """Draw among the V items beside the ``known`` ones: ``[C + 1]`` places, ``[C]`` weights."""
        others = self.num_items - len(known)
        count = min(self.negatives or others, others)
        places = torch.cat([known.new_zeros(1), known, _rows_except(known, others, count)])
        places, order = places.sort()
        log_weights = torch.zeros(len(places), device=known.device)
        if count:
            log_weights[1 + len(known) :] = math.log(others / count)
        return places, log_weights[order][1:]


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
