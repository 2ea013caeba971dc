"""How every pass reads and changes a graph: constants, names, nodes in the place of others."""

from collections.abc import Iterator
from typing import Any

import numpy as np

MICROSOFT = "com.microsoft"


def products(graph: Any) -> Iterator[Any]:
    """Every product with a constant matrix: ``MatMul(x [..., K], W [K, N])``."""
    for node in graph:
        if node.op_type == "MatMul" and node.domain == "":
            weight = node.inputs[1].const_value
            if weight is not None and len(weight.shape) == 2:
                yield node


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


def whole(graph: Any, value: int, name: str) -> Any:
    """The constant ``[value]`` int64, under ``name`` if it has that value there."""
    known = graph.initializers.get(name)
    if known is not None and known.const_value.numpy().tolist() == [value]:
        return known
    return constant(graph, np.array([value], dtype=np.int64), name)


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


def insert(graph: Any, before: Any, nodes: list[Any], base: str) -> None:
    """Name nodes and their outputs after ``base``, and put them before another."""
    for number, node in enumerate(nodes):
        node.name = f"{base}_{number}_{node.op_type}"
        for index, out in enumerate(node.outputs):
            out.name = f"{node.name}_{index}"
    graph.insert_before(before, nodes)


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
