"""Outputs in addition to the best items."""

import numpy as np
from small_graphs import normal, proto, run

from slmc.export.graph.outputs import add_outputs, ensure_scores

GRAPH = """(float[B,2] users) => (float[B,8] top) {
    number_of_histories = Shape <start = 0, end = 1> (users)
    user_vectors = Identity (users)
    NAME = MatMul (user_vectors, table)
    top = Neg (NAME)
}"""
TABLE, USERS = normal(2, 8), normal(3, 2, seed=1)


def test_add_outputs() -> None:
    graph = proto(GRAPH.replace("NAME", "scores"), table=TABLE, first_history=[0])
    add_outputs(graph, ("scores", "user_vectors"), rows=8, width=2)
    assert [value.name for value in graph.graph.output] == ["top", "scores", "user_vectors"]
    assert [node.op_type for node in graph.graph.node][-2:] == ["Slice", "Slice"]
    _, scores, users = run(graph, users=USERS)
    np.testing.assert_allclose(scores, USERS @ TABLE, rtol=1e-5)
    assert (users == USERS).all()


def test_ensure_scores_cuts_them_out_of_all_scores() -> None:
    graph = proto(GRAPH.replace("NAME", "all_scores"), table=TABLE, first_history=[0])
    assert ensure_scores(graph, rows=6)
    assert [node.op_type for node in graph.graph.node][-2:] == ["Slice", "Pad"]
    graph.graph.output[0].name = "scores"
    (scores,) = run(graph, users=USERS)
    assert np.isneginf(scores[:, 0]).all()
    np.testing.assert_allclose(scores[:, 1:], (USERS @ TABLE)[:, 1:6], rtol=1e-5)


def test_ensure_scores_of_a_graph_that_has_them_or_has_none() -> None:
    assert ensure_scores(proto(GRAPH.replace("NAME", "scores")), rows=8)
    assert not ensure_scores(proto(GRAPH.replace("NAME", "logits")), rows=8)
