"""The item table in the graph: looked up for the inputs, multiplied for the scores, once stored.

Letters: R = V + 1 rows, d item width.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slmc.export.constraints import BLOCKS
from slmc.export.graph.interface import SCORES, USER_VECTORS
from slmc.export.graph.ir import constant, insert, replace, whole
from slmc.export.graph.lowering import nbits_form, nbits_product
from slmc.export.graph.outputs import rename
from slmc.model.codes import Codes

FOLDED_SHARE = 0.1
"""Of all weights, that a second table may add."""


def share_table(model: Any) -> None:
    """Score with the item table that the inputs are looked up in, instead of a copy of it.

    The product before the top-k becomes ``Gemm(user_vectors, table, bias, transB=1)``, and its
    output is called :data:`SCORES`.

    Raises:
        ValueError: The graph does not end as :func:`slmc.export.graph.optimize.to_onnx` makes it.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    made_by = {name: node for node in graph.node for name in node.output}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    top_k = next(node for node in graph.node if node.op_type == "TopK")
    product = made_by[top_k.input[0]]
    tables = [name for name in weights if name.endswith("item_embeddings.weight")]
    if product.op_type != "Gemm" or len(tables) != 1:
        raise ValueError(f"the scores come from {product.op_type} and {len(tables)} item tables")
    table, second = tables[0], product.input[1]
    if second in weights:
        copied = numpy_helper.to_array(weights[second])
        if not np.array_equal(copied, numpy_helper.to_array(weights[table]).T):
            raise ValueError("the scores are not products with the item table")
        graph.initializer.remove(weights[second])
    elif made_by[second].op_type == "Transpose" and made_by[second].input[0] == table:
        graph.node.remove(made_by[second])
    elif second != table:
        raise ValueError("the scores are not products with the item table")
    product.input[1] = table
    del product.attribute[:]
    product.attribute.append(helper.make_attribute("transB", 1))
    rename(graph, product.output[0], SCORES)
    rename(graph, product.input[0], USER_VECTORS)


