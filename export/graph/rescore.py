"""A large catalogue: all items by a copy of few bits, and those near the best again in floats.

Letters: B histories, R = V + 1 rows, C candidates, d item width, k items given back.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slmc.export.graph.interface import ALL_SCORES, TOP_ITEMS
from slmc.export.graph.ir import constant, insert, whole
from slmc.export.graph.item_table import code_constants, product_of_scores, rounded_rows
from slmc.export.graph.lowering import TOKENS_IN_BLOCKS, nbits_product
from slmc.export.graph.masks import Choice

RESCORED = {"int8+rescore": (8, 4), "int4+rescore": (4, 8)}
"""Forms of a float table: bits of the copy that all items are scored by, and how many times k of
them are scored a second time, from the float table."""
BLOCK = 32
"""Items of a block, whose best one is found in one pass over the scores. The C best items lie in
the C blocks with the best ones, so a TopK need not walk through all scores."""


def rescore(graph: Any, table: NDArray[np.float32], form: str, top_k: int) -> Choice:
    """Score all items by a table of codes, and the best of them again by the float table.

    Args:
        graph: Ends in a TopK of the scores; changed in place.
        table: ``[R, d]``.
        form: Of :data:`RESCORED`.
        top_k: k.

    Returns:
        How the candidates are chosen, for :func:`slmc.export.graph.masks.add_masks`.
    """
    import onnx_ir as ir

    product = product_of_scores(graph)
    users, floats = product.inputs[0], product.inputs[1]
    last = next(node for node, _ in product.outputs[0].uses())
    bits, times = RESCORED[form]
    scores, behind = _score_all(graph, product, table, bits), -len(table) % BLOCK
    # As many more as there may be scores of no item: those of row 0 and behind the end.
    number = min(times * top_k + BLOCK, len(table) + behind)

    def best(given: Any, masked: bool) -> tuple[list[Any], list[Any]]:
        return _candidates(graph, given, number, (len(table) + behind) // BLOCK, masked)

    chosen, (rows, lowered) = best(scores, False)
    insert(graph, last, chosen, "candidates")
    # The last block may be longer than the table: what is behind its end is never given.
    known = ir.node("Min", [rows, whole(graph, len(table) - 1, "last_row")])
    bias = np.full(len(table) + behind, -np.inf, dtype=np.float32)
    bias[1 : len(table)] = 0
    barred = ir.node("Gather", [constant(graph, bias, "item_bias"), rows], {"axis": 0})
    vectors = ir.node("Gather", [floats, known.outputs[0]], {"axis": 0})
    user = ir.node("Unsqueeze", [users, whole(graph, -1, "across")])
    exact = ir.node("MatMul", [vectors.outputs[0], user.outputs[0]])
    exacts = ir.node("Squeeze", [exact.outputs[0], whole(graph, -1, "across")])
    ranked = ir.node("Add", [exacts.outputs[0], barred.outputs[0]])
    allowed = ir.node("Add", [ranked.outputs[0], lowered])
    nodes = [known, barred, vectors, user, exact, exacts, ranked, allowed]
    insert(graph, last, nodes, "rescore")
    last.replace_input_with(0, allowed.outputs[0])
    _give_rows(graph, last, known.outputs[0])
    graph.remove(product, safe=True)
    return Choice(scores, best, [rows, lowered], rows=len(table), behind=behind)


def _score_all(graph: Any, product: Any, table: NDArray[np.float32], bits: int) -> Any:
    """Scores ``[B, R or longer]`` of a copy, in whole blocks; those of no item are noise."""
    longer = np.pad(table, ((0, -len(table) % BLOCK), (0, 0)))
    codes = rounded_rows(longer, bits)
    inputs = [product.inputs[0], *code_constants(graph, codes)]
    scored = nbits_product(inputs, codes, TOKENS_IN_BLOCKS)
    insert(graph, product, [scored], "items")
    scored.outputs[0].name = ALL_SCORES
    return scored.outputs[0]


def _candidates(
    graph: Any, scores: Any, number: int, blocks: int, masked: bool
) -> tuple[list[Any], list[Any]]:
    """The rows ``[B, C]`` of the best scores, ascending, and what is added to their scores."""
    import onnx_ir as ir

    size, across = whole(graph, BLOCK, "block_size"), whole(graph, -1, "across")
    taken = whole(graph, min(number, blocks), "taken_blocks")
    by_block = ir.node("Reshape", [scores, constant(graph, np.array([0, -1, BLOCK]), "by_block")])
    most = ir.node("ReduceMax", [by_block.outputs[0], across], {"keepdims": 0})
    best = ir.node("TopK", [most.outputs[0], taken], num_outputs=2)
    block = best.outputs[1]
    column = ir.node("Unsqueeze", [block, across])
    inside = ir.node("GatherND", [by_block.outputs[0], column.outputs[0]], {"batch_dims": 1})
    flat = ir.node("Reshape", [inside.outputs[0], constant(graph, np.array([0, -1]), "in_blocks")])
    wanted = whole(graph, number, "candidates")
    first = ir.node("TopK", [flat.outputs[0], wanted], num_outputs=2)
    of = ir.node("Div", [first.outputs[1], size])
    within = ir.node("Mod", [first.outputs[1], size])
    which = ir.node("GatherElements", [block, of.outputs[0]], {"axis": 1})
    begin = ir.node("Mul", [which.outputs[0], size])
    rows = ir.node("Add", [begin.outputs[0], within.outputs[0]])
    # In the order of their rows, so that of equal items the smaller row is given.
    order = ir.node("TopK", [rows.outputs[0], wanted], {"largest": 0}, num_outputs=2)
    nodes = [
        by_block,
        most,
        best,
        column,
        inside,
        flat,
        first,
        of,
        within,
        which,
        begin,
        rows,
        order,
    ]
    nothing = constant(graph, np.zeros((1, 1), dtype=np.float32), "no_mask")
    if not masked:
        last = [ir.node("Identity", [nothing])]
    else:
        # What may not be given keeps its -inf.
        lowest = constant(graph, np.array(-np.inf, dtype=np.float32), "lowest")
        known = ir.node("GatherElements", [first.outputs[0], order.outputs[1]], {"axis": 1})
        gone = ir.node("Equal", [known.outputs[0], lowest])
        last = [known, gone, ir.node("Where", [gone.outputs[0], lowest, nothing])]
    order.outputs[0].type = ir.TensorType(ir.DataType.INT64)
    last[-1].outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return [*nodes, *last], [order.outputs[0], last[-1].outputs[0]]


def _give_rows(graph: Any, last: Any, rows: Any) -> None:
    """Give the rows ``[B, k]`` of the places that the last TopK found."""
    import onnx_ir as ir

    places = last.outputs[1]
    places.name = "top_places"
    given = ir.node("GatherElements", [rows, places], {"axis": 1}, name="top_rows")
    given.outputs[0].name = TOP_ITEMS
    given.outputs[0].type, given.outputs[0].shape = places.type, places.shape
    graph.insert_after(last, given)
    graph.outputs[[out.name for out in graph.outputs].index("top_places")] = given.outputs[0]
