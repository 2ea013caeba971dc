"""Graph passes that make the packed engine fast; none of them changes what it computes.

Each takes the graph as ``onnx_ir`` holds it and changes it in place. Letters: B histories, T
tokens of all of them, H width of the backbone.
"""

import hashlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

MICROSOFT = "com.microsoft"
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

WORTH_MERGING = 3
"""Products of one input that ONNX Runtime computes sooner as one: two products are as many
operators as one product and the Split that copies its parts, three are one more (docs/log.md)."""


def products(graph: Any) -> Iterator[Any]:
    """Every product with a constant matrix: ``MatMul(x [..., K], W [K, N])``."""
    for node in graph:
        if node.op_type == "MatMul" and node.domain == "":
            weight = node.inputs[1].const_value
            if weight is not None and len(weight.shape) == 2:
                yield node


def name_products(graph: Any, layers: Mapping[str, NDArray[np.float32]]) -> None:
    """Tell each product the layers whose weights it holds (``weight.meta["layers"]``).

    Args:
        graph: Its constants are the layers' weights, turned.
        layers: Name -> weight ``[N, K]``.
    """
    names = {_mark(weight.T): name for name, weight in layers.items()}
    for node in products(graph):
        found = names.get(_mark(node.inputs[1].const_value.numpy()))
        node.inputs[1].meta["layers"] = (found,) if found else ()


def merge_products(
    graph: Any, forms: Callable[[tuple[str, ...]], Hashable], *, fewest: int = 2
) -> None:
    """Multiply what is multiplied by several matrices once: q, k, v, and gate and up.

    Args:
        graph: Changed in place.
        forms: Names of layers -> the form that their weights are to have; only products of one
            form are merged.
        fewest: Products that are merged.
    """
    alike: dict[tuple[Any, Hashable], list[Any]] = {}
    for node in products(graph):
        form = forms(node.inputs[1].meta.get("layers", ()))
        alike.setdefault((node.inputs[0], form), []).append(node)
    for nodes in alike.values():
        if len(nodes) >= fewest:
            _merge(graph, nodes)


def _merge(graph: Any, nodes: list[Any]) -> None:
    import onnx_ir as ir

    name = nodes[0].name
    weights = [node.inputs[1].const_value.numpy() for node in nodes]
    weight = constant(graph, np.concatenate(weights, axis=1), f"{name}_weights")
    layers = [layer for node in nodes for layer in node.inputs[1].meta.get("layers", ())]
    weight.meta["layers"] = tuple(layers)
    made, ends = [ir.node("MatMul", [nodes[0].inputs[0], weight])], nodes
    biases = _biases(nodes)
    if biases is not None:
        ends = [use.node for node in nodes for use in node.outputs[0].uses()]
        bias = constant(graph, np.concatenate(biases), f"{name}_biases")
        made.append(ir.node("Add", [made[0].outputs[0], bias]))
    name_nodes(made, f"{name}_merged")
    sizes = np.array([w.shape[1] for w in weights], dtype=np.int64)
    split = ir.node(
        "Split",
        [made[-1].outputs[0], constant(graph, sizes, f"{name}_sizes")],
        {"axis": -1},
        num_outputs=len(nodes),
        name=f"{name}_split",
    )
    graph.insert_before(nodes[0], [*made, split])
    for end, part in zip(ends, split.outputs, strict=True):
        replace(graph, end, part)
    if biases is not None:
        graph.remove(nodes, safe=True)


def _biases(nodes: list[Any]) -> list[NDArray[np.float32]] | None:
    """What is added to each of some products; ``None`` if not every one has a bias."""
    biases = []
    for node in nodes:
        users = [use.node for use in node.outputs[0].uses()]
        if len(users) != 1 or users[0].op_type != "Add":
            return None
        added = [value for value in users[0].inputs if value is not node.outputs[0]]
        if len(added) != 1 or added[0].const_value is None or len(added[0].shape) != 1:
            return None
        biases.append(added[0].const_value.numpy())
    return biases


def select_rows(graph: Any) -> None:
    """Compute of the last layer only what the last token of a history needs.

    The user vector is read from one token of each history. That selection is moved up through
    all that is computed token by token, to the values that other tokens need too: the output
    of the last attention and the residual stream before it.

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


def _selected_shape(shape: Any, tokens: Any) -> Any:
    """What ``[1, T, width]`` becomes where some tokens are selected."""
    import onnx_ir as ir

    if shape is None or len(shape) != 3 or tokens.shape is None:
        return None
    return ir.Shape([shape[0], tokens.shape[0], shape[2]])


def constant(graph: Any, array: Any, name: str, kind: Any = None) -> Any:
    """Put a constant in the graph, of its own type or ``kind``, under a free form of ``name``."""
    import onnx_ir as ir

    free = name
    while free in graph.initializers:
        free += "_"
    tensor = ir.tensor(array, kind, name=free)
    made = ir.val(free, const_value=tensor)
    graph.register_initializer(made)
    return made


def replace(graph: Any, node: Any, value: Any) -> None:
    """Let ``value`` stand for the first output of a node, which goes."""
    old = node.outputs[0]
    if value.name is None or value.name == "":
        value.name = f"{old.name}_"
    old.replace_all_uses_with(value, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def put(graph: Any, node: Any, nodes: list[Any]) -> None:
    """Let ``nodes`` compute, one after the other, what ``node`` did."""
    name_nodes(nodes, node.outputs[0].name)
    graph.insert_before(node, nodes)
    replace(graph, node, nodes[-1].outputs[0])


def name_nodes(nodes: list[Any], base: str) -> None:
    """Name new nodes and their outputs after ``base``."""
    for number, node in enumerate(nodes):
        node.name = f"{base}_{number}_{node.op_type}"
        for out in node.outputs:
            out.name = f"{node.name}_out"


def drop_unused(model: Any) -> None:
    """Drop nodes and constants that nothing reads any more."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)


def _mark(weight: NDArray[np.float32]) -> tuple[tuple[int, ...], bytes]:
    array = np.ascontiguousarray(weight)
    return array.shape, hashlib.sha256(array.tobytes()).digest()


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
