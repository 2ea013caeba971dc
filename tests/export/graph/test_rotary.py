"""Rotary positions that an engine looks up are those that its decoder computes."""

import numpy as np
import onnxruntime
import pytest
import torch
from answers import error
from families import small
from small_graphs import model, normal, operators, run

from slmc.export.graph.ir import drop_unused
from slmc.export.graph.optimize import to_onnx
from slmc.export.graph.rotary import RotaryTables, fuse_rotary, rotary_tables
from slmc.model import random_models
from slmc.model.recommender import SequentialRecommender

ITEMS, HISTORY = 30, 12
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}


def recommender(positions: int) -> SequentialRecommender:
    """With frequencies that change after ``positions`` positions."""
    changing = {"max_position_embeddings": positions, "rope_parameters": DYNAMIC}
    return small("llama", ITEMS, HISTORY, **changing)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_tables_hold_what_the_decoder_computes(family: str) -> None:
    recommender = random_models.recommender(family, {"head_dim": 16, "layers": 6}, num_items=3)
    computed = recommender.backbone.rotary_emb
    tables = RotaryTables(computed, 40)
    positions = torch.tensor([[0, 39, 7, 7]])
    kinds = [()] if family == "llama" else [("full_attention",), ("sliding_attention",)]
    for kind in kinds:
        ours, theirs = (part(torch.zeros(1), positions, *kind) for part in (tables, computed))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_frequencies_that_depend_on_the_length_are_not_looked_up() -> None:
    decoder = recommender(positions=8)
    computed = decoder.backbone.rotary_emb
    with pytest.raises(ValueError, match="length"):
        RotaryTables(computed, HISTORY)
    with rotary_tables(decoder):
        assert decoder.backbone.rotary_emb is computed


@pytest.mark.slow
def test_frequencies_that_could_change_later_are_exported() -> None:
    decoder = recommender(positions=64)
    computed = decoder.backbone.rotary_emb
    graph = to_onnx(decoder, "packed", ITEMS, opset=21)
    assert decoder.backbone.rotary_emb is computed
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    far = error(
        lambda rows: session.run(["top_scores"], {"item_ids": rows})[0],
        decoder,
        [(1, 1), (3, HISTORY)],
        ITEMS,
    )
    assert far < 1e-4


ROTATION = """(float[1,T,8] y, int64[1,T] position_ids) => (float[1,2,T,4] rotated)
    <float[1,2,T,4] x> {
    positions = Identity (position_ids)
    cos = Gather <axis = 0> (cosines, positions)
    cos_heads = Unsqueeze (cos, one)
    sin = Gather <axis = 0> (sines, positions)
    sin_heads = Unsqueeze (sin, one)
    by_head = Reshape (y, heads)
    x = Transpose <perm = [0, 2, 1, 3]> (by_head)
    first = Slice (x, zero, two, last)
    second = Slice (x, two, end, last)
    negated = Neg (second)
    crossed = Concat <axis = -1> (negated, first)
    plain = Mul (x, cos_heads)
    moved = Mul (crossed, sin_heads)
    rotated = Add (plain, moved)
}"""


@pytest.mark.parametrize("halves_are_equal", [True, False])
def test_fuse_rotary(halves_are_equal: bool) -> None:
    cosines, sines = (np.tile(normal(5, 2, seed=seed), 2) for seed in (3, 4))
    sines[0, 3] += 0 if halves_are_equal else 1
    fused = model(
        ROTATION, cosines=cosines, sines=sines, one=[1], heads=[1, -1, 2, 4], zero=[0], two=[2],
        end=[2**62], last=[3],
    )  # fmt: skip
    inputs = {"y": normal(1, 3, 8, seed=1), "position_ids": np.array([[0, 4, 1]])}
    (before,) = run(fused, **inputs)
    fuse_rotary(fused.graph)
    drop_unused(fused)
    kinds = operators(fused.graph)
    if halves_are_equal:
        expected = ["Identity", "Reshape", "Reshape", "RotaryEmbedding", "Reshape", "Transpose"]
        assert kinds == expected
    else:
        assert "RotaryEmbedding" not in kinds
    np.testing.assert_allclose(run(fused, **inputs)[0], before, rtol=1e-4, atol=1e-6)
