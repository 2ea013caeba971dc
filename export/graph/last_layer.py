"""The last layer computes what the last token of each history needs, and nothing else.

Letters: B histories, T tokens of all of them, H width of the backbone.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from slmc.export.graph.fusion import cut_product
from slmc.export.graph.heads import looked_up_by
from slmc.export.graph.ir import constant, name_nodes, put, replace
from slmc.export.graph.rotary import HEADS_FIRST
from slmc.model.codes import Codes

ROW_WISE = frozenset(
    [
        "Abs",
        "Add",
        "Cast",
        "Div",
        "Erf",
        "Exp",
        "Gelu",
        "Identity",
        "Mul",
        "Neg",
        "Pow",
        "Reciprocal",
        "Relu",
        "Sigmoid",
        "Sqrt",
        "Sub",
        "Tanh",
    ]
)
"""Operators whose output at a token hangs on nothing but their inputs at that token."""


def select_rows(graph: Any) -> Any:
    """Compute of the last layer only what the last token of a history needs.

    The user vector is read from one token of each history. That selection is moved up through
    all that is computed token by token, to the values that other tokens need too: the output
    of the last attention and the residual stream before it.

    Returns:
        The value ``[B]`` that says which tokens they are.

    Raises:
        ValueError: The graph does not select tokens as the recommender's packed form does.
    """
    selected, states, tokens = _selection(graph)
    taken, boundary = _row_wise(graph, states, _per_token)
    rows = _move_up(graph, taken, boundary, tokens)
    # [1, B, H] is now where [1, T, H] was, and its rows are the selected ones.
    import onnx_ir as ir

    source = rows.get(states, states)
    squeeze = ir.node("Squeeze", [source, constant(graph, np.array([0]), "first_axis")])
    graph.insert_before(selected, squeeze)
    name = selected.outputs[0].name  # that of an output of the engine, where no head follows
    replace(graph, selected, squeeze.outputs[0])
    squeeze.outputs[0].name = name
    graph.sort()
    return tokens


def _move_up(graph: Any, taken: list[Any], boundary: list[Any], tokens: Any) -> dict[Any, Any]:
    """Let nodes compute selected tokens only, by what :func:`_row_wise` gave.

    Returns:
        For each value at the boundary its selected rows.
    """
    rows = {value: _select(graph, value, tokens) for value in boundary}
    for node in taken:
        for index, value in enumerate(node.inputs):
            if value in rows:
                node.replace_input_with(index, rows[value])
        for out in node.outputs:
            out.shape = _selected_shape(out.shape, tokens)
    return rows


def _selected_shape(shape: Any, tokens: Any) -> Any:
    """What the shape of a value becomes where some tokens are selected."""
    import onnx_ir as ir

    if shape is None or tokens.shape is None:
        return None
    return ir.Shape([size if isinstance(size, int) else tokens.shape[0] for size in shape])


def select_queries(graph: Any, tokens: Any, own: dict[str, Codes]) -> list[Any]:
    """Compute queries of the last layer for the last token of each history alone.

    Args:
        graph: After :func:`slmc.export.graph.rotary.turn`, without what it left unused; changed in
            place. Queries that are not computed token by token from one product stay.
        tokens: What :func:`select_rows` gave.
        own: The codes of a quantized model by layer; a layer that gives queries, keys and values
            becomes two, whose codes are added.

    Returns:
        What keys and values are still products of, the queries not.
    """
    left = []
    for lookup in [node for node in graph if node.op_type == "Gather"]:
        token = looked_up_by(lookup)
        if token is None or not _stands_for(token[0].inputs[0].producer().inputs[0], tokens):
            continue
        turned = _turned(lookup.inputs[0])
        if turned is None:
            continue
        taken, boundary = _row_wise(graph, turned.inputs[0], _per_head)
        split = boundary[0].producer() if len(boundary) == 1 else None
        if split is not None and _gives_first(split, boundary[0]):
            cut_product(graph, split, own)
            taken, boundary = _row_wise(graph, turned.inputs[0], _per_head)
        if len(boundary) == 1 and sum(node.op_type == "MatMul" for node in taken) == 1:
            _move_up(graph, taken, boundary, tokens)
            _look_up_last(graph, lookup, turned, tokens)
            left += boundary
    graph.sort()
    return left


def _stands_for(value: Any, tokens: Any) -> bool:
    """Whether a value is ``tokens`` with more axes."""
    made = value.producer()
    while made is not None and made.op_type == "Unsqueeze":
        value = made.inputs[0]
        made = value.producer()
    return value is tokens


def _turned(rows: Any) -> Any:
    """The operator that turned ``rows [T * heads, D]``, if nothing was done to them since."""
    swapped = False
    while True:
        node = rows.producer()
        if node is None or len(list(rows.uses())) != 1:
            return None
        if node.op_type == "RotaryEmbedding":
            alone = len(list(node.inputs[0].uses())) == 1
            return node if alone and not swapped else None
        if node.op_type == "Transpose" and node.attributes["perm"].as_ints() == HEADS_FIRST:
            swapped = not swapped
        elif node.op_type != "Reshape" or swapped:
            return None
        rows = node.inputs[0]


def _gives_first(split: Any, value: Any) -> bool:
    """Whether a value is the first part that a Split cuts out of a product of its own."""
    if split.op_type != "Split" or split.outputs[0] is not value or not _cuts_widths(split):
        return False
    product = split.inputs[0].producer()
    alone = len(list(split.inputs[0].uses())) == 1
    return bool(alone and product.op_type == "MatMul" and _all_constant(product.inputs[1:]))


def _look_up_last(graph: Any, lookup: Any, turned: Any, tokens: Any) -> None:
    """Turn queries by the positions of last tokens, in the order that attention looks up."""
    import onnx_ir as ir

    places = ir.node("Gather", [turned.inputs[1], tokens], {"axis": 0})
    name_nodes([places], f"{turned.outputs[0].name}_places")
    graph.insert_before(turned, places)
    turned.replace_input_with(1, places.outputs[0])
    # One token a history: the queries of a kv head lie one behind the other already.
    sizes = constant(graph, np.array([-1, *list(lookup.outputs[0].shape)[1:]]), "last_queries")
    put(graph, lookup, [ir.node("Reshape", [turned.outputs[0], sizes])])


def _selection(graph: Any) -> tuple[Any, Any, Any]:
    """The node that selects each history's last token, the states it selects of, and which."""
    for node in reversed(list(graph)):
        if node.op_type == "GatherND":
            squeezed, tokens = node.inputs[0].producer(), node.inputs[1].producer()
            if (
                squeezed is not None
                and squeezed.op_type == "Gather"
                and tokens is not None
                and tokens.op_type == "Unsqueeze"
            ):
                return node, squeezed.inputs[0], tokens.inputs[0]
            break
    raise ValueError("no node selects the last token of each history")


