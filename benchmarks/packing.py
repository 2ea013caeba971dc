"""Compare scoring of packed and padded histories: ``python benchmarks/packing.py``.

The lengths are those of Amazon Beauty if ``SLMC_DATA`` is the folder of its log, else they are
drawn with a similar distribution (mean 7.7, at most 50). Padded histories have 50 items. The model
has four layers of SmolLM2's shape with random weights.
"""

import gzip
import os
from pathlib import Path

import numpy as np
import torch
from timing import compare, machine

from slmc.data.batches import pad_left
from slmc.export.runtime.pytorch import PlainModel, plain_user_vectors
from slmc.model import random_models
from slmc.model.random_models import SMOLLM2
from slmc.model.recommender import SequentialRecommender

LENGTH, ITEMS, ROUNDS = 50, 12_101, 7


def lengths() -> np.ndarray:
    """Return the lengths of histories, at most 50."""
    folder = os.environ.get("SLMC_DATA")
    if folder is None:
        return np.minimum(3 + np.random.default_rng(0).geometric(1 / 4.7, 2000), LENGTH)
    with gzip.open(Path(folder) / "amazon-beauty.txt.gz", "rt") as log:
        return np.array([min(len(line.split()) - 2, LENGTH) for line in log])


def model() -> SequentialRecommender:
    """Return a model with four random layers of SmolLM2's shape."""
    torch.manual_seed(0)
    return random_models.recommender(decoder=SMOLLM2 | {"layers": 4}, num_items=ITEMS)


if __name__ == "__main__":
    rng, recommender, history_lengths = np.random.default_rng(0), model(), lengths()
    plain = PlainModel(model(), top_k=1).model
    print(f"{machine()}; mean length {history_lengths.mean():.1f}")
    for batch in (1, 32, 256):
        chosen = rng.choice(history_lengths, batch)
        histories = [rng.integers(1, ITEMS + 1, n).astype(np.int32) for n in chosen]
        packed = torch.from_numpy(pad_left(histories))
        padded = torch.from_numpy(pad_left(histories, LENGTH))
        with torch.inference_mode():
            compare(
                f"batch {batch}",
                lambda ids=padded: plain_user_vectors(plain, ids),
                lambda ids=packed: recommender.user_vectors(ids),
                ROUNDS,
            )
