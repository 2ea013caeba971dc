"""Which items may be returned: a second form of the graph, with two more inputs.

An optional input has a default in the graph, and ONNX Runtime warns of each of these when a session
opens. So the graph that most users need has histories alone, and the second one requires all three
inputs at every call.

Letters: B histories, R = V + 1 rows, k items that are returned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from slmc.export.graph.interface import ALLOWED, EXCLUDE_SEEN, HISTORIES, NUMBER, SCORES
from slmc.export.graph.ir import Tape, constant, named, replace

if TYPE_CHECKING:
    import onnx_ir as ir

Best = tuple["ir.Value", "ir.Value"]
"""The two outputs of a choice, such as values and indices of a TopK."""


@dataclass(frozen=True)
class Choice:
    """Where a graph chooses the best of its scores."""

    scores: ir.Value
    """``[B, R]``, or longer."""
    choose: Callable[[Tape, ir.Value, bool], Best]
    """Records on a tape how the best are chosen from scores, which may be masked (the bool)."""
    best: Best
    """What was chosen from the scores without masks."""
    rows: int = 0
    """R, where columns follow it."""
    extra: int = 0
    """Columns of the scores after those of rows."""


def topk_choice(graph: ir.Graph) -> Choice:
    """Return the choice of a graph that ends in a TopK of the scores."""
    import onnx_ir as ir

    scores = named(graph, SCORES)
    topk = next(node for node in scores.consumers() if node.op_type == "TopK")

    def choose(tape: Tape, scores: ir.Value, _: bool) -> Best:
        values, indices = tape.ops("TopK", [scores, topk.inputs[1]], outputs=2)
        values.type = ir.TensorType(ir.DataType.FLOAT)
        indices.type = ir.TensorType(ir.DataType.INT64)
        return values, indices

    values, indices = topk.outputs
    return Choice(scores, choose, (values, indices))


def add_masks(graph: ir.Graph, choice: Choice) -> None:
    """Add two inputs: one excludes seen items, one allows only some items.

    The best are chosen in one of two branches: from the scores as they are, where no mask is
    requested, or from masked scores. Over a large catalogue the masks cost more than the decoder.

    Args:
        graph: After :func:`slmc.export.graph.histories.accept_all_lengths`, row 0 of its scores is
            -inf; changed in place.
        choice: Of the graph.
    """
    import onnx_ir as ir

    booleans = ir.TensorType(ir.DataType.BOOL)
    exclude = ir.val(EXCLUDE_SEEN, type=booleans, shape=ir.Shape(["excluding"]))
    allowed = ir.val(ALLOWED, type=booleans, shape=ir.Shape(["requests", "rows"]))
    graph.inputs.extend([exclude, allowed])
    tape = Tape(graph, "masks", before=choice.best[0].producer())
    requested = _requested(tape, exclude, allowed)
    masked, unmasked = Tape(graph, "masked"), Tape(graph, "unmasked")
    chosen = choice.choose(masked, _masked(masked, choice, exclude, allowed), True)
    branches = {
        "then_branch": masked.branch(chosen),
        "else_branch": unmasked.branch(choice.choose(unmasked, choice.scores, False)),
    }
    best = tape.ops("If", [requested], branches, outputs=2)
    for old, new, of_branch in zip(choice.best, best, chosen, strict=True):
        old.type = of_branch.type
        replace(old, new)


def _requested(tape: Tape, exclude: ir.Value, allowed: ir.Value) -> ir.Value:
    """Whether there is a history, and a mask is requested for it."""
    none, one = (constant(tape.graph, np.array(n), name) for n, name in ((0, "zero"), (1, "one")))
    excluding = tape.op("ReduceSum", [tape.cast(exclude, "INT64")], {"keepdims": 0})
    excludes = tape.op("Greater", [excluding, none])
    allows = tape.op("Greater", [tape.op("Size", [allowed]), one])
    either = tape.op("Or", [excludes, allows])
    return tape.op("And", [either, tape.op("Greater", [named(tape.graph, NUMBER), none])])


def _masked(tape: Tape, choice: Choice, exclude: ir.Value, allowed: ir.Value) -> ir.Value:
    """The masked scores."""
    graph = tape.graph
    lowest = constant(graph, np.float32(-np.inf), "lowest")
    bias = tape.op("Where", [allowed, constant(graph, np.float32(0), "no_bias"), lowest])
    if choice.extra:
        # As long as the scores, [1 or B, R + extra], and -inf after R.
        bias = tape.op("Expand", [bias, constant(graph, [1, choice.rows], "every_row")])
        pads = constant(graph, [0, 0, 0, choice.extra], "after_rows")
        bias = tape.op("Pad", [bias, pads, lowest])
    added = tape.op("Add", [choice.scores, bias])
    # A mask of more rows than there are histories would broadcast the scores: the Reshape fails.
    sizes = tape.op("Shape", [choice.scores])
    scores = tape.op("Reshape", [added, sizes], {"allowzero": 1})
    per_history = tape.op("Unsqueeze", [exclude, constant(graph, [1], "per_history")])
    # Where nothing is excluded, the row is 0, which is never ranked.
    rows = [per_history, named(graph, HISTORIES), constant(graph, np.array(0), "zero")]
    seen = tape.op("Where", rows)
    updates = tape.op("Expand", [lowest, tape.op("Shape", [seen])])
    return tape.op("ScatterElements", [scores, seen, updates], {"axis": 1})
