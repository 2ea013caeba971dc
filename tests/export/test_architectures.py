"""Decoders of other families, with random weights, in both layouts."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from families import small
from numpy.typing import NDArray

from slmc.data.batches import pad_left
from slmc.export.config import ExportConfig
from slmc.export.graph import serialize
from slmc.export.graph.optimize import to_onnx
from slmc.export.reference import cpu_emulation
from slmc.export.reference.precision import linear_layers
from slmc.export.tensorrt import build as tensorrt
from slmc.export.tensorrt.flavours import FLAVOURS
from slmc.export.tensorrt.graph import tensorrt_graph
from slmc.model.codes import Codes, rounded
from slmc.model.recommender import SequentialRecommender

HISTORY, ITEMS = 12, 30
SAME = 1e-3
"""Gemma's scores reach 1e2; float32 rounding of two layers leaves 1e-6 of that."""
HALF = 0.05
"""A difference in the last bit moves a bf16 number to its neighbour; in spreads of the scores."""
CODES = {"int4": SAME, "int8-accurate": 0.5}
"""By precision: 8-bit weights are multiplied with activations rounded to 8 bits."""
SHAPES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 5},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 5},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 5},
    "phi3": {},
    "smollm3": {},
    "olmo2": {},
    "olmo3": {"sliding_window": 5},
}


ROTATED_APART = ("qwen3", "gemma3_text", "olmo2", "olmo3")
"""Families whose q and k go through norms."""
NORMED_AFTER = ("olmo2", "olmo3")
"""Families whose layers read the residual stream itself: only the last norm adds its inputs."""
QUICK = (("qwen3", "packed", 2),)
"""Family of the default suite, in addition to Llama, which most tests use."""
CASES = [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
    for case in product(SHAPES, ("packed", "padded"), (2, 4))
]


def recommender(family: str, kv_heads: int = 2) -> SequentialRecommender:
    options = SHAPES[family] | {"num_key_value_heads": kv_heads}
    return small(family, ITEMS, HISTORY, **options)


@pytest.mark.parametrize(("family", "layout", "kv_heads"), CASES)
def test_a_family_is_exported(family: str, layout: str, kv_heads: int, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = recommender(family, kv_heads)
    graph = to_onnx(model, layout, ITEMS, opset=20)
    if layout == "packed":  # each norm but the first adds its inputs
        kinds = [node.op_type for node in graph.graph.node]
        # The last layer has queries of the last tokens only, and rotates them apart from keys.
        assert kinds.count("RotaryEmbedding") == (4 if family in ROTATED_APART else 3)
        added = 1 if family in NORMED_AFTER else 4
        assert kinds.count("SkipSimplifiedLayerNormalization") == added
        # For two histories of three items, only keys and values are computed for all six tokens.
        computed = computed_tokens(graph, np.array([[1, 2, 3], [4, 5, 6]]))
        assert computed.count(6) == computed.count(2) + 1
        assert set(computed) == {2, 6}
    serialize.save(graph, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    check(session, model, SAME)


def computed_tokens(graph: Any, item_ids: NDArray[np.int64]) -> list[int]:
    """The number of tokens that each matmul of the decoder computes."""
    onnxruntime = pytest.importorskip("onnxruntime")
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    constants = {value.name for value in copy.graph.initializer}
    outputs = [
        node.output[0]
        for node in copy.graph.node
        if node.op_type == "MatMul" and node.input[1] in constants
    ]
    copy.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs
    )
    session = onnxruntime.InferenceSession(copy.SerializeToString())
    return [value.shape[1] for value in session.run(outputs, {"item_ids": item_ids})]


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "bits"), [("int4", 4), ("int8-accurate", 8)])
def test_codes_of_a_split_layer_are_split_too(precision: str, bits: int) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = recommender("phi3")
    layer_codes: dict[str, Codes] = {}
    for name, layer in linear_layers(model).items():
        layer_codes[name] = rounded(layer.weight.detach().numpy(), bits=bits, group_size=16)
        layer.weight.data = torch.from_numpy(layer_codes[name].weight)
    graph = to_onnx(model, "packed", ITEMS, 20, precision, layer_codes)
    held = {value.name: value for value in graph.graph.initializer}
    codes = [node.input[1] for node in graph.graph.node if node.op_type == "MatMulNBits"]
    # Two decoder layers with four each; queries of the second are apart from keys and values.
    assert len(codes) == 9
    stored = sum(len(held[name].raw_data) for name in codes)
    assert stored == sum(each.codes.size for each in layer_codes.values()) * bits // 8
    check(onnxruntime.InferenceSession(graph.SerializeToString()), model, CODES[precision])


@pytest.mark.slow
@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("family", SHAPES)
def test_a_family_is_built_by_tensorrt(family: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model, flavour = recommender(family), FLAVOURS["tensorrt-rtx"]
    graph = tensorrt_graph(model, ITEMS, "bf16", {}, {})
    session = onnxruntime.InferenceSession(cpu_emulation.cpu_graph(graph).SerializeToString())
    with torch.inference_mode():
        spread = float(model(torch.ones((1, 3), dtype=torch.long))[:, 1:].std())
    check(session, cpu_emulation.emulated(model, "bf16", {}, {}), HALF * spread)
    serialize.save(graph, tmp_path / "model.onnx")
    shapes = tensorrt.profiles(ExportConfig(), HISTORY)
    assert tensorrt.build(flavour, tmp_path / "model.onnx", shapes, 1024)


def check(session: Any, model: SequentialRecommender, allowed: float) -> None:
    rng = np.random.default_rng(0)
    for batch, length in ((1, 1), (1, HISTORY), (9, HISTORY)):
        item_ids = pad_left(
            [rng.integers(1, ITEMS + 1, max(1, length - row)) for row in range(batch)]
        )
        with torch.inference_mode():
            expected = model(torch.from_numpy(item_ids))[:, 1:].numpy()
        rows, scores = session.run(None, {"item_ids": item_ids})
        assert np.abs(np.take_along_axis(expected, rows - 1, axis=1) - scores).max() < allowed
        assert (np.sort(rows, axis=1) == np.arange(1, ITEMS + 1)).all()
