"""The last layer computes only what the last token of each history needs.

Letters: B histories, T tokens of all of them, H width of the backbone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from slmc.export.graph.fusion import split_matmul
from slmc.export.graph.heads import rows_of_heads
from slmc.export.graph.ir import (
    Tape,
    array,
    constant,
    inputs,
    is_constant,
    nodes,
    producer,
    replace,
)
from slmc.export.graph.rotary import HEADS_FIRST
from slmc.model.codes import Codes

if TYPE_CHECKING:
    import onnx_ir as ir

TOKEN_WISE = frozenset(
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
"""Operators whose output at a token depends on their inputs at that token alone."""


def select_last_tokens(graph: ir.Graph) -> ir.Value:
    """Compute the last layer's output and MLP for the last token of each history alone.

    The user vector is read from one token of each history. That selection is moved up through
    all that is computed token by token, to the values that other tokens need too: the output
    of the last attention and the residual stream before it.

    Returns:
        The indices ``[B]`` of these tokens.

    Raises:
        ValueError: The graph does not select tokens as the recommender's packed form does.
    """
    selection, states, tokens = _selection(graph)
    movable, boundary = _token_wise(graph, states, _per_token)
    selected = _move_up(graph, movable, boundary, tokens)
    # [1, B, H] is now where [1, T, H] was, and its rows are the selected ones.
    tape = Tape(graph, f"{selection.name}_squeezed", before=selection)
    axis = constant(graph, [0], "first_axis")
    replace(selection.outputs[0], tape.op("Squeeze", [selected.get(states, states), axis]))
    graph.sort()
    return tokens


def _move_up(
    graph: ir.Graph, movable: list[ir.Node], boundary: list[ir.Value], tokens: ir.Value
) -> dict[ir.Value, ir.Value]:
    """Make nodes compute selected tokens alone; arguments as :func:`_token_wise` returns them.

    Returns:
        For each value at the boundary its selected tokens.
    """
    selected = {value: _select(graph, value, tokens) for value in boundary}
    for node in movable:
        for index, value in enumerate(node.inputs):
            if value in selected:
                node.replace_input_with(index, selected[value])
        for out in node.outputs:
            out.shape = _selected_shape(out.shape, tokens)
    return selected


def _select(graph: ir.Graph, value: ir.Value, tokens: ir.Value) -> ir.Value:
    tape = Tape(graph, f"{value.name}_last", after=value.producer())
    selected = tape.op("Gather", [value, tokens], {"axis": 1}, like=value)
    selected.shape = _selected_shape(value.shape, tokens)
    return selected


def _selected_shape(shape: ir.Shape | None, tokens: ir.Value) -> ir.Shape | None:
    """The shape of a value after some of its tokens are selected."""
    import onnx_ir as ir

    if shape is None or tokens.shape is None:
        return None
    return ir.Shape([size if isinstance(size, int) else tokens.shape[0] for size in shape])


def select_last_queries(
    graph: ir.Graph, tokens: ir.Value, layer_codes: dict[str, Codes]
) -> list[ir.Value]:
    """Compute queries of the last layer for the last token of each history alone.

    Args:
        graph: After :func:`slmc.export.graph.rotary.fuse_rotary`, without unused nodes; changed in
            place. Queries that are not computed token by token from one matmul stay.
        tokens: What :func:`select_last_tokens` returned.
        layer_codes: The codes of a quantized model by layer; a layer that computes queries, keys
            and values becomes two, whose codes are added.

    Returns:
        The inputs of matmuls that compute keys and values alone.
    """
    without_queries = []
    for lookup in nodes(graph, "Gather"):
        if not _looks_up(lookup, tokens):
            continue
        rotary = _rotary(inputs(lookup)[0])
        if rotary is None:
            continue
        queries = inputs(rotary)[0]
        movable, boundary = _token_wise(graph, queries, _per_head)
        split = boundary[0].producer() if len(boundary) == 1 else None
        if split is not None and _is_first_part(boundary[0], split):
            split_matmul(graph, split, layer_codes)
            movable, boundary = _token_wise(graph, queries, _per_head)
        if len(boundary) == 1 and sum(node.op_type == "MatMul" for node in movable) == 1:
            _move_up(graph, movable, boundary, tokens)
            _look_up_last(graph, lookup, rotary, tokens)
            without_queries += boundary
    graph.sort()
    return without_queries


def _looks_up(lookup: ir.Node, tokens: ir.Value) -> bool:
    """Whether a Gather looks up the heads of ``tokens``, to which axes may have been added."""
    rows = rows_of_heads(lookup)
    times = None if rows is None else producer(rows[0].inputs[0])
    value = None if times is None else times.inputs[0]
    while (node := producer(value, "Unsqueeze")) is not None:
        value = node.inputs[0]
    return value is tokens


def _rotary(rows: ir.Value) -> ir.Node | None:
    """The operator that rotated ``rows [T * heads, D]``, if they were only reshaped since."""
    swapped = False
    while True:
        node = rows.producer()
        if node is None or len(rows.uses()) != 1:
            return None
        source = inputs(node)[0]
        if node.op_type == "RotaryEmbedding":
            return node if len(source.uses()) == 1 and not swapped else None
        if node.op_type == "Transpose" and node.attributes["perm"].as_ints() == HEADS_FIRST:
            swapped = not swapped
        elif node.op_type != "Reshape" or swapped:
            return None
        rows = source


def _is_first_part(value: ir.Value, split: ir.Node) -> bool:
    """Whether a value is the first part of a Split, which alone reads the output of a matmul."""
    if split.op_type != "Split" or split.outputs[0] is not value or not _cuts_widths(split):
        return False
    source = inputs(split)[0]
    matmul = producer(source, "MatMul")
    return matmul is not None and len(source.uses()) == 1 and _all_constant(matmul.inputs[1:])


def _look_up_last(graph: ir.Graph, lookup: ir.Node, rotary: ir.Node, tokens: ir.Value) -> None:
    """Rotate queries by the positions of last tokens, in the order that attention looks up."""
    y, queries = lookup.outputs[0], rotary.outputs[0]
    tape = Tape(graph, f"{queries.name}_last", before=rotary)
    rotary.replace_input_with(1, tape.op("Gather", [rotary.inputs[1], tokens], {"axis": 0}))
    # One token a history: the queries of a kv head lie one behind the other already.
    sizes = [] if y.shape is None else [size for size in y.shape[1:] if isinstance(size, int)]
    shape = constant(graph, [-1, *sizes], "last_queries")
    replace(y, Tape(graph, f"{y.name}_last", before=lookup).op("Reshape", [queries, shape]))


def _selection(graph: ir.Graph) -> tuple[ir.Node, ir.Value, ir.Value]:
    """The node that selects each history's last token, the states it selects from, and which."""
    last = next((node for node in reversed(graph) if node.op_type == "GatherND"), None)
    if last is not None:
        squeezed = producer(last.inputs[0], "Gather")
        indices = producer(last.inputs[1], "Unsqueeze")
        if squeezed is not None and indices is not None:
            return last, inputs(squeezed)[0], inputs(indices)[0]
    raise ValueError("no node selects the last token of each history")


