"""The graphs for TensorRT, checked in ONNX Runtime; test_build.py builds plans from them."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import answers
import numpy as np
import onnx
import pytest
import torch
from answers import histories
from numpy.typing import NDArray
from small_graphs import model as small_graph
from small_graphs import normal, operators

from slmc.artefact import Artefact
from slmc.compress.quantize.item_table import quantize_table
from slmc.errors import UndecidedError, UsageError
from slmc.export.graph.dynamic_int8 import int8_columns
from slmc.export.graph.ir import LAYERS, matmuls
from slmc.export.reference import activation_scales as calibration
from slmc.export.reference import cpu_emulation
from slmc.export.reference.precision import linear_layers
from slmc.export.runtime.engine import Engine
from slmc.export.tensorrt import graph as typed
from slmc.model.codes import Codes, rounded
from slmc.model.loading import Recommender, load_model

ITEMS, HISTORY, TOP_K = 30, 12, 10
"""As in conftest.py."""
EXACT = 1e-5
"""Float32 through two layers, relative to the spread of the scores."""
FLIPPED = 0.05
"""A difference in the last bit changes a 16- or 8-bit number to the next one."""
PRECISION_ERROR = {"fp32": 1e-5, "fp16": 0.02, "bf16": 0.1, "int8": 1.0, "fp8": 0.7, "int4": 0.3}
"""Largest distance of the scores of this model, with its large random weights, from those in
float32."""
SHAPES = [(1, 1), (1, HISTORY), (9, 5), (40, HISTORY)]


def training() -> list[NDArray[np.int32]]:
    return [row[row > 0].astype(np.int32) for row in histories(60, HISTORY, ITEMS)]


def in_blocks(model: Recommender, bits: int, group_size: int) -> dict[str, Codes]:
    """Round the layers of a model to ``bits``, and its down projections to 8."""
    layer_codes = {}
    for name, layer in linear_layers(model).items():
        weight = layer.weight.detach().numpy()
        codes = rounded(weight, bits=8 if "down" in name else bits, group_size=group_size)
        layer_codes[name] = codes
        layer.weight.data = torch.from_numpy(codes.weight)
    return layer_codes


def exported(
    model: Artefact, precision: str, change: Callable[[Recommender], Any] = lambda _: None
) -> tuple[Any, Recommender, Recommender]:
    """A TensorRT graph, the model as the graph computes it, and the float model."""
    loaded = load_model(model)
    layer_codes = change(loaded) or {}
    scales = calibration.static_scales(loaded, training()) if precision == "int8" else {}
    graph = typed.tensorrt_graph(loaded, TOP_K, precision, layer_codes, scales)
    return graph, cpu_emulation.emulated(loaded, precision, layer_codes, scales), loaded


def error(engine: Engine, model: Recommender) -> float:
    return answers.error(lambda rows: engine.answer(rows)[1], model, SHAPES, ITEMS)


@pytest.mark.parametrize(
    "precision",
    [
        "bf16",
        "fp16",
        "int8",
        "fp8",
        *(pytest.param(p, marks=pytest.mark.slow) for p in ("fp32", "int4")),
    ],
)
def test_a_graph_computes_what_the_model_does_in_its_precision(
    precision: str, model: Artefact, packed: Artefact
) -> None:
    change = (lambda one: in_blocks(one, 4, 32)) if precision == "int4" else lambda _: None
    graph, same, floats = exported(model, precision, change)
    engine = cpu_emulation.engine(graph, packed.path)
    assert error(engine, same) < (EXACT if precision == "fp32" else FLIPPED)
    assert error(engine, floats) < PRECISION_ERROR[precision]


def types(graph: onnx.ModelProto) -> Counter[str]:
    """Stored matrices by type."""
    kinds = onnx.TensorProto.DataType
    return Counter(kinds.Name(t.data_type) for t in graph.graph.initializer if len(t.dims) == 2)


@pytest.mark.parametrize(
    ("precision", "stored"),
    [
        # Two layers of four matmuls each: q, k and v as one, o, gate and up as one, down. The item
        # table, both projections, cosines and sines are floats.
        ("fp32", {"FLOAT": 13}),
        ("bf16", {"BFLOAT16": 8, "FLOAT": 5}),
        ("fp16", {"FLOAT16": 8, "FLOAT": 5}),
        ("int8", {"INT8": 8, "FLOAT": 5}),
        ("fp8", {"FLOAT8E4M3FN": 8, "FLOAT": 5}),
    ],
)
def test_only_the_matmuls_of_the_decoder_have_the_type(
    precision: str, stored: dict[str, int], model: Artefact
) -> None:
    graph, _, _ = exported(model, precision)
    assert types(graph) == stored
    assert [value.name for value in graph.graph.input] == ["item_ids"]
    assert {entry.domain for entry in graph.opset_import} == {""}
    onnx.checker.check_model(graph, full_check=True)
    typed.check_operators(graph)


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("bf16", ["Cast", "MatMul", "Cast"]),
        ("fp16", ["Cast", "MatMul", "Cast"]),
        ("int8", ["QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "MatMul"]),
        ("fp8", ["DequantizeLinear", "Cast", "MatMul", "Cast"]),
        ("int4", ["DequantizeLinear", "Cast", "MatMul", "Cast"]),
    ],
)
def test_lower_for_tensorrt(precision: str, expected: list[str]) -> None:
    text = "(float[1,T,32] x) => (float[1,T,8] y) { y = MatMul (x, w) }"
    graph = small_graph(text, w=normal(32, 8)).graph
    layer_codes = {"up": rounded(normal(32, 8).T, bits=4, group_size=16)}
    typed.lower_for_tensorrt(graph, precision, layer_codes, {"up": 0.1})
    assert operators(graph) == ["MatMul"], "no layer of the decoder"
    matmuls(graph)[0].weight.meta[LAYERS] = ("up",)
    typed.lower_for_tensorrt(graph, precision, layer_codes, {"up": 0.1})
    assert operators(graph) == expected


@pytest.mark.slow
def test_four_bit_codes_are_carried_over(model: Artefact) -> None:
    layer_codes: dict[str, Codes] = {}

    def change(loaded: Recommender) -> dict[str, Codes]:
        layer_codes.update(in_blocks(loaded, 4, 32))
        return layer_codes

    graph, _, _ = exported(model, "int4", change)
    assert types(graph)["INT4"] == 6, "all but the two down projections, which have 8 bits"
    constants = [onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer]
    stored = [each.astype(np.int16) + 8 for each in constants if str(each.dtype) == "int4"]
    name = "backbone.layers.0.self_attn.o_proj"
    assert any(np.array_equal(layer_codes[name].codes.T, codes) for codes in stored)


@pytest.mark.slow
def test_a_quantized_item_table_stays_codes(model: Artefact, packed: Artefact) -> None:
    def change(loaded: Recommender) -> None:
        quantize_table(loaded, "int4")

    graph, same, _ = exported(model, "fp32", change)
    assert types(graph)["INT8"] == 1
    assert error(cpu_emulation.engine(graph, packed.path), same) < EXACT


def test_what_tensorrt_does_not_support_is_refused(model: Artefact, packed: Artefact) -> None:
    layer = "backbone.layers.0.mlp.gate_proj"
    weight = linear_layers(load_model(model))[layer].weight.detach().numpy()
    typed.check_blocks({layer: rounded(weight, bits=4, group_size=32)})
    with pytest.raises(UsageError) as caught:
        typed.check_blocks({layer: rounded(weight, bits=4, group_size=128)})
    assert str(caught.value) == (
        f"tensorrt: {layer} has 64 inputs, which blocks of 128 do not divide; possible block "
        "sizes: 16, 32, 64."
    )
    with pytest.raises(UsageError) as caught:
        typed.check_operators(onnx.load(packed.path / "onnx/model.onnx"))
    assert str(caught.value).startswith("tensorrt: operator NonZero is not supported (node ")


def test_a_clip_by_hand() -> None:
    """Of 4096 equal values none is clipped; many small ones outweigh a single large one."""
    even = np.ones(4096)
    assert calibration.best_clip(even, 2.0) == 2.0
    lone = np.concatenate([np.full(409, 10_000.0), np.zeros(3686), [1.0]])
    clip = calibration.best_clip(lone, 10.0)
    assert 1.0 <= clip < 10.0


def test_columns_by_hand() -> None:
    codes, scale = int8_columns(np.array([[127.0, 0.0], [-64.0, 0.0]], np.float32))
    assert codes.tolist() == [[127, 0], [-64, 0]] and scale.tolist() == [1.0, 1.0]


def test_float8_columns_by_hand() -> None:
    weight = np.array([[896.0, 0.0, 1.0], [3.0, 0.0, -448.0], [-2.2, 0.0, 17.0]], np.float32)
    codes, scale = typed.float8_columns(weight)
    assert scale.astype(np.float32).tolist() == [2.0, 1.0, 1.0]
    # Four significant bits: 17 lies between 16 and 18, and an even last bit wins.
    assert codes.astype(np.float32).tolist() == [[448, 0, 1], [1.5, 0, -448], [-1.125, 0, 16]]


def test_a_scale_of_0_stands_for_zeros() -> None:
    codes, scale = np.array([[1, 2, 3, 4]], np.int8), np.array([[0.0, 2.0]], np.float32)
    zeroed, positive = typed.without_zero_scales(codes, scale)
    assert zeroed.tolist() == [[0, 0, 3, 4]] and positive.tolist() == [[1.0, 2.0]]


def test_padding_does_not_change_the_scales(model: Artefact) -> None:
    """A longer history in the batch pads the shorter one."""
    loaded = load_model(model)
    short, long = np.array([3], np.int32), np.arange(1, HISTORY + 1, dtype=np.int32)
    together = calibration.static_scales(loaded, [short, long])
    apart = [calibration.static_scales(loaded, [history]) for history in (short, long)]
    first = "backbone.layers.0.self_attn.q_proj"
    assert together.keys() == linear_layers(loaded).keys()
    assert together[first] <= max(scales[first] for scales in apart) * (1 + EXACT)


def test_a_dataset_without_training(dataset: Artefact) -> None:
    class Empty:
        history = HISTORY

        def train_sequences(self) -> list[NDArray[np.int32]]:
            return []

    empty: Any = Empty()
    with pytest.raises(UndecidedError) as caught:
        calibration.calibration_histories(empty, 5, seed=0)
    assert str(caught.value).startswith("the dataset has no training history")
