"""Which items may be given: a second form of the graph, with two inputs more.

An input that may be left out has a default in the graph, and ONNX Runtime warns of each of these
when a session opens. So the graph that most users take has histories alone, and the one beside it
takes all three inputs at every call.

Letters: B histories, R = V + 1 rows, k items that are taken.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from slmc.export.graph.interface import ALLOWED, EXCLUDE_SEEN, HISTORIES, NUMBER, SCORES
from slmc.export.graph.ir import constant, name_nodes


@dataclass(frozen=True)
class Choice:
    """Where a graph takes the best of its scores."""

    scores: Any
    """``[B, R]``, or longer."""
    best: Callable[[Any, bool], tuple[list[Any], list[Any]]]
    """Scores, and whether they are masked -> nodes that take the best, and two values."""
    taken: list[Any]
    """The two values, of the scores as they are."""
    rows: int = 0
    """R, where something stands behind."""
    behind: int = 0
    """Columns of the scores behind those of rows."""


def choice_of(graph: Any) -> Choice:
    """The choice of an ``onnx_ir.Graph`` that ends in a TopK of the scores."""
    import onnx_ir as ir

    scores = _value(graph, SCORES)
    plain = next(node for node, _ in scores.uses() if node.op_type == "TopK")

    def best(given: Any, _: bool) -> tuple[list[Any], list[Any]]:
        top = ir.node("TopK", [given, plain.inputs[1]], num_outputs=2)
        top.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        top.outputs[1].type = ir.TensorType(ir.DataType.INT64)
        return [top], list(top.outputs)

    return Choice(scores, best, list(plain.outputs))


def add_masks(graph: Any, choice: Choice) -> None:
    """Take two more inputs: leave out seen items, allow only some.

    The best are taken in one of two branches: of the scores as they are, where nothing is asked
    for, or of masked scores. Over a large catalogue the masks cost more than the decoder.

    Args:
        graph: An ``onnx_ir.Graph`` that went through :func:`slmc.export.graph.histories.take`, in
        which
            row 0 of the scores is -inf; changed in place. What nobody needs now is left unused.
        choice: Of the graph.
    """
    import onnx_ir as ir

    truths = ir.TensorType(ir.DataType.BOOL)
    exclude = ir.val(EXCLUDE_SEEN, type=truths, shape=ir.Shape(["excluding"]))
    allowed = ir.val(ALLOWED, type=truths, shape=ir.Shape(["requests", "rows"]))
    graph.inputs.extend([exclude, allowed])
    asking, asked = _asked(graph, exclude, allowed)
    masks, lowered = _masked(graph, choice, exclude, allowed)
    then, plain = choice.best(lowered, True), choice.best(choice.scores, False)
    branches = {
        "then_branch": _branch([*masks, *then[0]], then[1], "masked"),
        "else_branch": _branch(*plain, "unmasked"),
    }
    chosen = ir.node("If", [asked], branches, num_outputs=2, name="best")
    for old, new, kind in zip(choice.taken, chosen.outputs, then[1], strict=True):
        new.name, new.type, new.shape = old.name, kind.type, old.shape
        old.name = f"{old.name}_unmasked"
    graph.insert_before(choice.taken[0].producer(), [*asking, chosen])
    for old, new in zip(choice.taken, chosen.outputs, strict=True):
        old.replace_all_uses_with(new)


def _asked(graph: Any, exclude: Any, allowed: Any) -> tuple[list[Any], Any]:
    """Nodes that tell whether a mask is asked for, of histories that there are."""
    import onnx_ir as ir

    numbers = ir.node("Cast", [exclude], {"to": ir.DataType.INT64})
    excluding = ir.node("ReduceSum", numbers.outputs, {"keepdims": 0})
    none, one = (constant(graph, np.array(n), name) for n, name in ((0, "none"), (1, "every_item")))
    some = ir.node("Greater", [excluding.outputs[0], none])
    size = ir.node("Size", [allowed])
    fewer = ir.node("Greater", [size.outputs[0], one])
    either = ir.node("Or", [some.outputs[0], fewer.outputs[0]])
    there = ir.node("Greater", [_value(graph, NUMBER), none])
    asked = ir.node("And", [either.outputs[0], there.outputs[0]])
    nodes = [numbers, excluding, some, size, fewer, either, there, asked]
    name_nodes(nodes, "masks")
    return nodes, asked.outputs[0]


def _masked(graph: Any, choice: Choice, exclude: Any, allowed: Any) -> tuple[list[Any], Any]:
    """Nodes that mask the scores, and what they give."""
    import onnx_ir as ir

    lowest = constant(graph, np.array(-np.inf, dtype=np.float32), "lowest")
    nothing = constant(graph, np.array(0, dtype=np.float32), "nothing")
    # Row 0, which is never ranked, takes the place of what is not to be left out.
    no_row = constant(graph, np.array(0, dtype=np.int64), "no_row")
    bias = ir.node("Where", [allowed, nothing, lowest])
    nodes = [bias]
    if choice.behind:
        nodes += _as_long(graph, bias.outputs[0], choice.rows, choice.behind, lowest)
    broadcast = ir.node("Add", [choice.scores, nodes[-1].outputs[0]])
    # A mask of more rows than there are histories would broadcast these: here it is refused.
    sizes = ir.node("Shape", [choice.scores])
    added = ir.node("Reshape", [broadcast.outputs[0], sizes.outputs[0]], {"allowzero": 1})
    nodes += [broadcast, sizes]
    each = ir.node("Unsqueeze", [exclude, constant(graph, np.array([1]), "each_history")])
    seen = ir.node("Where", [each.outputs[0], _value(graph, HISTORIES), no_row])
    shape = ir.node("Shape", seen.outputs)
    floor = ir.node("Expand", [lowest, shape.outputs[0]])
    inputs = [added.outputs[0], seen.outputs[0], floor.outputs[0]]
    unseen = ir.node("ScatterElements", inputs, {"axis": 1})
    return [*nodes, added, each, seen, shape, floor, unseen], unseen.outputs[0]


def _value(graph: Any, name: str) -> Any:
    """What a node of the graph gives under a name."""
    return next(out for node in graph for out in node.outputs if out.name == name)


def _as_long(graph: Any, bias: Any, rows: int, behind: int, lowest: Any) -> list[Any]:
    """Nodes that make a bias ``[1 or B, 1 or R]`` as long as the scores, -inf behind R."""
    import onnx_ir as ir

    each = ir.node("Expand", [bias, constant(graph, np.array([1, rows]), "every_row")])
    pads = constant(graph, np.array([0, 0, 0, behind]), "behind_rows")
    return [each, ir.node("Pad", [each.outputs[0], pads, lowest])]


def _branch(nodes: list[Any], given: list[Any], name: str) -> Any:
    """A subgraph of nodes that gives two of their values, whose types are known."""
    import onnx_ir as ir

    for number, node in enumerate(nodes):
        node.name = f"{name}_{number}_{node.op_type}"
        for index, out in enumerate(node.outputs):
            out.name = f"{node.name}_{index}"
    return ir.Graph([], given, nodes=nodes, name=name)
