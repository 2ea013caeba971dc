"""Norms in the form that ONNX Runtime computes in one pass."""

import numpy as np
from small_graphs import model, normal, operators, run

from slmc.export.graph import norms
from slmc.export.graph.ir import drop_unused

RECIPROCAL = """(float[N] x, float[N] squares) => (float[N] y)
    { root = Sqrt (squares)  inverse = Reciprocal (root)  y = Mul (x, inverse) }"""
NORM = """(float[1,T,4] a, float[1,T,4] b) => (float[1,T,4] y, float[1,T,4] sum) {
    sum = Add (a, b)
    power = Pow (sum, two)
    mean = ReduceMean (power, axes)
    plus = Add (mean, epsilon)
    root = Sqrt (plus)
    normed = Div (sum, root)
    y = Mul (weight, normed)
}"""


def norm_of_sum(axis: int = -1) -> object:
    epsilon, two = np.array(1e-5, np.float32), np.array(2, np.float32)
    return model(NORM, two=two, axes=[axis], epsilon=epsilon, weight=normal(4))


def test_use_division() -> None:
    changed = model(RECIPROCAL)
    norms.use_division(changed)
    assert operators(changed.graph) == ["Sqrt", "Div"]


def test_fuse_residual_add() -> None:
    fused = norm_of_sum()
    inputs = {"a": normal(1, 3, 4, seed=1), "b": normal(1, 3, 4, seed=2)}
    before = run(fused, **inputs)
    norms.fuse_residual_add(fused.graph)
    drop_unused(fused)
    assert operators(fused.graph) == ["SkipSimplifiedLayerNormalization"]
    for ours, theirs in zip(run(fused, **inputs), before, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_a_norm_along_another_axis_stays() -> None:
    graph = norm_of_sum(axis=1).graph
    norms.fuse_residual_add(graph)
    assert operators(graph)[0] == "Add" and len(graph) == 7
