"""Write a graph as a file: nothing of the machine in it, large weights beside it."""

from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from slmc import __version__

LARGEST_FILE = 1_800_000_000
"""Bytes of weights above which they lie beside the graph: a protobuf file ends at 2 GB."""
SMALL = 1024
"""Bytes below which a constant lies in the graph: bounds of slices have to, where shapes are
inferred."""


def tidy(model: Any) -> None:
    """Drop what is known of the machine and of the Python code, and say who made the graph."""
    model.producer_name, model.producer_version = "slmc", __version__
    graph = model.graph
    del graph.value_info[:]  # onnx infers it again; its lengths are those before the cut
    parts = [model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer]
    for part in parts:
        part.ClearField("doc_string")
        del part.metadata_props[:]


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
