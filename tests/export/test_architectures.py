"""Decoders of other families, with random weights, in both layouts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from slmc.data.batches import pad_left
from slmc.export import passes
from slmc.export.onnx import to_onnx
from slmc.model.recommender import RecommenderConfig, SequentialRecommender

HISTORY, ITEMS = 12, 30
SAME = 1e-3
"""Gemma's scores reach 1e2; float32 rounding of two layers leaves 1e-6 of that."""
SHAPES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 5},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 5},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 5},
    "phi3": {},
    "smollm3": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("family", SHAPES)
def test_a_family_is_exported(family: str, layout: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    backbone = AutoConfig.for_model(
        family,
        vocab_size=1,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        **SHAPES[family],
    )
    torch.manual_seed(0)
    config = RecommenderConfig(backbone, num_items=ITEMS, item_dim=16, history=HISTORY)
    model = SequentialRecommender(config).eval()
    with torch.no_grad():
        model.item_embeddings.weight[1:].normal_()
        model.output_proj.weight.normal_()
    passes.save(to_onnx(model, layout, ITEMS, opset=20), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    rng = np.random.default_rng(0)
    for batch, length in ((1, 1), (1, HISTORY), (9, HISTORY)):
        item_ids = pad_left(
            [rng.integers(1, ITEMS + 1, max(1, length - row)) for row in range(batch)]
        )
        with torch.inference_mode():
            expected = model(torch.from_numpy(item_ids))[:, 1:].numpy()
        rows, scores = session.run(None, {"item_ids": item_ids})
        assert np.abs(np.take_along_axis(expected, rows - 1, axis=1) - scores).max() < SAME
        assert (np.sort(rows, axis=1) == np.arange(1, ITEMS + 1)).all()
