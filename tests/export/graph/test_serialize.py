"""What is written of a graph."""

from pathlib import Path

import numpy as np
import onnxruntime
from small_graphs import model, normal, proto

from slmc.export.graph import serialize

GRAPH = """(float[N] x) => (float[N] y) {
    unused = Exp (x)
    hidden = Add (x, w)
    y = Neg (hidden)
}"""


def test_to_proto() -> None:
    named_twice = model(GRAPH, w=normal(1))
    _, add, neg = named_twice.graph
    add.name = neg.name = "same"
    add.metadata_props["stack"] = "/home/me/model.py"
    graph = serialize.to_proto(named_twice).graph
    assert [node.op_type for node in graph.node] == ["Add", "Neg"]
    assert len({node.name for node in graph.node}) == 2
    assert not any(node.metadata_props for node in graph.node)


def test_two_graphs_share_weights(tmp_path: Path) -> None:
    weight = normal(1000)
    first, second = (proto(GRAPH.replace("Neg", kind), w=weight) for kind in ("Neg", "Abs"))
    serialize.save(first, tmp_path / "first.onnx")
    serialize.save_sharing_weights(second, tmp_path / "first.onnx", tmp_path / "second.onnx")
    assert (tmp_path / "second.onnx").stat().st_size < weight.nbytes
    session = onnxruntime.InferenceSession(tmp_path / "second.onnx")
    (y,) = session.run(None, {"x": np.zeros(1000, np.float32)})
    assert (y == np.abs(weight)).all()
