"""Score ragged histories packed, against padded to 50: ``python benchmarks/packing.py``.

The lengths are those of Amazon Beauty if ``SLMC_DATA`` names the folder of its log, else drawn
like them (mean 7.7, at most 50). The model has four layers of SmolLM2's shape, random weights.
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
    """History lengths, at most 50."""
    folder = os.environ.get("SLMC_DATA")
    if folder is None:
        return np.minimum(3 + np.random.default_rng(0).geometric(1 / 4.7, 2000), LENGTH)
    with gzip.open(Path(folder) / "amazon-beauty.txt.gz", "rt") as log:
        return np.array([min(len(line.split()) - 2, LENGTH) for line in log])


def model() -> SequentialRecommender:
    """Four random layers of SmolLM2's shape."""
    torch.manual_seed(0)
    return random_models.recommender(decoder=SMOLLM2 | {"layers": 4}, num_items=ITEMS)


if __name__ == "__main__":
    rng, recommender, found = np.random.default_rng(0), model(), lengths()
    plain = PlainModel(model(), top_k=1).model
    print(f"{machine()}; mean length {found.mean():.1f}")
    for batch in (1, 32, 256):
        chosen = rng.choice(found, batch)
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
