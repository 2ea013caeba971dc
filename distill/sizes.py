"""Size of the teachers' states on disk, computed without loading a model. No torch here."""

import json
from collections.abc import Mapping

import numpy as np

from slmc.artefact import Artefact
from slmc.data.batches import pack
from slmc.data.dataset import Dataset
from slmc.distill.config import OF_SCORES, OF_STATES, TEACHERS, DistillConfig

FLOAT16_BYTES = 2


def states_bytes(config: DistillConfig, inputs: Mapping[str, Artefact]) -> int:
    """Return the size of the states that a distillation stores, all packings and teachers.

    Args:
        config: Its loss terms, blocks and packings.
        inputs: Role -> artefact: the data, and the teachers.
    """
    weights = set(config.losses.weights())
    on_states, on_scores = bool(OF_STATES & weights), bool(OF_SCORES & weights)
    models = [
        json.loads(inputs[role].file("config.json").read_bytes())
        for role in TEACHERS
        if role in inputs
    ]
    values = 0  # of one token
    if on_states:
        values += config.blocks * models[0]["backbone_config"]["hidden_size"]
    if on_scores:
        values += sum(model["item_dim"] for model in models)
    if not values:
        return 0
    data = Dataset.open(inputs["data"])
    prompt = (models[0].get("prefix_length", 0), models[0].get("suffix_length", 0))
    rng = np.random.default_rng((config.seed, 0))
    rows = pack(data.train_sequences(), data.history, rng, targets=config.targets, prompt=prompt)
    return min(config.packings, config.epochs) * rows.item_ids.size * values * FLOAT16_BYTES
