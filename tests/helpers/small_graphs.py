"""Graphs of a few nodes, written as text, for the tests of one pass each."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper, parser

HEADER = '<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]> small '


def proto(text: str, **constants: Any) -> onnx.ModelProto:
    """Parse a graph, such as ``(float[N] x) => (float[N] y) { y = Neg (x) }``.

    Args:
        text: After it, in ``<...>``, may come the types of values inside.
        constants: Arrays by name; integers become int64.
    """
    model = parser.parse_model(HEADER + text)
    for name, values in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    return model


def model(text: str, **constants: Any) -> ir.Model:
    return ir.from_proto(proto(text, **constants))


def operators(graph: ir.Graph) -> list[str]:
    return [node.op_type for node in graph]


def run(graph: ir.Model | onnx.ModelProto, **inputs: NDArray[Any]) -> list[NDArray[Any]]:
    """Compute the outputs of a graph in ONNX Runtime."""
    written = ir.to_proto(graph) if isinstance(graph, ir.Model) else graph
    session = onnxruntime.InferenceSession(written.SerializeToString())
    return session.run(None, inputs)


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
