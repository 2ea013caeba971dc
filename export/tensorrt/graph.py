"""The padded graph with every matmul in one type: what TensorRT builds strongly typed.

Standard operators only, and no optional inputs: TensorRT has none. Norms, rotary positions,
attention, the item table and the top-k stay in float32; the decoder's matmuls, which have most
weights and take most time, get the requested type.

- bf16, fp16: activations are cast, multiplied with weights of that type, and cast back.
- int8: int8 weights, one scale per output; static int8 activations, one scale per layer.
- fp8: weights as 8-bit floats (e4m3), one scale per output; activations in bf16.
- int4: the model's own symmetric codes in blocks of inputs; activations in bf16.

Letters: K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slmc.errors import UsageError
from slmc.export.constraints import BLOCKS_FROM, TENSORRT_BLOCKS
from slmc.export.graph import fusion, item_table, serialize
from slmc.export.graph.dynamic_int8 import int8_columns
from slmc.export.graph.ir import Matmul, Tape, array, matmuls, replace
from slmc.export.graph.lowering import half_matmul, half_type, half_weight
from slmc.export.graph.nbits import joined
from slmc.export.graph.trace import traced
from slmc.export.reference.precision import linear_layers
from slmc.model.codes import Codes
from slmc.model.loading import Recommender
from slmc.model.quantized_table import QuantizedTable

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

LARGEST_FLOAT8 = 448
"""Largest magnitude of an 8-bit float with 4 bits of exponent and 3 of mantissa."""
UNSUPPORTED = frozenset(["DynamicQuantizeLinear", "MatMulInteger", "NonZero"])
"""Operators that TensorRT lacks, or whose output sizes depend on data."""


def tensorrt_graph(
    model: Recommender,
    top_k: int,
    precision: str,
    layer_codes: Mapping[str, Codes],
    scales: Mapping[str, float],
) -> onnx.ModelProto:
    """Return the graph; the same model gives the same bytes.

    Args:
        model: In evaluation mode, float32, on the CPU.
        top_k: Number of items returned, at most :data:`slmc.export.constraints.LARGEST_K`.
        precision: ``bf16``, ``fp16``, ``fp32``, ``int8``, ``fp8`` or ``int4``.
        layer_codes: The codes of a quantized model, by layer.
        scales: For ``int8``, the static activation scale of each layer.
    """
    import onnx_ir as ir

    typed = ir.from_proto(traced(model, "padded", top_k, BLOCKS_FROM))
    weights = {name: layer.weight.detach().numpy() for name, layer in linear_layers(model).items()}
    fusion.mark_layers(typed.graph, weights)
    fusion.merge_matmuls(typed.graph, lambda names: _form_of(names, precision, layer_codes))
    if precision != "fp32":
        lower_for_tensorrt(typed.graph, precision, layer_codes, scales)
    if isinstance(model.item_embeddings, QuantizedTable):
        table = model.item_embeddings
        codes, scale = without_zero_scales(table.signed_codes().numpy(), table.scale.numpy())
        item_table.store_int8(typed.graph, codes, scale[:, 0])
    return serialize.to_proto(typed)


def lower_for_tensorrt(
    graph: ir.Graph,
    precision: str,
    layer_codes: Mapping[str, Codes],
    scales: Mapping[str, float],
) -> None:
    """Compute the decoder's matmuls in a precision; arguments as :func:`tensorrt_graph`."""
    lowering = _Lowering(graph, precision, layer_codes, scales)
    for matmul in matmuls(graph):
        if matmul.layers:
            lowering.lower(matmul)


class _Lowering:
    """Lowers matmuls one after the other; those of one input share what is computed from it."""

    def __init__(
        self,
        graph: ir.Graph,
        precision: str,
        layer_codes: Mapping[str, Codes],
        scales: Mapping[str, float],
    ) -> None:
        self.graph, self.precision = graph, precision
        self.layer_codes, self.scales = layer_codes, scales
        self.half = "fp16" if precision == "fp16" else "bf16"
        """The 16-bit type of what is not in 8 bits."""
        self.activations: dict[ir.Value, ir.Value] = {}
        """Activations that were cast or quantized already, by the float ones."""

    def lower(self, matmul: Matmul) -> None:
        """Compute a matmul in the precision."""
        tape = Tape(self.graph, f"{matmul.y.name}", before=matmul.node)
        if self.precision == "int8":
            self._int8(tape, matmul)
            return
        if self.precision == "fp8":
            weight = _float8_weight(tape, matmul)
        elif self.precision == "int4" and (codes := self._codes(matmul)):
            weight = _block_weight(tape, joined(codes), self.half)
        else:
            weight = half_weight(tape, matmul, self.half)
        half_matmul(tape, matmul, self.half, weight, self.activations)

    def _codes(self, matmul: Matmul) -> list[Codes]:
        codes = [self.layer_codes.get(name) for name in matmul.layers]
        return [each for each in codes if each is not None and has_4_bits(each)]

    def _int8(self, tape: Tape, matmul: Matmul) -> None:
        x, layer = matmul.x, matmul.layers[0]
        if x not in self.activations:
            before = Tape(self.graph, f"{x.name}_int8", before=matmul.node)
            scale = before.constant(np.float32(self.scales.get(layer, 0.0)), "scale")
            zero_point = before.constant(np.int8(0), "zero_point")
            codes = before.op("QuantizeLinear", [x, scale, zero_point])
            self.activations[x] = before.op("DequantizeLinear", [codes, scale, zero_point])
        weight_codes, weight_scale = int8_columns(array(matmul.weight))
        operands = [
            tape.constant(weight_codes, "codes"),
            tape.constant(weight_scale, "scale"),
            tape.constant(np.zeros(len(weight_scale), dtype=np.int8), "zero_point"),
        ]
        weight = tape.op("DequantizeLinear", operands, {"axis": 1})
        replace(matmul.y, tape.op("MatMul", [self.activations[x], weight]))


