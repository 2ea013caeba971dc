"""The item table: stored once, as floats or codes."""

import numpy as np
import pytest
from small_graphs import model, normal, operators, proto, run

from slmc.export.graph import item_table
from slmc.export.graph.ir import drop_unused
from slmc.model.codes import Codes

ROWS, WIDTH = 7, 16
TABLE, BIAS = normal(ROWS, WIDTH), np.zeros(ROWS, np.float32)
COPIED = """(int64[B] item_ids) => (float[B,2] top_scores, int64[B,2] top_items) {
    users = Gather <axis = 0> (TABLE, item_ids)
    logits = Gemm (users, copy, bias)
    top_scores, top_items = TopK (logits, two)
}"""
SCORED = """(int64[B] item_ids) => (float[B,R] scores) {
    users = Gather <axis = 0> (table, item_ids)
    scores = Gemm <transB = 1> (users, table, bias)
}"""
PROJECTED = """(int64[B] item_ids, float[B,d] users) => (float[B,H] hidden, float[B,R] scores) {
    vectors = Gather <axis = 0> (table, item_ids)
    hidden = Gemm <transB = 1> (vectors, projection, bias_in)
    scores = Gemm <transB = 1> (users, table, bias)
}"""
ITEM_IDS = np.array([3, 1, 6])


def quantized(bits: int) -> Codes:
    return item_table.rounded_rows(TABLE, bits)


def test_share_table() -> None:
    shared = proto(COPIED, copy=TABLE.T.copy(), bias=BIAS, two=[2])
    shared.graph.node[0].input[0] = "item_embeddings.weight"
    table = proto(SCORED, table=TABLE).graph.initializer[0]
    table.name = "item_embeddings.weight"
    shared.graph.initializer.append(table)
    before = run(shared, item_ids=ITEM_IDS)
    item_table.share_table(shared)
    assert {each.name for each in shared.graph.initializer} >= {"item_embeddings.weight", "bias"}
    assert "copy" not in {each.name for each in shared.graph.initializer}
    gemm = shared.graph.node[1]
    assert list(gemm.input) == ["user_vectors", "item_embeddings.weight", "bias"]
    assert list(gemm.output) == ["scores"]
    after = run(shared, item_ids=ITEM_IDS)
    assert all(np.allclose(*both) for both in zip(after, before, strict=True))


def test_a_graph_that_does_not_score_with_the_table_is_refused() -> None:
    other = proto(COPIED, copy=TABLE.T.copy(), two=[2])
    with pytest.raises(ValueError, match="the scores come from Gemm and 0 item tables"):
        item_table.share_table(other)


@pytest.mark.parametrize(
    ("bits", "layout", "expected"),
    [
        (8, "packed", ["Gather", "Gather", "Reshape", "Cast", "Sub", "Unsqueeze", "Mul"]),
        (4, "packed", ["Gather", "Gather", "BitwiseAnd", "BitShift", "Unsqueeze", "Unsqueeze"]),
        (8, "padded", ["DequantizeLinear", "Gather", "Gemm"]),
        (4, "padded", ["DequantizeLinear", "Gather", "Gemm"]),
    ],
)
def test_store_codes(bits: int, layout: str, expected: list[str]) -> None:
    changed = model(SCORED, table=TABLE, bias=BIAS)
    (before,) = run(changed, item_ids=ITEM_IDS)
    item_table.store_codes(changed.graph, quantized(bits), layout)
    drop_unused(changed)
    assert operators(changed.graph)[: len(expected)] == expected
    assert ("MatMulNBits" in operators(changed.graph)) == (layout == "packed")
    assert "table" not in changed.graph.initializers
    (after,) = run(changed, item_ids=ITEM_IDS)
    assert 0 < np.abs(after - before).max() < (0.3 if bits == 4 else 0.03) * np.abs(before).max()


def test_store_int8() -> None:
    changed = model(SCORED, table=TABLE, bias=BIAS)
    scale = np.abs(TABLE).max(axis=1) / np.float32(127)
    codes = np.rint(TABLE / scale[:, None]).astype(np.int8)
    item_table.store_int8(changed.graph, codes, scale)
    drop_unused(changed)
    assert operators(changed.graph) == ["DequantizeLinear", "Gather", "Gemm"]
    assert set(changed.graph.initializers) == {"item_codes", "item_scale", "bias"}


@pytest.mark.parametrize("fits", [True, False])
def test_fold_input_projection(fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_table, "FOLDED_SHARE", 1.0 if fits else 0.1)
    constants = {"projection": normal(8, WIDTH), "bias_in": normal(8, seed=1), "bias": BIAS}
    changed = model(PROJECTED, table=TABLE, **constants)
    inputs = {"item_ids": ITEM_IDS, "users": normal(3, WIDTH, seed=2)}
    before = run(changed, **inputs)
    item_table.fold_input_projection(changed.graph)
    drop_unused(changed)
    assert operators(changed.graph) == ["Gather", *([] if fits else ["Gemm"]), "Gemm"]
    for ours, theirs in zip(run(changed, **inputs), before, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
