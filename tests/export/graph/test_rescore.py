"""A large catalogue, of which few blocks are scored a second time."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from families import small
from small_graphs import model as small_graph
from small_graphs import normal, operators, run

from slmc.export.graph import outputs
from slmc.export.graph.optimize import both_graphs
from slmc.export.graph.rescore import BLOCK, RESCORED, rescore
from slmc.model.recommender import SequentialRecommender

ITEMS, HISTORY, TOP_K = 2_000, 12, 3
"""The last block is longer than the table, and no form scores half of the blocks again."""
ROWS = np.random.default_rng(0).integers(1, ITEMS + 1, (40, 6))

Ask = Callable[..., list[np.ndarray]]


@pytest.fixture(scope="module")
def model() -> SequentialRecommender:
    return small("llama", ITEMS, HISTORY)


@pytest.fixture(scope="module", params=RESCORED)
def ask(model: SequentialRecommender, request: Any) -> Ask:
    _, graph = both_graphs(model, "packed", TOP_K, opset=21, table=request.param)
    outputs.add_outputs(graph, ("scores",), ITEMS + 1, 16)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    none = {"exclude_seen": np.array([False]), "allowed": np.array([[True]])}
    return lambda rows, **masks: session.run(None, {"item_ids": rows, **none, **masks})


def expected(model: SequentialRecommender, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with torch.inference_mode():
        best = torch.topk(model(torch.from_numpy(rows)), TOP_K)
    return best.indices.numpy(), best.values.numpy()


def test_the_best_are_those_of_the_float_table(model: SequentialRecommender, ask: Ask) -> None:
    assert ITEMS % BLOCK != BLOCK - 1
    assert all(2 * times * TOP_K < ITEMS / BLOCK for _, times in RESCORED.values())
    items, scores, _ = ask(ROWS)
    rows, best = expected(model, ROWS)
    assert (items == rows).all()
    np.testing.assert_allclose(scores, best, rtol=1e-4, atol=1e-4)


def test_scores_of_all_items_on_request(model: SequentialRecommender, ask: Ask) -> None:
    scores = ask(ROWS)[2]
    assert scores.shape == (len(ROWS), ITEMS + 1)
    assert np.isneginf(scores[:, 0]).all() and np.isfinite(scores[:, 1:]).all()
    with torch.inference_mode():
        exact = model(torch.from_numpy(ROWS))[:, 1:].numpy()
    assert np.abs(scores[:, 1:] - exact).mean() < 0.1 * exact.std()


def test_only_allowed_items_are_returned_from_any_block(ask: Ask) -> None:
    some = np.zeros((1, ITEMS + 1), dtype=bool)
    some[:, [1, BLOCK, ITEMS]] = True
    items, scores, _ = ask(ROWS, allowed=some)
    assert all(set(row) == {1, BLOCK, ITEMS} for row in items)
    assert np.isfinite(scores).all()
    some[:, 1:ITEMS] = False
    items, scores, _ = ask(ROWS, allowed=some)
    assert (items[:, 0] == ITEMS).all() and np.isneginf(scores[:, 1:]).all()
    assert items.min() >= 0 and items.max() <= ITEMS


def test_seen_items_are_left_out(ask: Ask) -> None:
    best = ask(ROWS)[0]
    rows = np.concatenate([ROWS, best], axis=1)
    items = ask(rows, exclude_seen=np.array([True]))[0]
    assert not any(set(best) & set(row) for best, row in zip(items, rows, strict=True))


SCORES = """(float[B,d] users) => (float[B,2] top_scores, int64[B,2] top_items) {
    scores = Gemm <transB = 1> (users, table, bias)
    top_scores, top_items = TopK (scores, two)
}"""


@pytest.mark.parametrize("form", RESCORED)
def test_rescore(form: str) -> None:
    table, users = normal(300, 16), normal(4, 16, seed=1)
    bias = np.zeros(300, dtype=np.float32)
    bias[0] = -np.inf
    changed = small_graph(SCORES, table=table, bias=bias, two=[2])
    before = run(changed, users=users)
    rescore(changed.graph, table, form, 2)
    assert operators(changed.graph) == [
        "MatMulNBits", "Reshape", "ReduceMax", "TopK", "Unsqueeze", "GatherND", "Reshape", "TopK",
        "Div", "GatherElements", "Mul", "Mod", "Add", "TopK", "Identity", "Min", "Gather", "Gather",
        "Unsqueeze", "MatMul", "Squeeze", "Add", "Add", "TopK", "GatherElements",
    ]  # fmt: skip
    changed.graph.opset_imports["com.microsoft"] = 1
    scores, items = run(changed, users=users)
    np.testing.assert_allclose(scores, before[0], rtol=1e-4)
    assert (items == before[1]).all()
