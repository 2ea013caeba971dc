"""Histories as a caller sends them: cut, checked, and padded to at least one item.

The graph that torch traces accepts at least one history of at least one item. Letters: B histories,
L their padded length, V items.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from slmc.export.graph.interface import FIRST, HISTORIES, INPUT, NUMBER
from slmc.export.graph.ir import Tape, constant

if TYPE_CHECKING:
    import onnx_ir as ir


def accept_all_lengths(graph: ir.Graph, history: int, items: int) -> None:
    """Make the graph accept histories ``[B, L]`` of any B and L, 0 included.

    Only the newest ``history`` items are used. A negative row becomes V + 1, which the table lacks:
    ONNX Runtime refuses it, where it would have counted from the table's end. An empty history
    becomes one padding item. For B = 0 one padding item is computed, and the outputs leave its
    answer out.

    Args:
        graph: Changed in place.
        history: Number of items that the model sees.
        items: V.
    """
    item_ids = next(value for value in graph.inputs if value.name == INPUT)
    uses = list(item_ids.uses())
    zero = constant(graph, [0], FIRST)
    tape = Tape(graph, "histories", before=graph[0])
    start, axis = tape.constant([-history], "start"), tape.constant([1], "axis")
    end = tape.constant([np.iinfo(np.int64).max], "end")
    newest = tape.op("Slice", [item_ids, start, end, axis])
    negative = tape.op("Less", [newest, zero])
    unknown = tape.constant([items + 1], "unknown")
    rows = tape.op("Where", [negative, unknown, newest])
    none, least = tape.constant([0, 0], "none"), tape.constant([1, 1], "least")
    missing = tape.op("Max", [tape.op("Sub", [least, tape.op("Shape", [rows])]), none])
    padded = tape.op("Pad", [rows, tape.op("Concat", [missing, none], {"axis": 0})])
    number = tape.op("Shape", [newest], {"start": 0, "end": 1})
    padded.name, number.name = HISTORIES, NUMBER
    for node, index in uses:
        node.replace_input_with(index, padded)
    for index, every in enumerate(graph.outputs):
        name = every.name
        outputs = Tape(graph, f"given_{name}", after=graph[-1])
        cut = outputs.op("Slice", [every, zero, number, zero], like=every)
        every.name, cut.name = f"every_{name}", name
        graph.outputs[index] = cut
