"""Matmuls in each precision: the operators that they become, and how far the result is off."""

import numpy as np
import pytest
from small_graphs import model, normal, operators, run

from slmc.export.graph.ir import LAYERS, drop_unused, matmuls
from slmc.export.graph.lowering import lower_matmuls
from slmc.model.codes import rounded

MATMUL = "(float[1,T,32] x) => (float[1,T,8] y) { y = MatMul (x, w) }"
GATED = """(float[1,T,32] x) => (float[1,T,8] y)
    <float[1,T,16] gate, float[1,T,16] up, float[1,T,16] gated>
    { gate = Sigmoid (x1)  up = MatMul (x, wu)  gated = Mul (gate, up)  y = MatMul (gated, wd) }"""
QUANTIZE = [
    "ReduceMax", "ReduceMin", "Neg", "Max", "Mul", "Reshape", "Shape", "Expand", "QuantizeLinear",
]  # fmt: skip
CODES_TO_FLOATS = ["Cast", "Cast", "Sub", "Mul", "Reshape"]
W, X = normal(32, 8), normal(1, 5, 32, seed=1)
CODES = {"up": rounded(W.T, bits=4, group_size=32)}


@pytest.mark.parametrize(
    ("precision", "layout", "expected", "error"),
    [
        ("int8", "packed", [*QUANTIZE, "MatMulIntegerToFloat", "Mul"], 0.02),
        ("int8", "padded", [*QUANTIZE, "MatMulInteger", "Cast", "Mul", "Mul"], 0.02),
        ("int8-accurate", "packed", ["MatMulNBits"], 0.02),
        ("int8-accurate", "padded", [*CODES_TO_FLOATS, "MatMul"], 0.02),
        ("int4", "packed", ["MatMulNBits"], 0.2),
        ("int4", "padded", [*CODES_TO_FLOATS, "MatMul"], 0.2),
        ("fp16", "packed", ["Cast", "MatMul", "Cast"], 0.002),
    ],
)
def test_lower_matmuls(precision: str, layout: str, expected: list[str], error: float) -> None:
    lowered = model(MATMUL, w=W)
    (before,) = run(lowered, x=X)
    matmuls(lowered.graph)[0].weight.meta[LAYERS] = ("up",)
    lower_matmuls(lowered.graph, precision, CODES if precision == "int4" else {}, layout)
    drop_unused(lowered)
    assert operators(lowered.graph) == expected
    (after,) = run(lowered, x=X)
    assert 0 < np.abs(after - before).max() < error * np.abs(before).max()


def test_bf16_casts() -> None:
    graph = model(MATMUL, w=W).graph
    matmuls(graph)[0].weight.meta[LAYERS] = ("up",)
    lower_matmuls(graph, "bf16", {}, "packed")
    assert operators(graph) == ["Cast", "MatMul", "Cast"]
    assert str(matmuls(graph)[0].weight.const_value.dtype) == "BFLOAT16"


@pytest.mark.parametrize("precision", ["int8", "int8-accurate", "int4", "fp16"])
def test_a_matmul_outside_of_the_layers_stays(precision: str) -> None:
    graph = model(MATMUL, w=W).graph
    lower_matmuls(graph, precision, CODES, "packed")
    assert operators(graph) == ["MatMul"]


def test_a_layer_without_codes_stays_float_in_int4() -> None:
    graph = model(MATMUL, w=W).graph
    matmuls(graph)[0].weight.meta[LAYERS] = ("down",)
    lower_matmuls(graph, "int4", CODES, "packed")
    assert operators(graph) == ["MatMul"]


def test_the_activation_scale_of_the_up_projection_moves_behind_the_gate() -> None:
    text = GATED.replace("(float[1,T,32] x)", "(float[1,T,32] x, float[1,T,16] x1)")
    lowered = model(text, wu=normal(32, 16), wd=normal(16, 8, seed=2))
    x, x1 = X, normal(1, 5, 16, seed=3)
    (before,) = run(lowered, x=x, x1=x1)
    for each, name in zip(matmuls(lowered.graph), ("up", "down"), strict=True):
        each.weight.meta[LAYERS] = (name,)
    lower_matmuls(lowered.graph, "int8", {}, "packed")
    drop_unused(lowered)
    _, second = [node for node in lowered.graph if node.op_type == "QuantizeLinear"]
    gated = second.inputs[0].producer()
    assert gated.op_type == "Mul"
    assert gated.inputs[1].producer().op_type == "MatMulIntegerToFloat"
    (after,) = run(lowered, x=x, x1=x1)
    assert np.abs(after - before).max() < 0.02 * np.abs(before).max()
