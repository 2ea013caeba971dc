"""Which items may be given: two optional inputs, that cost nothing where they are left out.

Letters: B histories, R = V + 1 rows, k items that are taken.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from slmc.export.fusion import constant, name_nodes
from slmc.export.passes import ALLOWED, EXCLUDE_SEEN, INPUT, SCORES


def add_masks(graph: Any) -> None:
    """Take two more inputs that may be left out: leave out seen items, allow only some.

    Args:
        graph: An ``onnx_ir.Graph`` with a TopK of the scores, in which row 0 is -inf.
    """
    import onnx_ir as ir

    scores = next(out for node in graph for out in node.outputs if out.name == SCORES)
    plain = next(node for node, _ in scores.uses() if node.op_type == "TopK")

    def best(given: Any, _: bool) -> tuple[list[Any], list[Any]]:
        top = ir.node("TopK", [given, plain.inputs[1]], num_outputs=2)
        return [top], list(top.outputs)

    kinds = (ir.DataType.FLOAT, ir.DataType.INT64)
    chosen = choose(graph, plain, scores, best, kinds)
    for old, new in zip(plain.outputs, chosen, strict=True):
        new.name, new.type, new.shape = old.name, old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(plain, safe=True)


def choose(
    graph: Any,
    before: Any,
    scores: Any,
    best: Callable[[Any, bool], tuple[list[Any], list[Any]]],
    kinds: tuple[Any, Any],
    *,
    rows: int = 0,
    behind: int = 0,
) -> list[Any]:
    """Take the best in one of two branches: of the scores as they are, or of masked scores.

    Over a large catalogue the masks cost more than the decoder.

    Args:
        graph: Given the two inputs.
        before: The node that the choice stands before.
        scores: ``[B, R]`` or longer.
        best: Scores, and whether they are masked -> nodes that take the best, and two values.
        kinds: Types of the two values.
        rows: R, where something stands behind.
        behind: Columns of the scores behind those of rows.

    Returns:
        The two values.
    """
    import onnx_ir as ir

    exclude = constant(graph, np.array([False]), EXCLUDE_SEEN)
    allowed = constant(graph, np.ones((1, 1), dtype=bool), ALLOWED)
    allowed.shape = ir.Shape(["requests", "rows"])
    graph.inputs.extend([exclude, allowed])
    size = ir.node("Size", [allowed])
    given = ir.node("Greater", [size.outputs[0], constant(graph, np.array([1]), "every_item")])
    masked = ir.node("Or", [exclude, given.outputs[0]])
    masks, lowered = _masked(graph, scores, exclude, allowed, rows, behind)
    then, plain = best(lowered, True), best(scores, False)
    branches = {
        "then_branch": _branch([*masks, *then[0]], then[1], kinds, "masked"),
        "else_branch": _branch(*plain, kinds, "unmasked"),
    }
    chosen = ir.node("If", masked.outputs, branches, num_outputs=2, name="best")
    for out, value, kind in zip(chosen.outputs, ("best", "best_rows"), kinds, strict=True):
        out.name, out.type = value, ir.TensorType(kind)
    name_nodes([size, given, masked], "masks")
    graph.insert_before(before, [size, given, masked, chosen])
    return list(chosen.outputs)


def _masked(
    graph: Any, scores: Any, exclude: Any, allowed: Any, rows: int, behind: int
) -> tuple[list[Any], Any]:
    """Nodes that mask the scores, and what they give."""
    import onnx_ir as ir

    history = next(value for value in graph.inputs if value.name == INPUT)
    lowest = constant(graph, np.array(-np.inf, dtype=np.float32), "lowest")
    nothing = constant(graph, np.array(0, dtype=np.float32), "nothing")
    # Row 0, which is never ranked, takes the place of what is not to be left out.
    no_row = constant(graph, np.array(0, dtype=np.int64), "no_row")
    bias = ir.node("Where", [allowed, nothing, lowest])
    nodes = [bias]
    if behind:
        nodes += _as_long(graph, bias.outputs[0], rows, behind, lowest)
    added = ir.node("Add", [scores, nodes[-1].outputs[0]])
    seen = ir.node("Where", [exclude, history, no_row])
    shape = ir.node("Shape", seen.outputs)
    floor = ir.node("Expand", [lowest, shape.outputs[0]])
    inputs = [added.outputs[0], seen.outputs[0], floor.outputs[0]]
    unseen = ir.node("ScatterElements", inputs, {"axis": 1})
    return [*nodes, added, seen, shape, floor, unseen], unseen.outputs[0]


def _as_long(graph: Any, bias: Any, rows: int, behind: int, lowest: Any) -> list[Any]:
    """Nodes that make a bias ``[1 or B, 1 or R]`` as long as the scores, -inf behind R."""
    import onnx_ir as ir

    each = ir.node("Expand", [bias, constant(graph, np.array([1, rows]), "every_row")])
    pads = constant(graph, np.array([0, 0, 0, behind]), "behind_rows")
    return [each, ir.node("Pad", [each.outputs[0], pads, lowest])]


def _branch(nodes: list[Any], given: list[Any], kinds: tuple[Any, Any], name: str) -> Any:
    """A subgraph of nodes that gives two of their values."""
    import onnx_ir as ir

    for number, node in enumerate(nodes):
        node.name = f"{name}_{number}_{node.op_type}"
        for index, out in enumerate(node.outputs):
            out.name = f"{node.name}_{index}"
    for out, kind in zip(given, kinds, strict=True):
        out.type = ir.TensorType(kind)
    return ir.Graph([], given, nodes=nodes, name=name)
