"""What a typed graph is proven with where TensorRT does not run: ONNX Runtime, on the processor.

The graph's twin computes the same values with operators that a processor has: products in bf16
or fp16 are products in float32 of rounded numbers, rounded again. The model in PyTorch is put
into the same precision beside it. What the proof leaves out is TensorRT's own kernels.

Letters: K inputs, N outputs.
"""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slmc.export.graph import serialize
from slmc.export.graph.ir import constant, drop_unused, replace
from slmc.export.reference.precision import Half, copied, linear_layers
from slmc.export.runtime.engine import GRAPH, Engine
from slmc.export.tensorrt.graph import RANGE, float8_columns, four_bits, rounded_columns
from slmc.model.codes import Codes
from slmc.model.loading import Recommender


def engine(graph: Any, folder: Path) -> Engine:
    """A session on the twin of a typed graph, described as the engine in ``folder`` is."""
    with tempfile.TemporaryDirectory() as place:
        serialize.save(runnable(graph), Path(place) / GRAPH)
        shutil.copyfile(folder / "engine.json", Path(place) / "engine.json")
        return Engine(Path(place))


def runnable(graph: Any) -> Any:
    """The twin: each product of halves in float32, its inputs and outputs halves as before."""
    import onnx_ir as ir

    made = ir.from_proto(graph)
    for node in list(made.graph):
        weight = _half_weight(node) if node.op_type == "MatMul" else None
        if weight is None:
            continue
        kind, values = weight
        base = node.outputs[0].name
        x = ir.node("Cast", [node.inputs[0]], {"to": ir.DataType.FLOAT})
        product = ir.node(
            "MatMul", [x.outputs[0], constant(made.graph, values, f"{base}_wide_weight")]
        )
        half = ir.node("Cast", product.outputs, {"to": kind})
        for number, one in enumerate((x, product, half)):
            one.name = f"{base}_wide_{number}"
            one.outputs[0].name = f"{one.name}_out"
        made.graph.insert_before(node, [x, product, half])
        replace(made.graph, node, half.outputs[0])
    drop_unused(made)
    return ir.to_proto(made)


def emulated(
    model: Recommender, precision: str, own: Mapping[str, Codes], scales: Mapping[str, float]
) -> Recommender:
    """The model as the typed graph computes it; arguments as :func:`typed.typed_graph`."""
    if precision == "fp32":
        return model
    made = copied(model)
    for name, layer in linear_layers(made).items():
        if precision == "int8":
            made.set_submodule(name, Static(layer, scales[name]))
        elif precision == "fp8":
            stored, each = float8_columns(layer.weight.detach().numpy().T)
            floats = stored.astype(np.float32) * each.astype(np.float32)
            layer.weight.data = torch.from_numpy(np.ascontiguousarray(floats.T))
            made.set_submodule(name, Half(layer, "bf16"))
        else:
            codes = own.get(name) if precision == "int4" and four_bits(own.get(name)) else None
            half = "fp16" if precision == "fp16" else "bf16"
            made.set_submodule(name, Half(layer, half, codes))
    return made


class Static(nn.Module):
    """A linear layer of 8-bit weights on 8-bit tokens of one fixed scale."""

    def __init__(self, layer: nn.Linear, scale: float) -> None:
        """Round the weights of ``layer``."""
        super().__init__()
        codes, each = rounded_columns(layer.weight.detach().numpy().T)
        self.weight = torch.from_numpy(codes.astype(np.float32) * each)
        self.scale = torch.tensor(scale, dtype=torch.float32)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """``[..., K]`` to ``[..., N]``."""
        tokens = (x / self.scale).round().clamp(-RANGE - 1, RANGE) * self.scale
        found = tokens @ self.weight
        return found if self.bias is None else found + self.bias


def _half_weight(node: Any) -> tuple[Any, NDArray[np.float32]] | None:
    """Type and values ``[K, N]`` of a product's weight, if they are 16-bit floats."""
    import onnx_ir as ir

    halves = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    value = node.inputs[1]
    if value.const_value is not None:
        kind = value.const_value.dtype
        return (kind, value.const_value.numpy().astype(np.float32)) if kind in halves else None
    made = value.producer()
    if made is None or made.op_type != "DequantizeLinear":
        return None
    codes, scale = (one.const_value for one in made.inputs[:2])
    if scale.dtype not in halves:
        return None
    each, size = scale.numpy().astype(np.float32), made.attributes.get("block_size")
    if size is not None:
        each = np.repeat(each, size.as_int(), axis=0)
    values = codes.numpy().astype(np.float32) * each
    rounded: NDArray[np.float32] = values.astype(scale.numpy().dtype).astype(np.float32)
    return scale.dtype, rounded
