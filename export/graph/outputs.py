"""Outputs of a graph in addition to the best items: scores, user vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from slmc.export.graph.interface import (
    ALL_SCORES,
    FIRST,
    NUMBER,
    SCORES,
    USER_VECTORS,
    extra_outputs,
)

if TYPE_CHECKING:
    import onnx


def add_outputs(
    model: onnx.ModelProto, requested: Sequence[str], rows: int, width: int | str
) -> None:
    """Make values that the graph computes anyway its outputs.

    Args:
        model: Changed in place.
        requested: ``scores``, ``user_vectors``; ``topk`` is an output of every graph.
        rows: V + 1.
        width: d, or a name for it where it is not known.
    """
    from onnx import TensorProto, helper

    for name, (_, shape) in extra_outputs(requested, rows, width).items():
        if name == SCORES:
            ensure_scores(model, rows)
        _leave_out_padding(model.graph, name)
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        model.graph.output.append(value)


def ensure_scores(model: onnx.ModelProto, rows: int) -> bool:
    """Compute :data:`SCORES` from :data:`ALL_SCORES` if the graph has only these.

    Args:
        model: Changed in place.
        rows: V + 1.

    Returns:
        Whether it has any scores.
    """
    from onnx import helper, numpy_helper

    computed = {name for node in model.graph.node for name in node.output}
    if SCORES in computed or ALL_SCORES not in computed:
        return SCORES in computed
    arrays = {
        "scored_from": np.array([1]),
        "scored_to": np.array([rows]),
        "scored_axis": np.array([1]),
        "scored_pads": np.array([0, 1, 0, 0]),
        "scored_lowest": np.array(-np.inf, dtype=np.float32),
    }
    for name, array in arrays.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    cut = [ALL_SCORES, "scored_from", "scored_to", "scored_axis"]
    model.graph.node.append(helper.make_node("Slice", cut, ["scored_items"], name="scored_items"))
    padded = ["scored_items", "scored_pads", "scored_lowest"]
    model.graph.node.append(helper.make_node("Pad", padded, [SCORES], name=SCORES))
    return True


def only_user_vectors(model: onnx.ModelProto, width: int | str) -> None:
    """Make the user vectors the only output, and drop what only other outputs need.

    Args:
        model: Changed in place.
        width: d, or a name for it where it is not known.
    """
    graph = model.graph
    if USER_VECTORS not in [output.name for output in graph.output]:
        add_outputs(model, [USER_VECTORS], 0, width)
    for output in [one for one in graph.output if one.name != USER_VECTORS]:
        graph.output.remove(output)
    needed = {USER_VECTORS}
    for node in reversed(graph.node):  # nodes are in topological order
        if needed.intersection(node.output):
            needed.update(_reads(node))
    for node in [one for one in graph.node if not needed.intersection(one.output)]:
        graph.node.remove(node)
    for tensor in [one for one in graph.initializer if one.name not in needed]:
        graph.initializer.remove(tensor)


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """The values that a node and the branches in it read."""
    yield from node.input
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for inner in _nodes(attribute.g):
                yield from inner.input
            yield from (output.name for output in attribute.g.output)


def _leave_out_padding(graph: onnx.GraphProto, name: str) -> None:
    """Cut a value to the histories of the request, as all outputs are."""
    from onnx import helper

    every = f"every_{name}"
    rename(graph, name, every)
    inputs = [every, FIRST, NUMBER, FIRST]
    graph.node.append(helper.make_node("Slice", inputs, [name], name=f"given_{name}"))


def rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Rename a value of a graph and of the branches in it."""
    for node in _nodes(graph):
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of the branches in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)
