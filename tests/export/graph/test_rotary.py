"""Rotary positions that an engine looks up are those that its decoder computes."""

import onnxruntime
import pytest
import torch
from answers import error
from families import small
from transformers import AutoConfig

from slmc.export.graph.optimize import to_onnx
from slmc.export.graph.rotary import RotaryTables, rotary_tables
from slmc.model.recommender import RecommenderConfig, SequentialRecommender

ITEMS, HISTORY = 30, 12
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}


def recommender(positions: int) -> SequentialRecommender:
    """With frequencies that change beyond so many positions."""
    changing = {"max_position_embeddings": positions, "rope_parameters": DYNAMIC}
    return small("llama", ITEMS, HISTORY, **changing)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_what_is_looked_up_is_what_is_computed(family: str) -> None:
    config = AutoConfig.for_model(family, hidden_size=64, head_dim=16, num_hidden_layers=6)
    model = SequentialRecommender(RecommenderConfig(config, num_items=3))
    computed = model.backbone.rotary_emb
    tables = RotaryTables(computed, 40)
    positions = torch.tensor([[0, 39, 7, 7]])
    kinds = [()] if family == "llama" else [("full_attention",), ("sliding_attention",)]
    for kind in kinds:
        ours, theirs = (part(torch.zeros(1), positions, *kind) for part in (tables, computed))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_frequencies_that_hang_on_the_length_are_not_looked_up() -> None:
    model = recommender(positions=8)
    computed = model.backbone.rotary_emb
    with pytest.raises(ValueError, match="length"):
        RotaryTables(computed, HISTORY)
    with rotary_tables(model):
        assert model.backbone.rotary_emb is computed


@pytest.mark.slow
def test_frequencies_that_could_change_later_are_exported() -> None:
    model = recommender(positions=64)
    computed = model.backbone.rotary_emb
    graph = to_onnx(model, "packed", ITEMS, opset=21)
    assert model.backbone.rotary_emb is computed
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    far = error(
        lambda rows: session.run(["top_scores"], {"item_ids": rows})[0],
        model,
        [(1, 1), (3, HISTORY)],
        ITEMS,
    )
    assert far < 1e-4
