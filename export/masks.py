"""Which items may be given: two optional inputs, that cost nothing where they are left out.

Letters: B histories, R = V + 1 rows, k items that are taken.
"""

from typing import Any

import numpy as np

from slmc.export.fusion import constant, name_nodes
from slmc.export.passes import ALLOWED, EXCLUDE_SEEN, INPUT, SCORES


def add_masks(graph: Any) -> None:
    """Take two more inputs that may be left out: leave out seen items, allow only some.

    The best are taken in one of two branches: of the scores as they are, or of masked scores.
    Over a large catalogue the masks cost more than the decoder.

    Args:
        graph: An ``onnx_ir.Graph`` with a TopK of the scores, in which row 0 is -inf.
    """
    import onnx_ir as ir

    plain = next(node for node, _ in _scores(graph).uses() if node.op_type == "TopK")
    exclude = constant(graph, np.array([False]), EXCLUDE_SEEN)
    allowed = constant(graph, np.ones((1, 1), dtype=bool), ALLOWED)
    allowed.shape = ir.Shape(["requests", "rows"])
    graph.inputs.extend([exclude, allowed])
    size = ir.node("Size", [allowed])
    given = ir.node("Greater", [size.outputs[0], constant(graph, np.array([1]), "every_item")])
    masked = ir.node("Or", [exclude, given.outputs[0]])
    branches = {
        "then_branch": _masked(graph, plain, exclude, allowed),
        "else_branch": _branch([ir.node("TopK", plain.inputs, num_outputs=2)], "unmasked"),
    }
    chosen = ir.node("If", masked.outputs, branches, num_outputs=2, name="best")
    for old, new in zip(plain.outputs, chosen.outputs, strict=True):
        new.name, new.type, new.shape = old.name, old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    name_nodes([size, given, masked], "masks")
    graph.insert_before(plain, [size, given, masked, chosen])
    graph.remove(plain, safe=True)


def _masked(graph: Any, plain: Any, exclude: Any, allowed: Any) -> Any:
    """The branch that takes the best of masked scores."""
    import onnx_ir as ir

    scores, number = plain.inputs
    history = next(value for value in graph.inputs if value.name == INPUT)
    lowest = constant(graph, np.array(-np.inf, dtype=np.float32), "lowest")
    nothing = constant(graph, np.array(0, dtype=np.float32), "nothing")
    # Row 0, which is never ranked, takes the place of what is not to be left out.
    no_row = constant(graph, np.array(0, dtype=np.int64), "no_row")
    bias = ir.node("Where", [allowed, nothing, lowest])
    added = ir.node("Add", [scores, bias.outputs[0]])
    seen = ir.node("Where", [exclude, history, no_row])
    shape = ir.node("Shape", seen.outputs)
    floor = ir.node("Expand", [lowest, shape.outputs[0]])
    inputs = [added.outputs[0], seen.outputs[0], floor.outputs[0]]
    unseen = ir.node("ScatterElements", inputs, {"axis": 1})
    best = ir.node("TopK", [unseen.outputs[0], number], num_outputs=2)
    return _branch([bias, added, seen, shape, floor, unseen, best], "masked")


def _branch(nodes: list[Any], name: str) -> Any:
    """A subgraph that gives what its last node does."""
    import onnx_ir as ir

    for number, node in enumerate(nodes):
        node.name = f"{name}_{number}_{node.op_type}"
        for index, out in enumerate(node.outputs):
            out.name = f"{node.name}_{index}"
    kinds = (ir.DataType.FLOAT, ir.DataType.INT64)
    for out, kind in zip(nodes[-1].outputs, kinds, strict=True):
        out.type = ir.TensorType(kind)
    return ir.Graph([], list(nodes[-1].outputs), nodes=nodes, name=name)


def _scores(graph: Any) -> Any:
    return next(out for node in graph for out in node.outputs if out.name == SCORES)
