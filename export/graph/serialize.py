"""Write a graph as a file: without traces of the machine, large weights in a second file."""

from __future__ import annotations

from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING

from slmc import __version__
from slmc.export.graph.ir import MICROSOFT, drop_unused

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

LARGEST_FILE = 1_800_000_000
"""Bytes of weights above which they go to a second file: a protobuf file is limited to 2 GB."""
SMALL = 1024
"""Bytes below which a constant stays in the graph: shape inference needs the bounds of slices."""


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """Return a model as it is written: without unused nodes and metadata, with unique names."""
    import onnx_ir as ir
    from onnx_ir.passes.common import NameFixPass

    if any(node.domain == MICROSOFT for node in model.graph):
        model.graph.opset_imports[MICROSOFT] = 1
    drop_unused(model)
    NameFixPass()(model)
    graph = ir.to_proto(model)
    strip_metadata(graph)
    return graph


def strip_metadata(model: onnx.ModelProto) -> None:
    """Drop metadata about the machine and the Python code, and name slmc as the producer."""
    model.producer_name, model.producer_version = "slmc", __version__
    graph = model.graph
    del graph.value_info[:]  # onnx infers it again; its lengths are those before histories are cut
    parts = [model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer]
    for part in parts:
        part.ClearField("doc_string")
        del part.metadata_props[:]


def save(model: onnx.ModelProto, file: Path) -> None:
    """Write a model, and its weights as ``<file>.data`` if one file cannot hold both."""
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


def save_sharing_weights(model: onnx.ModelProto, other: Path, file: Path) -> None:
    """Write a model that reads its weights from the file of another model.

    They are ONNX's external data: a file in the same folder, an offset and a length.

    Args:
        model: Changed in place.
        other: The file that :func:`save` wrote; a weight that it lacks stays in the model.
        file: In the same folder.
    """
    from onnx.external_data_helper import set_external_data

    data = other.with_name(f"{other.name}.data")
    weights = data if data.exists() else other
    with weights.open("rb") as opened, mmap(opened.fileno(), 0, access=ACCESS_READ) as content:
        searched = 0
        for tensor in model.graph.initializer:
            size = len(tensor.raw_data)
            place = content.find(tensor.raw_data, searched) if size >= SMALL else -1
            if place >= 0:
                searched = place + size
                set_external_data(tensor, weights.name, offset=place, length=size)
                tensor.ClearField("raw_data")
    file.write_bytes(model.SerializeToString(deterministic=True))


def save_user_vectors(other: Path, file: Path, width: int) -> None:
    """Write the graph that computes user vectors alone, with the weights of another file.

    Args:
        other: The file that :func:`save` wrote.
        file: In the same folder.
        width: d.
    """
    import onnx

    from slmc.export.graph.outputs import only_user_vectors

    model = onnx.load(other, load_external_data=False)
    only_user_vectors(model, width)
    save_sharing_weights(model, other, file)
