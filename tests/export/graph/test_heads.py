"""Queries, keys and values as rows of one matmul's output."""

import numpy as np
import pytest
from small_graphs import model, normal, operators, run

from slmc.export.graph.heads import merge_qkv_lookups
from slmc.export.graph.ir import drop_unused

UNROTATED = """(float[1,T,8] x, int64[N,1] token)
    => (float[N,2,2] q, float[N,1,2] k, float[N,1,2] v) {
    y = MatMul (x, w)
    y_q, y_k, y_v = Split <axis = -1> (y, sizes)
    rows_q = Reshape (y_q, shape)
    rows_k = Reshape (y_k, shape)
    rows_v = Reshape (y_v, shape)
    scaled_q = Mul (token, two)
    index_q = Add (scaled_q, heads_q)
    scaled = Mul (token, one)
    index = Add (scaled, heads)
    q = Gather <axis = 0> (rows_q, index_q)
    k = Gather <axis = 0> (rows_k, index)
    v = Gather <axis = 0> (rows_v, index)
}"""
ROTATED = (
    UNROTATED.replace("int64[N,1] token", "int64[T] positions, int64[N,1] token")
    .replace("y = MatMul", "column = Reshape (positions, as_column) y = MatMul")
    .replace(
        "rows_q = Reshape (y_q, shape)",
        """a = Reshape (y_q, apart_q)
        b = com.microsoft.RotaryEmbedding <num_heads = 2> (a, column, cosines, sines)
        rows_q = Reshape (b, shape)""",
    )
    .replace(
        "rows_k = Reshape (y_k, shape)",
        """c = Reshape (y_k, apart_k)
        d = com.microsoft.RotaryEmbedding <num_heads = 1> (c, column, cosines, sines)
        rows_k = Reshape (d, shape)""",
    )
)
CONSTANTS = {
    "w": normal(8, 8), "sizes": [4, 2, 2], "shape": [-1, 2], "two": [[2]], "one": [[1]],
    "heads_q": [[0, 1]], "heads": [[0]], "as_column": [-1, 1], "apart_q": [-1, 1, 4],
    "apart_k": [-1, 1, 2], "cosines": normal(5, 1, seed=3), "sines": normal(5, 1, seed=4),
}  # fmt: skip
INPUTS = {"x": normal(1, 4, 8, seed=1), "token": np.array([[3], [0]])}


@pytest.mark.parametrize("text", [UNROTATED, ROTATED])
def test_merge_qkv_lookups(text: str) -> None:
    merged = model(text, **CONSTANTS)
    rotated = text is ROTATED
    inputs = INPUTS | ({"positions": np.array([0, 1, 2, 4])} if rotated else {})
    before = run(merged, **inputs)
    merge_qkv_lookups(merged.graph)
    drop_unused(merged)
    kinds = operators(merged.graph)
    assert "Split" not in kinds and kinds.count("Gather") == 3
    assert kinds.count("RotaryEmbedding") == int(rotated)
    for ours, theirs in zip(run(merged, **inputs), before, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_values_that_are_rotated_stay_apart() -> None:
    graph = model(ROTATED.replace("(y_v, shape)", "(d, shape)"), **CONSTANTS).graph
    merge_qkv_lookups(graph)
    assert "Split" in operators(graph)