def _token_wise(
    graph: ir.Graph,
    states: ir.Value,
    inputs_by_token: Callable[[ir.Node], list[ir.Value] | None],
) -> tuple[list[ir.Node], list[ir.Value]]:
    """Find the nodes that have to compute selected tokens only, and the values they select from.

    Args:
        graph: Sorted.
        states: What is selected from.
        inputs_by_token: Returns the inputs of a node that hold one row per token, or ``None`` if
            the node mixes tokens.
    """
    needed, movable, boundary = {states}, [], []
    for node in reversed(graph):
        outs = [value for value in node.outputs if value in needed]
        if not outs:
            continue
        users = [user for value in node.outputs for user in value.consumers()]
        not_needed_elsewhere = states in outs or all(user in movable for user in users)
        by_token = inputs_by_token(node) if not_needed_elsewhere else None
        if by_token is None:
            boundary += outs
        else:
            movable.append(node)
            needed.update(by_token)
    return movable, boundary


def _per_token(node: ir.Node) -> list[ir.Value] | None:
    """The inputs of a node that hold one row per token: ``[1, T, width]``."""
    computed = [value for value in inputs(node) if not is_constant(value)]
    if node.op_type in TOKEN_WISE and node.domain == "":
        return [value for value in computed if has_tokens(value)]
    if node.op_type == "MatMul":
        return computed if is_constant(node.inputs[1]) else None
    if node.op_type in ("Split", "Slice"):
        return computed[:1] if _cuts_widths(node) else None
    if node.op_type == "ReduceMean":
        return computed if is_last_axis(node) else None
    if node.op_type == "LayerNormalization":
        axis = node.attributes.get("axis")
        return computed if axis is None or axis.as_int() in (-1, 2) else None
    return None


def _per_head(node: ir.Node) -> list[ir.Value] | None:
    """The inputs of a node that hold the rows of a token, such as its heads, before rotation."""
    if node.op_type in ("Reshape", "Transpose"):
        return inputs(node)[:1] if _all_constant(node.inputs[1:]) else None
    if node.op_type in TOKEN_WISE and node.domain == "":
        return [value for value in inputs(node) if not is_constant(value)]
    return _per_token(node)


def is_last_axis(node: ir.Node) -> bool:
    """Return whether a ReduceMean reduces the last axis."""
    axes = node.inputs[1]
    return is_constant(axes) and array(axes).tolist() == [-1]


def _cuts_widths(node: ir.Node) -> bool:
    """Whether a Split or Slice cuts the last axis of ``[1, T, width]``, at constant bounds."""
    if not _all_constant(node.inputs[1:]):
        return False
    if node.op_type == "Split":
        axis = node.attributes.get("axis")
        return axis is not None and axis.as_int() in (-1, 2)
    return len(node.inputs) > 3 and array(node.inputs[3]).tolist() in ([-1], [2])


def _all_constant(values: Iterable[ir.Value | None]) -> bool:
    return all(value is None or is_constant(value) for value in values)


def has_tokens(value: ir.Value) -> bool:
    """Return whether a value can be ``[1, T, width]`` of some T, as far as its shape is known."""
    shape = value.shape
    return shape is None or (len(shape) == 3 and not isinstance(shape[1], int))
