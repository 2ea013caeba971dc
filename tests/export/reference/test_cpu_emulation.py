"""TensorRT graphs with the operators of a CPU."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import model, normal, operators, run
from torch import nn

from slmc.export.graph.ir import LAYERS, matmuls
from slmc.export.reference.cpu_emulation import StaticInt8, cpu_graph
from slmc.export.tensorrt.graph import lower_for_tensorrt

MATMUL = "(float[1,T,32] x) => (float[1,T,8] y) { y = MatMul (x, w) }"
W, X = normal(32, 8), normal(1, 5, 32, seed=1)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp8"])
def test_cpu_graph(precision: str) -> None:
    graph = model(MATMUL, w=W)
    (exact,) = run(graph, x=X)
    matmuls(graph.graph)[0].weight.meta[LAYERS] = ("up",)
    lower_for_tensorrt(graph.graph, precision, {}, {})
    emulation = cpu_graph(ir.to_proto(graph))
    assert [node.op_type for node in emulation.graph.node] == [
        "Cast", "Cast", "MatMul", "Cast", "Cast",
    ]  # fmt: skip
    (y,) = run(emulation, x=X)
    error = np.abs(y - exact).max() / np.abs(exact).max()
    assert 0 < error < {"bf16": 0.01, "fp16": 0.001, "fp8": 0.1}[precision]
    half = np.float16 if precision == "fp16" else ml_dtypes.bfloat16
    assert (y == y.astype(half).astype(np.float32)).all()


def test_a_float_graph_stays() -> None:
    graph = model(MATMUL, w=W)
    emulation = ir.from_proto(cpu_graph(ir.to_proto(graph)))
    assert operators(emulation.graph) == ["MatMul"]


def test_static_int8_by_hand() -> None:
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = layer.weight.data.new_tensor([[127.0, -63.6]])
    x = layer.weight.data.new_tensor([[1.0, 1000.0]])
    # The second activation is clipped to 127 * 0.5, and its weight rounded to -64.
    assert StaticInt8(layer, 0.5)(x).tolist() == [[1.0 * 127 - 63.5 * 64]]
