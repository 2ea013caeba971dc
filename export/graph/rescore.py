"""A large catalogue: all items scored by a copy of few bits, the best again in float.

Letters: B histories, R = V + 1 rows, C candidates, d item width, k items that are returned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from slmc.export.graph.interface import ALL_SCORES, TOP_ITEMS
from slmc.export.graph.ir import Tape, constant, inputs
from slmc.export.graph.item_table import code_constants, rounded_rows, scoring_node
from slmc.export.graph.masks import Best, Choice
from slmc.export.graph.nbits import INT8_ACTIVATIONS, nbits_matmul

if TYPE_CHECKING:
    import onnx_ir as ir

RESCORED = {"int8+rescore": (8, 4), "int4+rescore": (4, 8)}
"""Forms of a float table: bits of the copy that scores all items, and how many times k of them are
scored a second time, from the float table."""
BLOCK = 32
"""Items of a block, whose best one is found in one pass over the scores. The C best items lie in
the C blocks with the best ones, so the TopK does not search all scores."""


def rescore(graph: ir.Graph, table: NDArray[np.float32], form: str, top_k: int) -> Choice:
    """Score all items by a table of codes, and the best of them again by the float table.

    Args:
        graph: Ends in a TopK of the scores; changed in place.
        table: ``[R, d]``.
        form: One of :data:`RESCORED`.
        top_k: k.

    Returns:
        How the candidates are chosen, for :func:`slmc.export.graph.masks.add_masks`.
    """
    scoring = scoring_node(graph)
    users, floats = inputs(scoring)[:2]
    topk = scoring.outputs[0].consumers()[0]
    bits, times = RESCORED[form]
    scores, extra = _score_all(graph, scoring, table, bits), -len(table) % BLOCK
    # BLOCK more, since some of the best may be of no item: row 0 and the columns after R.
    number = min(times * top_k + BLOCK, len(table) + extra)

    def choose(tape: Tape, scores: ir.Value, masked: bool) -> Best:
        return _candidates(tape, scores, number, (len(table) + extra) // BLOCK, masked)

    rows, mask = choose(Tape(graph, "candidates", before=topk), scores, False)
    tape = Tape(graph, "rescore", before=topk)
    # The last block may be longer than the table: rows after its end are never returned.
    known = tape.op("Min", [rows, tape.constant([len(table) - 1], "last_row")])
    bias = np.full(len(table) + extra, -np.inf, dtype=np.float32)
    bias[1 : len(table)] = 0
    item_bias = tape.op("Gather", [constant(graph, bias, "item_bias"), rows], {"axis": 0})
    vectors = tape.op("Gather", [floats, known], {"axis": 0})
    last_axis = constant(graph, [-1], "last_axis")
    dot_products = tape.op("MatMul", [vectors, tape.op("Unsqueeze", [users, last_axis])])
    exact = tape.op("Squeeze", [dot_products, last_axis])
    ranked = tape.op("Add", [tape.op("Add", [exact, item_bias]), mask])
    topk.replace_input_with(0, ranked)
    _return_rows(graph, topk, known)
    graph.remove(scoring, safe=True)
    return Choice(scores, choose, (rows, mask), rows=len(table), extra=extra)


def _score_all(
    graph: ir.Graph, scoring: ir.Node, table: NDArray[np.float32], bits: int
) -> ir.Value:
    """Scores ``[B, R or longer]`` of a copy, in whole blocks; those of no item are noise."""
    longer = np.pad(table, ((0, -len(table) % BLOCK), (0, 0)))
    codes = rounded_rows(longer, bits)
    tape = Tape(graph, ALL_SCORES, before=scoring)
    operands = [scoring.inputs[0], *code_constants(graph, codes)]
    scores = nbits_matmul(tape, operands, codes, INT8_ACTIVATIONS)
    scores.name = ALL_SCORES
    return scores


def _candidates(tape: Tape, scores: ir.Value, number: int, blocks: int, masked: bool) -> Best:
    """The rows ``[B, C]`` of the best scores, ascending, and what is added to their scores."""
    import onnx_ir as ir

    graph = tape.graph
    size, last_axis = constant(graph, [BLOCK], "block_size"), constant(graph, [-1], "last_axis")
    taken = constant(graph, [min(number, blocks)], "taken_blocks")
    wanted = constant(graph, [number], "candidates")
    by_block = tape.op("Reshape", [scores, constant(graph, [0, -1, BLOCK], "by_block")])
    maxima = tape.op("ReduceMax", [by_block, last_axis], {"keepdims": 0})
    _, block = tape.ops("TopK", [maxima, taken], outputs=2)
    index = tape.op("Unsqueeze", [block, last_axis])
    inside = tape.op("GatherND", [by_block, index], {"batch_dims": 1})
    flat = tape.op("Reshape", [inside, constant(graph, [0, -1], "in_blocks")])
    best, place = tape.ops("TopK", [flat, wanted], outputs=2)
    of_block = tape.op("GatherElements", [block, tape.op("Div", [place, size])], {"axis": 1})
    start, within = tape.op("Mul", [of_block, size]), tape.op("Mod", [place, size])
    unordered = tape.op("Add", [start, within])
    # In the order of their rows, so that of equal items the smaller row is returned.
    rows, order = tape.ops("TopK", [unordered, wanted], {"largest": 0}, outputs=2)
    zero = constant(graph, np.zeros((1, 1), dtype=np.float32), "no_mask")
    if masked:
        # What a mask excludes keeps its -inf.
        lowest = constant(graph, np.float32(-np.inf), "lowest")
        ordered = tape.op("GatherElements", [best, order], {"axis": 1})
        mask = tape.op("Where", [tape.op("Equal", [ordered, lowest]), lowest, zero])
    else:
        mask = tape.op("Identity", [zero])
    rows.type = ir.TensorType(ir.DataType.INT64)
    mask.type = ir.TensorType(ir.DataType.FLOAT)
    return rows, mask


def _return_rows(graph: ir.Graph, topk: ir.Node, rows: ir.Value) -> None:
    """Return the rows ``[B, k]`` of the candidates that the last TopK chose."""
    _, places = topk.outputs
    output = graph.outputs.index(places)
    places.name = "top_places"
    tape = Tape(graph, "top_rows", after=topk)
    top = tape.op("GatherElements", [rows, places], {"axis": 1}, like=places)
    top.name = TOP_ITEMS
    graph.outputs[output] = top
