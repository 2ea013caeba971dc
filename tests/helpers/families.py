"""Small recommenders on decoders of any kind, whose scores differ clearly between users."""

from typing import Any

import torch

from slmc.model import random_models
from slmc.model.recommender import SequentialRecommender


def small(kind: str, items: int, history: int, **options: Any) -> SequentialRecommender:
    """Two layers of width 64; ``options`` are the decoder's."""
    torch.manual_seed(0)
    decoder = {"max_position_embeddings": 256} | options
    model = random_models.recommender(kind, decoder, num_items=items, item_dim=16, history=history)
    with torch.no_grad():
        for weight in (model.get_parameter("item_embeddings.weight")[1:], model.output_proj.weight):
            weight.normal_()
    return model
