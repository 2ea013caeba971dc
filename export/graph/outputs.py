"""What a graph gives out beside the best items: scores, user vectors."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from slmc.export.graph.interface import ALL_SCORES, FIRST, NUMBER, SCORES, more_outputs


def add_outputs(model: Any, asked: Sequence[str], rows: int, width: int) -> None:
    """Give out values of the graph that it has anyway.

    Args:
        model: Changed in place.
        asked: ``scores``, ``user_vectors``; ``topk`` is there.
        rows: V + 1.
        width: d.
    """
    from onnx import TensorProto, helper

    for name, (_, shape) in more_outputs(asked, rows, width).items():
        if name == SCORES:
            name_scores(model, rows)
        _cut(model.graph, name)
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        model.graph.output.append(value)


def name_scores(model: Any, rows: int) -> bool:
    """Let the graph have :data:`SCORES`, cut out of :data:`ALL_SCORES` if need be.

    Args:
        model: Changed in place.
        rows: V + 1.

    Returns:
        Whether it has any scores.
    """
    from onnx import helper, numpy_helper

    made = {name for node in model.graph.node for name in node.output}
    if SCORES in made or ALL_SCORES not in made:
        return SCORES in made
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


def _cut(graph: Any, name: str) -> None:
    """Let a value be that of the histories that were given, as those of all outputs are."""
    from onnx import helper

    every = f"every_{name}"
    rename(graph, name, every)
    inputs = [every, FIRST, NUMBER, FIRST]
    graph.node.append(helper.make_node("Slice", inputs, [name], name=f"given_{name}"))


def rename(graph: Any, old: str, new: str) -> None:
    """Give a value of a graph, and of the branches in it, another name."""
    for node in _nodes(graph):
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def _nodes(graph: Any) -> Iterator[Any]:
    """The nodes of a graph, and of the branches in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)
