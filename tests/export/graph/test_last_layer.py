"""The last layer computes the last token of each history alone."""

import numpy as np
import pytest
from small_graphs import model, normal, operators, run

from slmc.export.graph import last_layer
from slmc.export.graph.ir import drop_unused, matmuls

SELECTION = """(float[1,T,4] x, int64[B] last) => (float[B,2] users) <float[1,T,4] mixed> {
    mixed = CumSum (x, axis)
    hidden = Relu (mixed)
    states = MatMul (hidden, w)
    squeezed = Gather <axis = 0> (states, zero)
    indices = Unsqueeze (last, minus_one)
    users = GatherND (squeezed, indices)
}"""
CONSTANTS = {"axis": np.int64(1), "w": normal(4, 2), "zero": np.int64(0), "minus_one": [-1]}
QUERIES = """(float[1,T,4] x, int64[T,1] positions, int64[B] last)
    => (float[B,2,2] queries, float[1,T,2] keys) <float[1,T,4] mixed, float[1,T,4] q> {
    mixed = CumSum (x, axis)
    keys = MatMul (mixed, wk)
    q = MatMul (mixed, wq)
    apart = Reshape (q, per_token)
    rotated = com.microsoft.RotaryEmbedding <num_heads = 2> (apart, positions, cosines, sines)
    rows = Reshape (rotated, per_head)
    token = Unsqueeze (last, minus_one)
    scaled = Mul (token, two)
    index = Add (scaled, heads)
    queries = Gather <axis = 0> (rows, index)
}"""
ATTENTION = CONSTANTS | {
    "wq": normal(4, 4), "wk": normal(4, 2), "per_token": [-1, 1, 4], "per_head": [-1, 2],
    "two": [[2]], "heads": [[0, 1]], "cosines": normal(5, 1, seed=3), "sines": normal(5, 1, seed=4),
}  # fmt: skip
X, LAST = normal(1, 4, 4, seed=1), np.array([1, 3])


def test_select_last_tokens() -> None:
    changed = model(SELECTION, **CONSTANTS)
    (before,) = run(changed, x=X, last=LAST)
    tokens = last_layer.select_last_tokens(changed.graph)
    drop_unused(changed)
    assert tokens is changed.graph.inputs[1]
    assert operators(changed.graph) == ["CumSum", "Gather", "Relu", "MatMul", "Squeeze"]
    assert changed.graph.outputs[0].name == "users"
    np.testing.assert_allclose(run(changed, x=X, last=LAST)[0], before, rtol=1e-5)


def test_a_graph_without_selection_is_refused() -> None:
    graph = model("(float[1,T,4] x) => (float[1,T,4] y) { y = Relu (x) }").graph
    with pytest.raises(ValueError, match="no node selects the last token of each history"):
        last_layer.select_last_tokens(graph)


def test_select_last_queries() -> None:
    changed = model(QUERIES, **ATTENTION)
    inputs = {"x": X, "positions": np.array([[0], [1], [0], [4]]), "last": LAST}
    before = run(changed, **inputs)
    graph = changed.graph
    without_queries = last_layer.select_last_queries(graph, graph.inputs[2], {})
    drop_unused(changed)
    assert [value.name for value in without_queries] == ["mixed"]
    assert sorted(operators(graph)) == sorted(
        ["CumSum", "MatMul", "Gather", "MatMul", "Reshape", "Gather", "RotaryEmbedding", "Reshape"]
    )
    _, queries = matmuls(graph)
    assert queries.x.producer().op_type == "Gather"
    for ours, theirs in zip(run(changed, **inputs), before, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