def _float8_weight(tape: Tape, matmul: Matmul) -> ir.Value:
    codes, scale = float8_columns(array(matmul.weight))
    operands = [tape.constant(codes, "codes"), tape.constant(scale, "scale")]
    return tape.op("DequantizeLinear", operands, {"axis": 1})


def _block_weight(tape: Tape, codes: Codes, half: str) -> ir.Value:
    import ml_dtypes

    signed, scale = without_zero_scales(codes.codes.astype(np.int8) - np.int8(8), codes.scale)
    int4 = np.ascontiguousarray(signed.T).astype(ml_dtypes.int4)
    half_scale = np.ascontiguousarray(scale.T).astype(half_type(half)[1])
    operands = [tape.constant(int4, "codes"), tape.constant(half_scale, "scale")]
    return tape.op("DequantizeLinear", operands, {"axis": 0, "block_size": codes.group_size})


def has_4_bits(codes: Codes | None) -> bool:
    """Return whether a layer has codes that go into an int4 plan as they are."""
    return codes is not None and codes.bits == 4


def check_blocks(layer_codes: Mapping[str, Codes]) -> None:
    """Refuse 4-bit blocks that do not fill their layer: TensorRT has no short block.

    Raises:
        UsageError: The inputs of a layer are not a multiple of its block size.
    """
    for name, codes in layer_codes.items():
        inputs = codes.codes.shape[1]
        if has_4_bits(codes) and inputs % codes.group_size:
            fit = [str(size) for size in TENSORRT_BLOCKS if inputs % size == 0]
            raise UsageError(
                f"tensorrt: {name} has {inputs} inputs, which blocks of {codes.group_size} do not "
                f"divide; possible block sizes: {', '.join(fit) or 'none'}.",
                "Quantize with one of these as --group-size, or use --tensorrt.precision bf16.",
            )


def check_operators(model: onnx.ModelProto) -> None:
    """Refuse a graph with an operator that TensorRT lacks.

    Raises:
        UsageError: Names the first such operator and its node.
    """
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type in UNSUPPORTED:
            raise UsageError(
                f"tensorrt: operator {node.op_type} is not supported (node {node.name}).",
                "Export without tensorrt, and report the model's shape.",
            )


def _form_of(
    names: tuple[str, ...], precision: str, layer_codes: Mapping[str, Codes]
) -> tuple[object, ...]:
    """What matmuls of one input must have in common to be merged."""
    codes = layer_codes.get(names[0]) if names and precision == "int4" else None
    if codes is None or not has_4_bits(codes):
        return (bool(names),)
    return (bool(names), codes.group_size)


def float8_columns(weight: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return a weight ``[K, N]`` as 8-bit floats (e4m3), and one bf16 scale per output, ``[N]``."""
    import ml_dtypes

    scale = (np.abs(weight).max(axis=0) / np.float32(LARGEST_FLOAT8)).astype(ml_dtypes.bfloat16)
    scale = np.where(scale == 0, ml_dtypes.bfloat16(1), scale)
    codes = weight / scale.astype(np.float32)
    bounded = np.clip(codes, -LARGEST_FLOAT8, LARGEST_FLOAT8).astype(ml_dtypes.float8_e4m3fn)
    return np.ascontiguousarray(bounded), scale


def without_zero_scales(
    codes: NDArray[np.int8], scale: NDArray[np.float32]
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return the same values without a scale of 0, which TensorRT refuses: codes of 0 instead.

    Args:
        codes: ``[N, K]`` around 0.
        scale: ``[N, G]``, each of K / G codes.
    """
    is_zero = scale == 0
    zeroed = np.repeat(is_zero, codes.shape[1] // scale.shape[1], axis=1)
    return np.where(zeroed, np.int8(0), codes), np.where(is_zero, np.float32(1), scale)
