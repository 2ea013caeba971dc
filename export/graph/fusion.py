"""Graph passes that make the packed engine fast; none of them changes what it computes.

Each takes the graph as ``onnx_ir`` holds it and changes it in place. Letters: B histories, T
tokens of all of them, H width of the backbone.
"""

import hashlib
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slmc.export.graph.ir import constant, name_nodes, products, replace
from slmc.model.codes import Codes

WORTH_MERGING = 3
"""Products of one input that ONNX Runtime computes sooner as one: two products are as many
operators as one product and the Split that copies its parts, three are one more (docs/log.md)."""


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
    graph: Any,
    forms: Callable[[tuple[str, ...]], Hashable],
    *,
    fewest: int = 2,
    whole: Collection[Any] = (),
) -> None:
    """Multiply what is multiplied by several matrices once: q, k, v, and gate and up.

    Args:
        graph: Changed in place.
        forms: Names of layers -> the form that their weights are to have; only products of one
            form are merged.
        fewest: Products that are merged.
        whole: Inputs of which two products are merged too, since nothing cuts them apart again.
    """
    alike: dict[tuple[Any, Hashable], list[Any]] = {}
    for node in products(graph):
        form = forms(node.inputs[1].meta.get("layers", ()))
        alike.setdefault((node.inputs[0], form), []).append(node)
    for (given, _), nodes in alike.items():
        if len(nodes) >= (2 if given in whole else fewest):
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


def split_slices(graph: Any) -> None:
    """Cut what a product gives by one Split where Slices do, as Phi-3 cuts q, k and v."""
    import onnx_ir as ir

    for node in list(products(graph)):
        whole = node.outputs[0]
        users = [use.node for use in whole.uses()]
        cuts = {cut: user for user in users if (cut := cut_of(user, whole)) is not None}
        bounds = sorted(cuts)
        ends = [0, *(end for _, end in bounds)]
        if len(bounds) < max(2, len(users)) or [start for start, _ in bounds] != ends[:-1]:
            continue
        if ends[-1] != whole.shape[-1]:
            continue
        sizes = constant(graph, np.diff(ends), f"{whole.name}_sizes")
        split = ir.node("Split", [whole, sizes], {"axis": -1}, num_outputs=len(bounds))
        split.name = f"{whole.name}_split"
        graph.insert_after(node, split)
        for bound, part in zip(bounds, split.outputs, strict=True):
            old = cuts[bound].outputs[0]
            part.type, part.shape = old.type, old.shape
            replace(graph, cuts[bound], part)


def cut_of(node: Any, x: Any) -> tuple[int, int] | None:
    """From where to where a node cuts ``x`` along its last axis."""
    if node.op_type != "Slice" or node.inputs[0] is not x:
        return None
    bounds = [value.const_value for value in node.inputs[1:]]
    if any(bound is None for bound in bounds):
        return None
    start, end, axis, *step = (int(bound.numpy()[0]) for bound in bounds)
    whole = axis in (-1, len(x.shape) - 1) and step in ([], [1])
    return (start, min(end, x.shape[-1])) if whole else None


def cut_product(graph: Any, split: Any, own: dict[str, Codes]) -> None:
    """Compute the first part that a Split gives by a product of its own.

    Args:
        graph: Changed in place.
        split: Cuts what a product without a bias gives, and nothing else reads it.
        own: The codes of a quantized model by layer; those of the parts are added.
    """
    import onnx_ir as ir

    product, sizes = split.inputs[0].producer(), split.inputs[1].const_value.numpy()
    x, weight = product.inputs
    matrix, made = weight.const_value.numpy(), []
    for first, end in ((0, sizes[0]), (sizes[0], sizes.sum())):
        part = constant(graph, matrix[:, first:end], f"{weight.name}_from_{first}")
        names = {layer: f"{layer}[{first}:{end}]" for layer in weight.meta.get("layers", ())}
        part.meta["layers"] = tuple(names.values())
        own.update({to: own[name].outputs(first, end) for name, to in names.items() if name in own})
        made.append(ir.node("MatMul", [x, part]))
        made[-1].outputs[0].type = split.inputs[0].type
        made[-1].outputs[0].shape = ir.Shape([*split.inputs[0].shape[:-1], end - first])
    rest = constant(graph, sizes[1:], f"{split.inputs[1].name}_rest")
    made.append(
        ir.node("Split", [made[1].outputs[0], rest], {"axis": -1}, num_outputs=len(sizes) - 1)
    )
    name_nodes(made, f"{split.inputs[0].name}_apart")
    graph.insert_before(split, made)
    parts = [made[0].outputs[0], *made[2].outputs]
    for old, new in zip(split.outputs, parts, strict=True):
        new.name = f"{old.name}_"
        new.type, new.shape = old.type, old.shape
        old.replace_all_uses_with(new)
    graph.remove([split, product], safe=True)


def _mark(weight: NDArray[np.float32]) -> tuple[tuple[int, ...], bytes]:
    array = np.ascontiguousarray(weight)
    return array.shape, hashlib.sha256(array.tobytes()).digest()
