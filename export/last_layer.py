"""The last layer computes what the last token of each history needs, and nothing else.

Letters: B histories, T tokens of all of them, H width of the backbone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from slmc.export.fusion import constant, put, replace
from slmc.export.heads import looked_up_by

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
QUERIES = ("Reshape", "Transpose", "Transpose", "Reshape", "RotaryEmbedding", "Reshape")
"""From the rows that queries are looked up in back to their product, or what adds its bias."""


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
    taken, boundary = _row_wise(graph, states)
    rows: dict[Any, Any] = {}
    for value in boundary:
        rows[value] = _select(graph, value, tokens)
    for node in taken:
        for index, value in enumerate(node.inputs):
            if value in rows:
                node.replace_input_with(index, rows[value])
        for out in node.outputs:
            out.shape = _selected_shape(out.shape, tokens)
    # [1, B, H] is now where [1, T, H] was, and its rows are the selected ones.
    import onnx_ir as ir

    source = rows.get(states, states)
    squeeze = ir.node("Squeeze", [source, constant(graph, np.array([0]), "first_axis")])
    graph.insert_before(selected, squeeze)
    replace(graph, selected, squeeze.outputs[0])
    graph.sort()
    return tokens


def _selected_shape(shape: Any, tokens: Any) -> Any:
    """What ``[1, T, width]`` becomes where some tokens are selected."""
    import onnx_ir as ir

    if shape is None or len(shape) != 3 or tokens.shape is None:
        return None
    return ir.Shape([shape[0], tokens.shape[0], shape[2]])


def select_queries(graph: Any, tokens: Any) -> list[Any]:
    """Compute queries of the last layer for the last token of each history alone.

    Args:
        graph: After :func:`slmc.export.rotary.turn`; changed in place. Queries that more is done
            to than a product and a turn, such as a norm, stay.
        tokens: What :func:`select_rows` gave.

    Returns:
        What keys and values are still products of, the queries not.
    """
    left = []
    for lookup in [node for node in graph if node.op_type == "Gather"]:
        token = looked_up_by(lookup)
        if token is None or not _stands_for(token[0].inputs[0].producer().inputs[0], tokens):
            continue
        steps = _steps(lookup.inputs[0], QUERIES)
        product = _product(steps[-1].inputs[0]) if steps else None
        if steps and product:
            _move_up(graph, lookup, steps[-2:], product, tokens)
            left.append(product[0])
    return left


def _steps(value: Any, kinds: Sequence[str]) -> list[Any] | None:
    """The nodes that made a value, the last first, if they are of these kinds and used once."""
    steps = []
    for kind in kinds:
        node = value.producer()
        if node is None or node.op_type != kind or len(list(value.uses())) != 1:
            return None
        steps.append(node)
        value = node.inputs[0]
    return steps


def _stands_for(value: Any, tokens: Any) -> bool:
    """Whether a value is ``tokens`` with more axes."""
    made = value.producer()
    while made is not None and made.op_type == "Unsqueeze":
        value = made.inputs[0]
        made = value.producer()
    return value is tokens


def _product(value: Any) -> tuple[Any, Any, Any] | None:
    """``x``, ``W`` and the bias, or ``None`` in its place, of ``value = x @ W + bias``."""
    made, bias = value.producer(), None
    if made is not None and made.op_type == "Add":
        constants = [one for one in made.inputs if one.const_value is not None]
        others = [one for one in made.inputs if one.const_value is None]
        if len(constants) != 1:
            return None
        bias, made = constants[0], others[0].producer()
    return None if made is None or made.op_type != "MatMul" else (*made.inputs, bias)


def _move_up(
    graph: Any, lookup: Any, steps: list[Any], product: tuple[Any, Any, Any], tokens: Any
) -> None:
    """Select what queries are products of, in the place of queries.

    Args:
        graph: Changed in place.
        lookup: Gathers the rows ``[B, groups, heads / groups, D]`` of queries.
        steps: What turned them, and what shaped them for it.
        product: Of :func:`_product`.
        tokens: ``[B]``.
    """
    import onnx_ir as ir

    (turned, apart), (x, weight, bias) = steps, product
    last = ir.node("Gather", [x, tokens], {"axis": 1})
    nodes = [last, ir.node("MatMul", [last.outputs[0], weight])]
    if bias is not None:
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], bias]))
    flat = ir.node("Reshape", [nodes[-1].outputs[0], apart.inputs[1]])
    places = ir.node("Gather", [turned.inputs[1], tokens], {"axis": 0})
    inputs = [flat.outputs[0], places.outputs[0], *turned.inputs[2:]]
    turn = ir.node(turned.op_type, inputs, dict(turned.attributes), domain=turned.domain)
    # One token a history: the queries of a kv head lie one behind the other already.
    sizes = constant(graph, np.array([-1, *list(lookup.outputs[0].shape)[1:]]), "last_queries")
    shaped = ir.node("Reshape", [turn.outputs[0], sizes])
    last.outputs[0].type, last.outputs[0].shape = x.type, _selected_shape(x.shape, tokens)
    put(graph, lookup, [*nodes, flat, places, turn, shaped])


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


def _row_wise(graph: Any, states: Any) -> tuple[list[Any], list[Any]]:
    """Nodes that have to compute selected tokens only, and the values they select from."""
    wanted, taken, boundary = {states}, [], []
    for node in reversed(list(graph)):
        outs = [value for value in node.outputs if value in wanted]
        if not outs:
            continue
        users = [user for value in node.outputs for user, _ in value.uses()]
        only_here = states in outs or all(user in taken for user in users)
        inputs = _per_token(node) if only_here else None
        if inputs is None:
            boundary += outs
        else:
            taken.append(node)
            wanted.update(inputs)
    return taken, boundary


def _per_token(node: Any) -> list[Any] | None:
    """The inputs of a node that hold a row a token; ``None`` if it mixes tokens."""
    given = [value for value in node.inputs if value is not None and value.const_value is None]
    if node.op_type in ROW_WISE and node.domain == "":
        return [value for value in given if has_tokens(value)]
    if node.op_type == "MatMul":
        return given if node.inputs[1].const_value is not None else None
    if node.op_type in ("Split", "Slice"):
        return given[:1] if _cuts_widths(node) else None
    if node.op_type == "ReduceMean":
        return given if is_last_axis(node) else None
    return None


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
