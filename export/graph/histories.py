"""Histories as a caller gives them, before the decoder sees them: cut, checked, and never none.

The graph that torch traces takes one history at least, of one item at least. Letters: B
histories, L their padded length, V items.
"""

from typing import Any

import numpy as np

from slmc.export.graph.interface import FIRST, HISTORIES, INPUT, NUMBER
from slmc.export.graph.ir import constant, name_nodes


def take(graph: Any, history: int, items: int) -> None:
    """Let the graph answer whatever histories ``[B, L]`` it is asked with, B and L from 0 on.

    The newest ``history`` items count. A row below 0 becomes one above V, which the table lacks:
    ONNX Runtime refuses it, where it would have counted from the table's end. A history of no
    length is one of padding; where there is no history one of padding is computed, and its answer
    is left out of the outputs.

    Args:
        graph: An ``onnx_ir.Graph``; changed in place.
        history: Items that the model sees.
        items: V.
    """
    import onnx_ir as ir

    given = next(value for value in graph.inputs if value.name == INPUT)
    asked = list(given.uses())

    def whole(*numbers: int, name: str) -> Any:
        return constant(graph, np.array(numbers, dtype=np.int64), f"histories_{name}")

    zero, pair = constant(graph, np.array([0]), FIRST), whole(0, 0, name="none")
    last = np.iinfo(np.int64).max
    bounds = [whole(-history, name="start"), whole(last, name="end"), whole(1, name="axis")]
    newest = ir.node("Slice", [given, *bounds])
    below = ir.node("Less", [newest.outputs[0], zero])
    beyond = whole(items + 1, name="beyond")
    known = ir.node("Where", [below.outputs[0], beyond, newest.outputs[0]])
    sizes = ir.node("Shape", known.outputs)
    lacking = ir.node("Sub", [whole(1, 1, name="least"), sizes.outputs[0]])
    more = ir.node("Max", [lacking.outputs[0], pair])
    pads = ir.node("Concat", [more.outputs[0], pair], {"axis": 0})
    padded = ir.node("Pad", [known.outputs[0], pads.outputs[0]])
    number = ir.node("Shape", newest.outputs, {"start": 0, "end": 1})
    nodes = [newest, below, known, sizes, lacking, more, pads, padded, number]
    name_nodes(nodes, "histories")
    padded.outputs[0].name, number.outputs[0].name = HISTORIES, NUMBER
    for node, index in asked:
        node.replace_input_with(index, padded.outputs[0])
    graph.insert_before(graph[0], nodes)
    for index, every in enumerate(graph.outputs):
        cut = ir.node("Slice", [every, zero, number.outputs[0], zero])
        out = cut.outputs[0]
        out.name, out.type, out.shape = every.name, every.type, every.shape
        cut.name, every.name = f"given_{out.name}", f"every_{out.name}"
        graph.append(cut)
        graph.outputs[index] = out
