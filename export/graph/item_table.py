"""The item table in the graph: stored once, looked up for the inputs and multiplied for the scores.

Letters: R = V + 1 rows, d item width, H width of the backbone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from slmc.export.constraints import BLOCKS
from slmc.export.graph.interface import SCORES, USER_VECTORS
from slmc.export.graph.ir import Tape, array, constant, inputs, nodes, replace
from slmc.export.graph.nbits import nbits_constants, nbits_matmul
from slmc.export.graph.outputs import rename
from slmc.model.codes import Codes

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

FOLDED_SHARE = 0.1
"""Largest size of a second table, as a share of all weights."""
CHUNK = 1 << 16
"""Rows that are rounded at once."""


def share_table(model: onnx.ModelProto) -> None:
    """Score with the item table that the inputs are looked up in, instead of a copy of it.

    The Gemm before the top-k becomes ``Gemm(user_vectors, table, bias, transB=1)``, and its
    output is called :data:`SCORES`.

    Raises:
        ValueError: The graph does not end as :func:`slmc.export.graph.trace.traced` makes it.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    top_k = next(node for node in graph.node if node.op_type == "TopK")
    gemm = producers[top_k.input[0]]
    tables = [name for name in weights if name.endswith("item_embeddings.weight")]
    if gemm.op_type != "Gemm" or len(tables) != 1:
        raise ValueError(f"the scores come from {gemm.op_type} and {len(tables)} item tables")
    table, second = tables[0], gemm.input[1]
    if second in weights:
        copied = numpy_helper.to_array(weights[second])
        if not np.array_equal(copied, numpy_helper.to_array(weights[table]).T):
            raise ValueError("the scores are not computed from the item table")
        graph.initializer.remove(weights[second])
    elif producers[second].op_type == "Transpose" and producers[second].input[0] == table:
        graph.node.remove(producers[second])
    elif second != table:
        raise ValueError("the scores are not computed from the item table")
    gemm.input[1] = table
    del gemm.attribute[:]
    gemm.attribute.append(helper.make_attribute("transB", 1))
    rename(graph, gemm.output[0], SCORES)
    rename(graph, gemm.input[0], USER_VECTORS)


