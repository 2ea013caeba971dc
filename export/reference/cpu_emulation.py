"""Emulation of a TensorRT graph where TensorRT does not run: ONNX Runtime, on the CPU.

The emulated graph computes the same values with operators that a CPU has: matmuls in bf16 or fp16
become matmuls in float32 of rounded numbers, rounded again. The model in PyTorch is brought into
the same precision. This checks all but the kernels of TensorRT.

Letters: K inputs, N outputs.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slmc.export.graph import serialize
from slmc.export.graph.dynamic_int8 import LARGEST_CODE, int8_columns
from slmc.export.graph.ir import Tape, array, drop_unused, inputs, is_constant, nodes, replace
from slmc.export.reference.precision import HalfLinear, copied, linear_layers
from slmc.export.runtime.engine import GRAPH, Engine
from slmc.export.tensorrt.graph import float8_columns, has_4_bits
from slmc.model.codes import Codes
from slmc.model.loading import Recommender

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir


def engine(graph: onnx.ModelProto, folder: Path) -> Engine:
    """Open a session on the emulation of a graph, described by ``engine.json`` in ``folder``."""
    with tempfile.TemporaryDirectory() as place:
        serialize.save(cpu_graph(graph), Path(place) / GRAPH)
        shutil.copyfile(folder / "engine.json", Path(place) / "engine.json")
        return Engine(Path(place))


def cpu_graph(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with 16-bit matmuls in float32; their inputs and outputs stay 16-bit."""
    import onnx_ir as ir

    model = ir.from_proto(graph)
    for node in nodes(model.graph, "MatMul"):
        weight = _half_weight(node)
        if weight is None:
            continue
        dtype, values = weight
        y = node.outputs[0]
        tape = Tape(model.graph, f"{y.name}_float", before=node)
        x = tape.cast(inputs(node)[0], "FLOAT")
        y_float = tape.op("MatMul", [x, tape.constant(values, "weight")])
        replace(y, tape.cast(y_float, dtype))
    drop_unused(model)
    return ir.to_proto(model)


def emulated(
    model: Recommender,
    precision: str,
    layer_codes: Mapping[str, Codes],
    scales: Mapping[str, float],
) -> Recommender:
    """Return the model as the TensorRT graph computes it.

    Arguments as :func:`slmc.export.tensorrt.graph.tensorrt_graph`.
    """
    if precision == "fp32":
        return model
    emulation = copied(model)
    for name, layer in linear_layers(emulation).items():
        if precision == "int8":
            emulation.set_submodule(name, StaticInt8(layer, scales[name]))
        elif precision == "fp8":
            floats8, scale = float8_columns(layer.weight.detach().numpy().T)
            floats = floats8.astype(np.float32) * scale.astype(np.float32)
            layer.weight.data = torch.from_numpy(np.ascontiguousarray(floats.T))
            emulation.set_submodule(name, HalfLinear(layer, "bf16"))
        else:
            codes = layer_codes.get(name) if precision == "int4" else None
            half = "fp16" if precision == "fp16" else "bf16"
            emulation.set_submodule(
                name, HalfLinear(layer, half, codes if has_4_bits(codes) else None)
            )
    return emulation


class StaticInt8(nn.Module):
    """A linear layer of int8 weights and static int8 activations, which have one scale."""

    def __init__(self, layer: nn.Linear, scale: float) -> None:
        """Round the weights of ``layer``."""
        super().__init__()
        codes, weight_scale = int8_columns(layer.weight.detach().numpy().T)
        self.weight = torch.from_numpy(codes.astype(np.float32) * weight_scale)
        self.scale = torch.tensor(scale, dtype=torch.float32)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[..., N]`` for activations ``[..., K]``."""
        codes = (x / self.scale).round().clamp(-LARGEST_CODE - 1, LARGEST_CODE)
        y = (codes * self.scale) @ self.weight
        return y if self.bias is None else y + self.bias


def _half_weight(node: ir.Node) -> tuple[ir.DataType, NDArray[np.float32]] | None:
    """Type and values ``[K, N]`` of a matmul's weight, if they are 16-bit floats."""
    import onnx_ir as ir

    halves = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    weight = inputs(node)[1]
    if is_constant(weight):
        dtype = weight.dtype
        return (dtype, array(weight).astype(np.float32)) if dtype in halves else None
    dequantize = weight.producer()
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return None
    codes, scale = inputs(dequantize)[:2]
    if scale.dtype not in halves:
        return None
    per_code = array(scale).astype(np.float32)
    size = dequantize.attributes.get("block_size")
    if size is not None:
        per_code = np.repeat(per_code, size.as_int(), axis=0)
    values = array(codes).astype(np.float32) * per_code
    rounded: NDArray[np.float32] = values.astype(array(scale).dtype).astype(np.float32)
    return scale.dtype, rounded
