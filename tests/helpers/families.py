"""Recommenders on small decoders of any family, with random weights."""

from typing import Any

import torch
from transformers import AutoConfig

from slmc.model.recommender import RecommenderConfig, SequentialRecommender


def small(family: str, items: int, history: int, **options: Any) -> SequentialRecommender:
    """Two layers of width 64; ``options`` are the decoder's."""
    shape = {"max_position_embeddings": 256, "num_key_value_heads": 2} | options
    backbone = AutoConfig.for_model(
        family,
        vocab_size=1,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        **shape,
    )
    torch.manual_seed(0)
    config = RecommenderConfig(backbone, num_items=items, item_dim=16, history=history)
    model = SequentialRecommender(config).eval()
    with torch.no_grad():
        for weight in (model.get_parameter("item_embeddings.weight")[1:], model.output_proj.weight):
            weight.normal_()
    return model