def row_codes(codes: NDArray[np.int8], scale: NDArray[np.float32], bits: int) -> Codes:
    """Return a table of codes ``[R, d]`` around 0, one scale per row ``[R, 1]``, in blocks."""
    width = codes.shape[1]
    block = next((size for size in BLOCKS if size >= width), BLOCKS[-1])
    blocks = -(-width // block)
    stored = (codes.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    return Codes(bits, block, stored, np.repeat(scale, blocks, axis=1))


def rounded_rows(table: NDArray[np.float32], bits: int) -> Codes:
    """Return a float table ``[R, d]`` in 8 or 4 bits, with one scale per row."""
    largest = np.float32(2 ** (bits - 1) - 1)
    codes, scales = np.empty(table.shape, np.int8), np.empty((len(table), 1), np.float32)
    for start in range(0, len(table), CHUNK):
        part = table[start : start + CHUNK]
        scale = np.abs(part).max(axis=1, keepdims=True) / largest
        scale = np.where(scale == 0, np.float32(1), scale).astype(np.float32)
        codes[start : start + CHUNK] = np.rint(part / scale)
        scales[start : start + CHUNK] = scale
    return row_codes(codes, scales, bits)


def store_codes(graph: ir.Graph, codes: Codes, layout: str) -> None:
    """Store the table as codes: rows become floats when they are looked up."""
    import onnx_ir as ir

    if layout == "padded":
        dtype = ir.DataType.UINT4 if codes.bits == 4 else ir.DataType.UINT8
        middle = np.full(len(codes.codes), 2 ** (codes.bits - 1), dtype=np.uint8)
        operands = [
            constant(graph, codes.codes, "item_codes", dtype),
            constant(graph, np.ascontiguousarray(codes.scale[:, 0]), "item_scale"),
            constant(graph, middle, "item_zero_point", dtype),
        ]
        _dequantize(graph, operands)
        return
    lookup, scoring = _table_nodes(graph)
    packed, scale = code_constants(graph, codes)
    _score_codes(graph, scoring, packed, scale, codes)
    _look_up_codes(graph, lookup, packed, scale, codes)


def store_int8(graph: ir.Graph, codes: NDArray[np.int8], scale: NDArray[np.float32]) -> None:
    """Store the table as int8 codes around 0 with one scale per row: the one form of TensorRT.

    Args:
        graph: Looks up rows of a float table, and scores with it; changed in place.
        codes: ``[R, d]``; those of a 4-bit table fill a part of the range.
        scale: ``[R]``.
    """
    _dequantize(graph, [constant(graph, codes, "item_codes"), constant(graph, scale, "item_scale")])


def fold_input_projection(graph: ir.Graph) -> None:
    """Look up the projected vector of an item, instead of projecting the one that was looked up.

    A second table ``[R, H]`` replaces the input projection, if it is small compared to the other
    weights.
    """
    lookup, scoring = _table_nodes(graph)
    users = lookup.outputs[0].consumers()
    projection = users[0] if users else None
    if projection is None or projection.op_type != "Gemm":
        return
    # The exporter leaves a bias of zeros out.
    operands = (scoring.inputs[1], *projection.inputs[1:])
    table, weight, *bias = (array(value) for value in operands)
    constants = [value.const_value for value in graph.initializers.values()]
    all_bytes = sum(each.nbytes for each in constants if each is not None)
    if len(table) * len(weight) * table.itemsize > FOLDED_SHARE * all_bytes:
        return
    folded = constant(graph, table @ weight.T + sum(bias), "item_inputs")
    tape = Tape(graph, "item_inputs", before=lookup)
    replace(projection.outputs[0], tape.op("Gather", [folded, lookup.inputs[1]], {"axis": 0}))


def _table_nodes(graph: ir.Graph) -> tuple[ir.Node, ir.Node]:
    """The node that looks up rows of the table, and the one that scores with it."""
    scoring = scoring_node(graph)
    lookup = next(node for node in nodes(graph, "Gather") if node.inputs[0] is scoring.inputs[1])
    return lookup, scoring


def scoring_node(graph: ir.Graph) -> ir.Node:
    """Return the node that scores all items."""
    return next(node for node in graph if node.outputs[0].name == SCORES)


def code_constants(graph: ir.Graph, codes: Codes) -> tuple[ir.Value, ir.Value]:
    """Add codes and scales of the table in the form of MatMulNBits."""
    packed, scale, _ = nbits_constants(codes)
    return constant(graph, packed, "item_codes"), constant(graph, scale, "item_scale")


def _score_codes(
    graph: ir.Graph, scoring: ir.Node, packed: ir.Value, scale: ir.Value, codes: Codes
) -> None:
    users, _, padding = inputs(scoring)
    bias = constant(graph, array(padding).reshape(-1), "item_bias")
    tape = Tape(graph, SCORES, before=scoring)
    scores = nbits_matmul(tape, [users, packed, scale, None, None, bias], codes)
    replace(scoring.outputs[0], scores)


def _look_up_codes(
    graph: ir.Graph, lookup: ir.Node, packed: ir.Value, scale: ir.Value, codes: Codes
) -> None:
    y, rows = lookup.outputs[0], lookup.inputs[1]
    tape = Tape(graph, "item_lookup", before=lookup)
    last_axis = constant(graph, [-1], "last_axis")
    block = tape.op("Gather", [packed, rows], {"axis": 0})
    row_scale = tape.op("Gather", [scale, rows], {"axis": 0})
    if codes.bits == 4:
        low = tape.op("BitwiseAnd", [block, tape.constant(np.uint8(15), "nibble")])
        four = tape.constant(np.uint8(4), "nibble_bits")
        high = tape.op("BitShift", [block, four], {"direction": "RIGHT"})
        pair = [tape.op("Unsqueeze", [half, last_axis]) for half in (low, high)]
        block = tape.op("Concat", pair, {"axis": -1})
    blocks, size, width = codes.scale.shape[1], codes.group_size, codes.codes.shape[1]
    shaped = tape.op("Reshape", [block, tape.constant([-1, blocks, size], "block_shape")])
    middle = tape.constant(np.float32(2 ** (codes.bits - 1)), "middle")
    centred = tape.op("Sub", [tape.cast(shaped, "FLOAT"), middle])
    floats = tape.op("Mul", [centred, tape.op("Unsqueeze", [row_scale, last_axis])])
    vectors = tape.op("Reshape", [floats, tape.constant([-1, blocks * size], "row_shape")])
    if blocks * size != width:
        start, end = tape.constant([0], "start"), tape.constant([width], "end")
        vectors = tape.op("Slice", [vectors, start, end, tape.constant([1], "axis")])
    replace(y, vectors)


def _dequantize(graph: ir.Graph, operands: list[ir.Value]) -> None:
    """Replace the table in both uses by ``DequantizeLinear(operands)``, one scale per row."""
    lookup, scoring = _table_nodes(graph)
    tape = Tape(graph, "item_table", before=lookup)
    table = tape.op("DequantizeLinear", operands, {"axis": 0})
    lookup.replace_input_with(0, table)
    scoring.replace_input_with(1, table)
    graph.sort()
