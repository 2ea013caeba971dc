"""What happens to an exported graph before it is written: each pass changes a model in place.

The graph that torch gives carries stack traces with paths of the machine, and the item table
twice; both go. Letters: B histories, V items, d item width.
"""

from collections.abc import Iterator, Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np

from slmc import __version__

LARGEST_FILE = 1_800_000_000
"""Bytes of weights above which they lie beside the graph: a protobuf file ends at 2 GB."""
SMALL = 1024
"""Bytes below which a constant lies in the graph: bounds of slices have to, where shapes are
inferred."""
INPUT, TOP_ITEMS, TOP_SCORES = "item_ids", "top_items", "top_scores"
EXCLUDE_SEEN, ALLOWED = "exclude_seen", "allowed"
"""Further inputs of the graph with masks: bool ``[1 or B]``, and bool ``[1 or B, V + 1]``; where
nothing is asked for, ``[false]`` and ``[[true]]``."""
HISTORIES, NUMBER, FIRST = "histories", "number_of_histories", "first_history"
"""Values inside the graph: the rows that the decoder sees, how many histories were given, and 0."""
SCORES, USER_VECTORS = "scores", "user_vectors"
"""Values inside the graph: ``[B, V + 1]``, and ``[B, d]``."""
ALL_SCORES = "all_scores"
"""What takes the place of the scores where the best of them are computed again: ``[B, V + 1]`` or
longer, with noise at row 0 and behind V."""


def tidy(model: Any) -> None:
    """Drop what is known of the machine and of the Python code, and say who made the graph."""
    model.producer_name, model.producer_version = "slmc", __version__
    graph = model.graph
    del graph.value_info[:]  # onnx infers it again; its lengths are those before the cut
    parts = [model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer]
    for part in parts:
        part.ClearField("doc_string")
        del part.metadata_props[:]


def share_table(model: Any) -> None:
    """Score with the item table that the inputs are looked up in, instead of a copy of it.

    The product before the top-k becomes ``Gemm(user_vectors, table, bias, transB=1)``, and its
    output is called :data:`SCORES`.

    Raises:
        ValueError: The graph does not end as :func:`slmc.export.graph.to_onnx` makes it.
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
    _rename(graph, product.output[0], SCORES)
    _rename(graph, product.input[0], USER_VECTORS)


def more_outputs(asked: Sequence[str], rows: int, width: int) -> dict[str, list[Any]]:
    """Type and shape of what is given out beside the best items: name -> [type, shape]."""
    known = {SCORES: rows, USER_VECTORS: width}
    return {name: ["float32", ["batch", known[name]]] for name in asked if name in known}


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


def save(model: Any, file: Path) -> None:
    """Write a model, its weights beside it as ``<file>.data`` if one file cannot hold them."""
    import onnx

    file.parent.mkdir(parents=True, exist_ok=True)
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if size > LARGEST_FILE:
        onnx.save_model(
            model,
            file,
            save_as_external_data=True,
            location=f"{file.name}.data",
            size_threshold=SMALL,
        )
    else:
        file.write_bytes(model.SerializeToString(deterministic=True))


def save_beside(model: Any, other: Path, file: Path) -> None:
    """Write a model that has the weights of another, and let it read them from there.

    That is ONNX's external data: a file in the same folder, an offset and a length.

    Args:
        model: Changed in place.
        other: What :func:`save` wrote; a weight that is not in it stays in the model.
        file: In the same folder.
    """
    from onnx.external_data_helper import set_external_data

    data = other.with_name(f"{other.name}.data")
    holder = data if data.exists() else other
    with holder.open("rb") as opened, mmap(opened.fileno(), 0, access=ACCESS_READ) as held:
        after = 0
        for tensor in model.graph.initializer:
            size = len(tensor.raw_data)
            place = held.find(tensor.raw_data, after) if size >= SMALL else -1
            if place >= 0:
                after = place + size
                set_external_data(tensor, holder.name, offset=place, length=size)
                tensor.ClearField("raw_data")
    file.write_bytes(model.SerializeToString(deterministic=True))


def _nodes(graph: Any) -> Iterator[Any]:
    """The nodes of a graph, and of the branches in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _cut(graph: Any, name: str) -> None:
    """Let a value be that of the histories that were given, as those of all outputs are."""
    from onnx import helper

    every = f"every_{name}"
    _rename(graph, name, every)
    inputs = [every, FIRST, NUMBER, FIRST]
    graph.node.append(helper.make_node("Slice", inputs, [name], name=f"given_{name}"))


def _rename(graph: Any, old: str, new: str) -> None:
    for node in _nodes(graph):
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
