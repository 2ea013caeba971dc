"""Which items may be returned."""

import numpy as np
import pytest
from small_graphs import model, normal, operators, run

from slmc.export.graph.ir import drop_unused
from slmc.export.graph.masks import add_masks, topk_choice

ITEMS = 5
SCORES = """(int64[B,L] item_ids, float[B,d] users)
    => (float[B,2] top_scores, int64[B,2] top_items) {
    histories = Identity (item_ids)
    number_of_histories = Shape <start = 0, end = 1> (item_ids)
    products = MatMul (users, table)
    scores = Add (products, bias)
    top_scores, top_items = TopK (scores, two)
}"""
TABLE, BIAS = normal(3, ITEMS + 1), np.zeros(ITEMS + 1, np.float32)
BIAS[0] = -np.inf


def test_add_masks() -> None:
    masked = model(SCORES, table=TABLE, bias=BIAS, two=[2])
    graph = masked.graph
    add_masks(graph, topk_choice(graph))
    drop_unused(masked)
    assert [value.name for value in graph.inputs][2:] == ["exclude_seen", "allowed"]
    assert [value.name for value in graph.outputs] == ["top_scores", "top_items"]
    assert operators(graph)[-1] == "If" and "TopK" not in operators(graph)
    then, other = (graph[-1].attributes[f"{name}_branch"].as_graph() for name in ("then", "else"))
    assert operators(then)[-2:] == ["ScatterElements", "TopK"] and operators(other) == ["TopK"]


@pytest.mark.parametrize("exclude", [[False], [True], [True, False]])
def test_what_is_masked_is_not_returned(exclude: list[bool]) -> None:
    masked = model(SCORES, table=TABLE, bias=BIAS, two=[2])
    add_masks(masked.graph, topk_choice(masked.graph))
    drop_unused(masked)
    users, item_ids = normal(2, 3, seed=1), np.array([[1, 2, 3], [3, 4, 5]])
    allowed = np.array([[True, True, True, True, True, False]])
    flags = np.array(exclude)
    masks = {"exclude_seen": flags, "allowed": allowed}
    values, _ = run(masked, item_ids=item_ids, users=users, **masks)
    scores = users @ TABLE + BIAS
    scores[:, ITEMS] = -np.inf
    for row, seen, excluded in zip(scores, item_ids, np.broadcast_to(flags, 2), strict=True):
        if excluded:
            row[seen] = -np.inf
    np.testing.assert_allclose(values, -np.sort(-scores, axis=1)[:, :2], rtol=1e-5)
