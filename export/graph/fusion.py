"""Graph passes that merge matmuls of one input, and cut their outputs without copies.

None of them changes what the graph computes. Letters: K inputs, N outputs of a matmul.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from slmc.export.graph.ir import (
    LAYERS,
    Matmul,
    Tape,
    array,
    constant,
    inputs,
    is_constant,
    matmul,
    matmuls,
    only_user,
    rank,
    replace,
)
from slmc.model.codes import Codes

if TYPE_CHECKING:
    import onnx_ir as ir

WORTH_MERGING = 3
"""Matmuls of one input that ONNX Runtime computes faster as one: two matmuls are as many operators
as one matmul and the Split that copies its parts, three are one more (docs/log.md)."""


def mark_layers(graph: ir.Graph, weights: Mapping[str, NDArray[np.float32]]) -> None:
    """Write into the metadata of each matmul's weight which layer it belongs to.

    Args:
        graph: Its constants are the transposed weights of the layers.
        weights: Name of a layer -> weight ``[N, K]``.
    """
    names = {_fingerprint(weight.T): name for name, weight in weights.items()}
    for each in matmuls(graph):
        name = names.get(_fingerprint(array(each.weight)))
        each.weight.meta[LAYERS] = (name,) if name else ()


def merge_matmuls(
    graph: ir.Graph,
    form_of: Callable[[tuple[str, ...]], Hashable],
    *,
    fewest: int = 2,
    unsplit: Collection[ir.Value] = (),
) -> None:
    """Compute several matmuls of one input as one: q, k, v, and gate and up.

    Args:
        graph: Changed in place.
        form_of: Names of layers -> the form that their weights will have; only matmuls of one form
            are merged.
        fewest: Number of matmuls that are worth merging.
        unsplit: Inputs of which two matmuls are merged too, since no Split will copy their parts.
    """
    groups: dict[tuple[ir.Value, Hashable], list[Matmul]] = {}
    for each in matmuls(graph):
        groups.setdefault((each.x, form_of(each.layers)), []).append(each)
    for (x, _), group in groups.items():
        if len(group) >= (2 if x in unsplit else fewest):
            _merge(graph, group)


def _merge(graph: ir.Graph, group: list[Matmul]) -> None:
    tape = Tape(graph, f"{group[0].y.name}_merged", before=group[0].node)
    weights = [array(each.weight) for each in group]
    weight = tape.constant(np.concatenate(weights, axis=1), "weights")
    weight.meta[LAYERS] = tuple(layer for each in group for layer in each.layers)
    y, ends = tape.op("MatMul", [group[0].x, weight]), [each.y for each in group]
    biases = _biases(group)
    if biases is not None:
        ends = [user.outputs[0] for each in group for user in each.y.consumers()]
        y = tape.op("Add", [y, tape.constant(np.concatenate(biases), "biases")])
    sizes = tape.constant([each.shape[1] for each in weights], "sizes")
    parts = tape.ops("Split", [y, sizes], {"axis": -1}, outputs=len(group))
    for end, part in zip(ends, parts, strict=True):
        replace(end, part)
    if biases is not None:
        graph.remove([each.node for each in group], safe=True)


def _biases(group: list[Matmul]) -> list[NDArray[np.float32]] | None:
    """Return the bias of each matmul, or ``None`` if not every one has a bias."""
    biases = []
    for each in group:
        user = only_user(each.y)
        if user is None or user.op_type != "Add":
            return None
        added = [value for value in inputs(user) if value is not each.y]
        if len(added) != 1 or not is_constant(added[0]) or rank(added[0]) != 1:
            return None
        biases.append(array(added[0]))
    return biases


def split_slices(graph: ir.Graph) -> None:
    """Cut the output of a matmul by one Split instead of Slices, as Phi-3 cuts q, k and v."""
    for each in matmuls(graph):
        y = each.y
        users = [use.node for use in y.uses()]
        slices = {cut: user for user in users if (cut := slice_bounds(user, y)) is not None}
        bounds = sorted(slices)
        ends = [0, *(end for _, end in bounds)]
        if len(bounds) < max(2, len(users)) or [start for start, _ in bounds] != ends[:-1]:
            continue
        if y.shape is None or ends[-1] != y.shape[-1]:
            continue
        tape = Tape(graph, f"{y.name}_parts", after=each.node)
        sizes = tape.constant(np.diff(ends), "sizes")
        parts = tape.ops("Split", [y, sizes], {"axis": -1}, outputs=len(bounds))
        for bound, part in zip(bounds, parts, strict=True):
            replace(slices[bound].outputs[0], part)


def slice_bounds(node: ir.Node, x: ir.Value) -> tuple[int, int] | None:
    """Return start and end of a Slice of ``x`` along its last axis, or ``None`` for other nodes."""
    if node.op_type != "Slice" or node.inputs[0] is not x or x.shape is None:
        return None
    width = x.shape[-1]
    if not all(map(is_constant, node.inputs[1:])) or not isinstance(width, int):
        return None
    start, end, axis, *step = (int(array(value)[0]) for value in node.inputs[1:])
    along_last = axis in (-1, len(x.shape) - 1) and step in ([], [1])
    return (start, min(end, width)) if along_last else None


def split_matmul(graph: ir.Graph, split: ir.Node, layer_codes: dict[str, Codes]) -> None:
    """Compute the first part of a Split by a matmul of its own.

    Args:
        graph: Changed in place.
        split: Cuts the output of a matmul without a bias, which nothing else reads.
        layer_codes: Codes of a quantized model by layer; those of the two parts are added.
    """
    import onnx_ir as ir

    y, sizes = split.inputs[0], array(split.inputs[1])
    whole = matmul(None if y is None else y.producer())
    if y is None or whole is None or y.shape is None:
        raise ValueError(f"{split.name} does not cut the output of a matmul")
    tape = Tape(graph, f"{y.name}_apart", before=split)
    matrix, halves = array(whole.weight), []
    for start, end in ((0, int(sizes[0])), (int(sizes[0]), int(sizes.sum()))):
        weight = constant(graph, matrix[:, start:end], f"{whole.weight.name}_from_{start}")
        names = {layer: f"{layer}[{start}:{end}]" for layer in whole.layers}
        weight.meta[LAYERS] = tuple(names.values())
        for layer, part in names.items():
            if layer in layer_codes:
                layer_codes[part] = layer_codes[layer].outputs(start, end)
        halves.append(tape.op("MatMul", [whole.x, weight]))
        halves[-1].type = y.type
        halves[-1].shape = ir.Shape([*y.shape[:-1], end - start])
    rest = tape.constant(sizes[1:], "sizes")
    parts = tape.ops("Split", [halves[1], rest], {"axis": -1}, outputs=len(sizes) - 1)
    for old, new in zip(list(split.outputs), [halves[0], *parts], strict=True):
        replace(old, new)
    graph.remove(whole.node, safe=True)


def _fingerprint(weight: NDArray[np.float32]) -> tuple[tuple[int, ...], bytes]:
    contiguous = np.ascontiguousarray(weight)
    return contiguous.shape, hashlib.sha256(contiguous.tobytes()).digest()