def row_codes(codes: NDArray[np.int8], scale: NDArray[np.float32], bits: int) -> Codes:
    """A table of codes ``[R, d]`` around 0 with a scale a row ``[R, 1]``, in blocks of a row."""
    width = codes.shape[1]
    block = next((size for size in BLOCKS if size >= width), BLOCKS[-1])
    blocks = -(-width // block)
    stored = (codes.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    return Codes(bits, block, stored, np.repeat(scale, blocks, axis=1))


def rounded_rows(table: NDArray[np.float32], bits: int) -> Codes:
    """A float table ``[R, d]`` in 8 or 4 bits, a scale a row."""
    largest = np.float32(2 ** (bits - 1) - 1)
    scale = np.abs(table).max(axis=1, keepdims=True) / largest
    scale = np.where(scale == 0, np.float32(1), scale).astype(np.float32)
    return row_codes(np.rint(table / scale).astype(np.int8), scale, bits)


def place_codes(graph: Any, codes: Codes, layout: str) -> None:
    """Hold the table as codes: rows become floats when they are looked up."""
    lookup, product = _uses(graph)
    if layout == "padded":
        _dequantized(graph, lookup, product, codes)
        return
    stored, scale = code_constants(graph, codes)
    _score_codes(graph, product, stored, scale, codes)
    _look_up(graph, lookup, stored, scale, codes)


def fold_inputs(graph: Any) -> None:
    """Look up what the decoder takes of an item, not what it is computed from.

    A second table ``[R, H]`` takes the place of the input projection, where it is small beside
    the other weights.
    """
    import onnx_ir as ir

    lookup, product = _uses(graph)
    projection = next((node for node, _ in lookup.outputs[0].uses()), None)
    if projection is None or projection.op_type != "Gemm":
        return
    # The exporter leaves a bias of zeros out.
    constants = (product.inputs[1], *projection.inputs[1:])
    table, weight, *bias = (value.const_value.numpy() for value in constants)
    whole = sum(value.const_value.nbytes for value in graph.initializers.values())
    if len(table) * len(weight) * table.itemsize > FOLDED_SHARE * whole:
        return
    folded = constant(graph, table @ weight.T + sum(bias), "item_inputs")
    found = ir.node("Gather", [folded, lookup.inputs[1]], {"axis": 0})
    insert(graph, lookup, [found], "inputs")
    replace(graph, projection, found.outputs[0])


def place_signed(graph: Any, codes: NDArray[np.int8], scale: NDArray[np.float32]) -> None:
    """Hold the table as int8 codes around 0 with a scale a row: the one form of TensorRT.

    Args:
        graph: Looks rows of a float table up, and scores with it.
        codes: ``[R, d]``; those of a 4-bit table fill a part of the range.
        scale: ``[R]``.
    """
    lookup, product = _uses(graph)
    inputs = [constant(graph, codes, "item_codes"), constant(graph, scale, "item_scale")]
    _dequantize(graph, lookup, product, inputs)


def _uses(graph: Any) -> tuple[Any, Any]:
    """The node that looks rows of the table up, and the one that scores with it."""
    product = product_of_scores(graph)
    table = product.inputs[1]
    lookup = next(node for node, _ in table.uses() if node.op_type == "Gather")
    return lookup, product


def product_of_scores(graph: Any) -> Any:
    """The node that scores all items."""
    return next(node for node in graph if node.outputs[0].name == SCORES)


def code_constants(graph: Any, codes: Codes) -> tuple[Any, Any]:
    """Codes and scales of the table as MatMulNBits has them."""
    stored, scale, _ = nbits_form(codes)
    return constant(graph, stored, "item_codes"), constant(graph, scale, "item_scale")


def _score_codes(graph: Any, product: Any, stored: Any, scale: Any, codes: Codes) -> None:
    users, _, padding = product.inputs
    bias = constant(graph, padding.const_value.numpy().reshape(-1), "item_bias")
    scored = nbits_product([users, stored, scale, None, None, bias], codes)
    insert(graph, product, [scored], "items")
    _hand_over(graph, product, scored)


def _look_up(graph: Any, lookup: Any, stored: Any, scale: Any, codes: Codes) -> None:
    import onnx_ir as ir

    rows, width = lookup.inputs[1], codes.codes.shape[1]
    block = ir.node("Gather", [stored, rows], {"axis": 0})
    size = ir.node("Gather", [scale, rows], {"axis": 0})
    nodes = [block, size]
    packed = block.outputs[0]
    if codes.bits == 4:
        mask = constant(graph, np.array(15, dtype=np.uint8), "nibble")
        four = constant(graph, np.array(4, dtype=np.uint8), "nibble_bits")
        low = ir.node("BitwiseAnd", [packed, mask])
        high = ir.node("BitShift", [packed, four], {"direction": "RIGHT"})
        parts = [
            ir.node("Unsqueeze", [half.outputs[0], whole(graph, -1, "across")])
            for half in (low, high)
        ]
        pair = ir.node("Concat", [part.outputs[0] for part in parts], {"axis": -1})
        nodes += [low, high, *parts, pair]
        packed = pair.outputs[0]
    blocks, size_of = codes.scale.shape[1], codes.group_size
    shape = constant(graph, np.array([-1, blocks, size_of], dtype=np.int64), "block_shape")
    flat_shape = constant(graph, np.array([-1, blocks * size_of], dtype=np.int64), "row_shape")
    middle = constant(graph, np.array(2 ** (codes.bits - 1), dtype=np.float32), "middle")
    shaped = ir.node("Reshape", [packed, shape])
    floats = ir.node("Cast", [shaped.outputs[0]], {"to": ir.DataType.FLOAT})
    steps = ir.node("Sub", [floats.outputs[0], middle])
    each = ir.node("Unsqueeze", [size.outputs[0], whole(graph, -1, "across")])
    values = ir.node("Mul", [steps.outputs[0], each.outputs[0]])
    flat = ir.node("Reshape", [values.outputs[0], flat_shape])
    nodes += [shaped, floats, steps, each, values, flat]
    if blocks * size_of != width:
        bounds = [whole(graph, at, f"row_{name}") for name, at in (("from", 0), ("to", width))]
        nodes.append(ir.node("Slice", [flat.outputs[0], *bounds, whole(graph, 1, "row_axis")]))
    insert(graph, lookup, nodes, "lookup")
    replace(graph, lookup, nodes[-1].outputs[0])


def _dequantized(graph: Any, lookup: Any, product: Any, codes: Codes) -> None:
    import onnx_ir as ir

    kind = ir.DataType.UINT4 if codes.bits == 4 else ir.DataType.UINT8
    middle = np.full(len(codes.codes), 2 ** (codes.bits - 1), dtype=np.uint8)
    inputs = [
        constant(graph, codes.codes, "item_codes", kind),
        constant(graph, np.ascontiguousarray(codes.scale[:, 0]), "item_scale"),
        constant(graph, middle, "item_zero", kind),
    ]
    _dequantize(graph, lookup, product, inputs)


def _dequantize(graph: Any, lookup: Any, product: Any, inputs: list[Any]) -> None:
    """Let both uses of the table read ``DequantizeLinear(inputs)``, a scale a row."""
    import onnx_ir as ir

    table = ir.node("DequantizeLinear", inputs, {"axis": 0})
    insert(graph, lookup, [table], "items")
    lookup.replace_input_with(0, table.outputs[0])
    product.replace_input_with(1, table.outputs[0])
    graph.sort()


def _hand_over(graph: Any, old: Any, new: Any) -> None:
    """Give a node's first output, name and all, to another node's."""
    value, made = old.outputs[0], new.outputs[0]
    name = value.name
    value.replace_all_uses_with(made, replace_graph_outputs=True)
    graph.remove(old, safe=True)
    made.name = name
