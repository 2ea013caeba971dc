"""A softmax whose result does not depend on the rest of the batch."""

import numpy as np
from small_graphs import model, normal, operators, run

from slmc.export.graph.softmax import batch_invariant_softmax

SOFTMAX = "(float[B,L,K] x) => (float[B,L,K] y) { y = Softmax <axis = -1> (x) }"
TWO = """(float[B,L,K] x) => (float[B,L,K] z)
    { y = Softmax <axis = -1> (x)  z = Softmax <axis = -1> (y) }"""


def test_batch_invariant_softmax() -> None:
    changed, x = model(SOFTMAX), normal(2, 3, 5)
    x[0, 0, 1] = np.finfo(np.float32).min
    (before,) = run(changed, x=x)
    batch_invariant_softmax(changed.graph)
    assert operators(changed.graph) == [
        "ReduceMax", "Sub", "Clip", "Exp", "ThresholdedRelu",
        "Shape", "Concat", "Expand", "MatMul", "Slice", "Div",
    ]  # fmt: skip
    (after,) = run(changed, x=x)
    np.testing.assert_allclose(after, before, rtol=1e-5)
    assert after[0, 0, 1] == 0


def test_softmaxes_over_as_many_keys_share_their_ones() -> None:
    graph = model(TWO.replace("=> (float[B,L,K] z)", "=> (float[B,L,K] z) <float[B,L,K] y>")).graph
    batch_invariant_softmax(graph)
    assert operators(graph).count("Expand") == 1
