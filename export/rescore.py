"""A large catalogue: all items by a copy of few bits, and those near the best again in floats.

Letters: B histories, R = V + 1 rows, d item width, k items given back, N blocks of rows.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slmc.export import masks
from slmc.export.fusion import constant
from slmc.export.lowering import TOKENS_IN_BLOCKS, nbits_product
from slmc.export.passes import ALL_SCORES, TOP_ITEMS
from slmc.export.table import code_constants, insert, product_of_scores, rounded_rows, whole

RESCORED = {"int8+rescore": (8, 4), "int4+rescore": (4, 8)}
"""Forms of a float table: bits of the copy that all items are scored by, and how many times k
blocks of them are scored a second time, from the float table."""
BLOCK = 16
"""Items of a block. The best of each are found in one pass over the scores, and as many blocks as
a TopK of all items would have to take hold what it would take, and more."""


def rescore(graph: Any, table: NDArray[np.float32], form: str, top_k: int) -> None:
    """Score all items by a table of codes, and the best blocks of them again by the float table.

    Args:
        graph: Ends in a TopK of the scores; it is given the inputs of :mod:`slmc.export.masks`.
        table: ``[R, d]``.
        form: Of :data:`RESCORED`.
        top_k: k.
    """
    import onnx_ir as ir

    product = product_of_scores(graph)
    users, floats = product.inputs[0], product.inputs[1]
    last = next(node for node, _ in product.outputs[0].uses())
    bits, times = RESCORED[form]
    blocks = -(-len(table) // BLOCK)
    scores = _score_all(graph, product, table, bits)
    taken = min(times * top_k, blocks)

    def best(given: Any, masked: bool) -> tuple[list[Any], list[Any]]:
        return _best_blocks(graph, given, taken, masked)

    kinds = (ir.DataType.INT64, ir.DataType.FLOAT)
    longer = {"rows": len(table), "behind": -len(table) % BLOCK}
    block, lowered = masks.choose(graph, last, scores, best, kinds, **longer)
    first = ir.node("Mul", [block, whole(graph, BLOCK, "block_size")])
    column = ir.node("Unsqueeze", [first.outputs[0], whole(graph, -1, "across")])
    within = constant(graph, np.arange(BLOCK), "within_block")
    each = ir.node("Add", [column.outputs[0], within])
    flat = constant(graph, np.array([-1, taken * BLOCK]), "candidates")
    rows = ir.node("Reshape", [each.outputs[0], flat])
    # The last block may be longer than the table: what is behind its end is never given.
    known = ir.node("Min", [rows.outputs[0], whole(graph, len(table) - 1, "last_row")])
    bias = np.full(blocks * BLOCK, -np.inf, dtype=np.float32)
    bias[1 : len(table)] = 0
    barred = ir.node("Gather", [constant(graph, bias, "item_bias"), rows.outputs[0]], {"axis": 0})
    vectors = ir.node("Gather", [floats, known.outputs[0]], {"axis": 0})
    user = ir.node("Unsqueeze", [users, whole(graph, -1, "across")])
    exact = ir.node("MatMul", [vectors.outputs[0], user.outputs[0]])
    exacts = ir.node("Squeeze", [exact.outputs[0], whole(graph, -1, "across")])
    ranked = ir.node("Add", [exacts.outputs[0], barred.outputs[0]])
    allowed = ir.node("Add", [ranked.outputs[0], lowered])
    nodes = [first, column, each, rows, known, barred, vectors, user, exact, exacts, ranked]
    insert(graph, last, [*nodes, allowed], "rescore")
    last.replace_input_with(0, allowed.outputs[0])
    _give_rows(graph, last, known.outputs[0])
    graph.remove(product, safe=True)


def _score_all(graph: Any, product: Any, table: NDArray[np.float32], bits: int) -> Any:
    """Scores ``[B, N * BLOCK]`` of a copy; row 0 and what is behind the last one are noise."""
    longer = np.pad(table, ((0, -len(table) % BLOCK), (0, 0)))
    codes = rounded_rows(longer, bits)
    inputs = [product.inputs[0], *code_constants(graph, codes)]
    scored = nbits_product(inputs, codes, TOKENS_IN_BLOCKS)
    insert(graph, product, [scored], "items")
    scored.outputs[0].name = ALL_SCORES
    return scored.outputs[0]


def _best_blocks(graph: Any, scores: Any, taken: int, masked: bool) -> tuple[list[Any], list[Any]]:
    """The best blocks ``[B, taken]`` in their order, and what is added to the scores in them."""
    import onnx_ir as ir

    shape = constant(graph, np.array([0, -1, BLOCK]), "by_block")
    number = whole(graph, taken, "taken_blocks")
    blocks = ir.node("Reshape", [scores, shape])
    most = ir.node("ReduceMax", [blocks.outputs[0], whole(graph, 2, "within")], {"keepdims": 0})
    best = ir.node("TopK", [most.outputs[0], number], num_outputs=2)
    # In the order of their rows, so that of equal items the smaller row is given.
    order = ir.node("TopK", [best.outputs[1], number], {"largest": 0}, num_outputs=2)
    nodes = [blocks, most, best, order]
    nothing = constant(graph, np.zeros((1, 1), dtype=np.float32), "no_mask")
    if not masked:
        same = ir.node("Identity", [nothing])
        return [*nodes, same], [order.outputs[0], same.outputs[0]]
    column = ir.node("Unsqueeze", [order.outputs[0], whole(graph, -1, "across")])
    inside = ir.node("GatherND", [blocks.outputs[0], column.outputs[0]], {"batch_dims": 1})
    flat = constant(graph, np.array([-1, taken * BLOCK]), "candidates")
    known = ir.node("Reshape", [inside.outputs[0], flat])
    lowest = constant(graph, np.array(-np.inf, dtype=np.float32), "lowest")
    gone = ir.node("Equal", [known.outputs[0], lowest])
    mask = ir.node("Where", [gone.outputs[0], lowest, nothing])
    return [*nodes, column, inside, known, gone, mask], [order.outputs[0], mask.outputs[0]]


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
