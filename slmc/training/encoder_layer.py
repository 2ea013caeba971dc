"""Choose the layer of a text encoder on validation users, without training.

The middle layers of an LLM describe a text better than its last ones, which predict tokens; which
one is best differs by model. For a few layers, spread over the depth, the items are ranked by the
similarity of their text to the texts of a user's history, and the layer that ranks validation
targets best is taken. All layers are read in one pass over the texts.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor
from torch.nn.functional import normalize

from slmc.config import CROSS_ENTROPIES, TrainConfig
from slmc.data.dataset import Dataset
from slmc.evaluation.evaluate import rank
from slmc.evaluation.results import protocol, values
from slmc.evaluation.scorers import VectorScorer
from slmc.model.device import Placement
from slmc.model.text_encoder import Encoder, candidate_layers, layer_vectors
from slmc.model.text_items import Whitening, table_of
from slmc.training.next_item import validation_setup

log = logging.getLogger("slmc.training")

UNTRAINED_METRIC = "ndcg"
"""Metric where the recipe selects by a cross-entropy, which similarities do not have."""


@dataclass(frozen=True)
class Choice:
    """The layer of an encoder that was chosen, and the values that decided."""

    layer: int
    depth: int
    """Layers of the encoder."""
    metric: str
    """Validation metric of the ranking by text similarity, without training."""
    values: dict[str, float]
    """Layer -> value of the metric."""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON data."""
        return asdict(self)


def choose_layer(
    encoder: Encoder,
    texts: Sequence[str],
    rows: list[int],
    width: int,
    data: Dataset,
    config: TrainConfig,
    placement: Placement,
) -> Choice:
    """Return the layer whose text similarity ranks validation targets best.

    Args:
        encoder: The encoder; its ``layer`` is not used.
        texts: Texts, none empty.
        rows: Row of each text.
        width: Item width d.
        data: The dataset.
        config: Its metric, protocol and validation users are used.
        placement: Device of the encoder.

    Raises:
        UsageError, MissingError: As :func:`slmc.model.text_encoder.text_vectors`; the texts do not
            differ in d directions.
        UndecidedError: No user has a validation target.
    """
    layers, depth = candidate_layers(encoder)
    metric = UNTRAINED_METRIC if config.select_by in CROSS_ENTROPIES else config.select_by
    targets, evaluation = validation_setup(data, config, (metric,))
    vectors = layer_vectors(texts, encoder, layers, placement.device)
    measured: dict[int, float] = {}
    for layer in layers:
        whitening = Whitening.fit(vectors[layer], width, f"encoder {encoder.name}")
        table = table_of(whitening(vectors[layer]), rows, data.num_items)
        ranked = rank(similarity(table), targets, data.counts, evaluation, "encoder layers", top=0)
        measured[layer] = float(values(ranked, metric, protocol(evaluation)).mean())
    best = max(layers, key=lambda layer: measured[layer])
    shown = ", ".join(f"layer {layer} {value:.4f}" for layer, value in measured.items())
    log.info(
        "encoder %s: layer %d of %d ranks best by text similarity alone (validation %s: %s)",
        encoder.name, best, depth, metric, shown,
    )  # fmt: skip
    return Choice(best, depth, metric, {str(layer): value for layer, value in measured.items()})


def similarity(table: Tensor) -> VectorScorer:
    """Return a scorer by the mean cosine similarity of an item to the items of a history.

    Args:
        table: ``[V + 1, d]`` whitened text vectors; 0 for padding and items without a text.
    """
    units = normalize(table, dim=1)

    def users(item_ids: Tensor) -> Tensor:
        return units[item_ids].mean(dim=1)

    return VectorScorer(users, units)