def _row_wise(
    graph: Any, states: Any, per_token: Callable[[Any], list[Any] | None]
) -> tuple[list[Any], list[Any]]:
    """Nodes that have to compute selected tokens only, and the values they select from.

    Args:
        graph: Sorted.
        states: What is selected of.
        per_token: Gives the inputs of a node that hold a row a token; ``None`` if it mixes tokens.
    """
    wanted, taken, boundary = {states}, [], []
    for node in reversed(list(graph)):
        outs = [value for value in node.outputs if value in wanted]
        if not outs:
            continue
        users = [user for value in node.outputs for user, _ in value.uses()]
        only_here = states in outs or all(user in taken for user in users)
        inputs = per_token(node) if only_here else None
        if inputs is None:
            boundary += outs
        else:
            taken.append(node)
            wanted.update(inputs)
    return taken, boundary


def _per_token(node: Any) -> list[Any] | None:
    """The inputs of a node that hold a row a token ``[1, T, width]``."""
    given = [value for value in node.inputs if value is not None and value.const_value is None]
    if node.op_type in ROW_WISE and node.domain == "":
        return [value for value in given if has_tokens(value)]
    if node.op_type == "MatMul":
        return given if node.inputs[1].const_value is not None else None
    if node.op_type in ("Split", "Slice"):
        return given[:1] if _cuts_widths(node) else None
    if node.op_type == "ReduceMean":
        return given if is_last_axis(node) else None
    if node.op_type == "LayerNormalization":
        axis = node.attributes.get("axis")
        return given if axis is None or axis.as_int() in (-1, 2) else None
    return None


def _per_head(node: Any) -> list[Any] | None:
    """The inputs of a node that hold rows of a token, such as its heads, before they are turned."""
    if node.op_type in ("Reshape", "Transpose"):
        return list(node.inputs[:1]) if _all_constant(node.inputs[1:]) else None
    if node.op_type in ROW_WISE and node.domain == "":
        return [value for value in node.inputs if value.const_value is None]
    return _per_token(node)


def is_last_axis(node: Any) -> bool:
    """Whether a ReduceMean works along the last axis."""
    axes = node.inputs[1].const_value
    return axes is not None and axes.numpy().tolist() == [-1]


def _cuts_widths(node: Any) -> bool:
    """Whether a Split or Slice works along the last axis of ``[1, T, width]``, by constants."""
    if node.op_type == "Split":
        axis = node.attributes.get("axis")
        return axis is not None and axis.as_int() in (-1, 2) and _all_constant(node.inputs[1:])
    axes = node.inputs[3].const_value if len(node.inputs) > 3 else None
    return (
        axes is not None and axes.numpy().tolist() in ([-1], [2]) and _all_constant(node.inputs[1:])
    )


def _all_constant(values: Any) -> bool:
    return all(value is None or value.const_value is not None for value in values)


def has_tokens(value: Any) -> bool:
    """Whether a value is, as far as is known, ``[1, T, width]`` of some T."""
    shape = value.shape
    return shape is None or (len(shape) == 3 and not isinstance(shape[1], int))


def _select(graph: Any, value: Any, tokens: Any) -> Any:
    import onnx_ir as ir

    node = ir.node("Gather", [value, tokens], {"axis": 1}, name=f"{value.name}_selected")
    out = node.outputs[0]
    out.name, out.type = f"{value.name}_last", value.type
    out.shape = _selected_shape(value.shape, tokens)
    made = value.producer()
    graph.insert_after(made, node)
    return node.outputs[0]
