"""A softmax whose result does not depend on the rest of the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from slmc.export.graph.ir import Tape, constant, inputs, nodes, replace

if TYPE_CHECKING:
    import onnx_ir as ir

LOWEST_EXPONENT, LOWEST_WEIGHT = -80.0, 1e-34
"""Scores are clipped at this distance below the largest one, and attention weights below this
become 0: a masked key would otherwise get a denormal number, which processors compute slowly."""
SUM_COLUMNS = 16
"""Copies of each sum that are computed: a matmul with one column adds in vector lanes again."""


def batch_invariant_softmax(graph: ir.Graph) -> None:
    """Compute the sum of a Softmax by a matmul with ones, which adds its terms in order.

    A Softmax adds in vector lanes, so that the last bit of a sum depends on the place of a history
    in the batch. The matmul does not, and a masked key adds exactly 0. On a CPU it is also the
    faster of the two, since it computes no denormal numbers.
    """
    ones_of: dict[object, ir.Value] = {}
    for node in nodes(graph, "Softmax"):
        y = node.outputs[0]
        (x,) = inputs(node)
        tape = Tape(graph, f"{y.name}", before=node)
        axis = constant(graph, [-1], "softmax_axis")
        largest = tape.op("ReduceMax", [x, axis], {"keepdims": 1})
        lowest = constant(graph, np.float32(LOWEST_EXPONENT), "softmax_lowest")
        exponents = tape.op("Clip", [tape.op("Sub", [x, largest]), lowest])
        exponentials = tape.op("Exp", [exponents])
        weights = tape.op("ThresholdedRelu", [exponentials], {"alpha": LOWEST_WEIGHT})
        keys = x if x.shape is None else x.shape[-1]
        if keys not in ones_of:
            columns = constant(graph, [SUM_COLUMNS], "softmax_columns")
            number = tape.op("Shape", [x], {"start": -1})
            shape = tape.op("Concat", [number, columns], {"axis": 0})
            one = constant(graph, np.float32(1), "softmax_one")
            ones_of[keys] = tape.op("Expand", [one, shape])
        sums = tape.op("MatMul", [weights, ones_of[keys]])
        start, end = constant(graph, [0], "softmax_start"), constant(graph, [1], "softmax_end")
        first = tape.op("Slice", [sums, start, end, axis])
        replace(y, tape.op("Div", [weights, first]))
