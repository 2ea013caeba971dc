"""Matmuls with weights stored as codes in blocks: ``MatMulNBits``, or standard operators.

Letters: K inputs, N outputs, G blocks of inputs, b bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slmc.export.constraints import BLOCKS
from slmc.export.graph.ir import MICROSOFT, Matmul, Tape, replace
from slmc.model.codes import Codes

if TYPE_CHECKING:
    import onnx_ir as ir

FLOAT_ACTIVATIONS, INT8_ACTIVATIONS = 0, 4
"""Accuracy levels of MatMulNBits. On CPUs its 8-bit form is far slower on float activations than
on int8 ones, a row at a time (docs/log.md); its 4-bit form is as fast, and exact."""


def nbits_supports(codes: Codes) -> bool:
    """Return whether MatMulNBits has blocks of this size."""
    return codes.group_size in BLOCKS


def nbits_constants(
    codes: Codes,
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8] | None]:
    """Return the constants of MatMulNBits.

    Returns:
        Packed codes ``[N, G, block * b / 8]``, scales ``[N, G]``, and packed zero points or
        ``None``.
    """
    outputs, inputs = codes.codes.shape
    groups, block = codes.scale.shape[1], codes.group_size
    padded = np.full((outputs, groups * block), 2 ** (codes.bits - 1), dtype=np.uint8)
    padded[:, :inputs] = codes.codes
    packed: NDArray[Any] = padded.reshape(outputs, groups, block)
    zero_point: NDArray[Any] | None = codes.zero_point
    if codes.bits == 4:
        packed = packed[..., 0::2] | (packed[..., 1::2] << 4)
        if zero_point is not None:
            even = np.pad(zero_point, ((0, 0), (0, groups % 2)))
            zero_point = even[:, 0::2] | (even[:, 1::2] << 4)
    return packed, codes.scale, zero_point


def nbits_matmul(
    tape: Tape, inputs: Sequence[ir.Value | None], codes: Codes, level: int | None = None
) -> ir.Value:
    """Add a MatMulNBits and return its output.

    Args:
        tape: Where it is recorded.
        inputs: Activations and the constants of :func:`nbits_constants`.
        codes: What those constants hold.
        level: :data:`FLOAT_ACTIVATIONS` or :data:`INT8_ACTIVATIONS`; by default the first for 4
            bits, the second for 8.
    """
    usual = INT8_ACTIVATIONS if codes.bits == 8 else FLOAT_ACTIVATIONS
    attributes = {
        "K": codes.codes.shape[1],
        "N": codes.codes.shape[0],
        "bits": codes.bits,
        "block_size": codes.group_size,
        "accuracy_level": usual if level is None else level,
    }
    return tape.op("MatMulNBits", inputs, attributes, domain=MICROSOFT)


def lower_to_codes(graph: ir.Graph, matmul: Matmul, codes: Codes, layout: str) -> None:
    """Store the weight of a matmul as codes in blocks.

    Args:
        graph: Changed in place.
        matmul: Is replaced.
        codes: Of its weight.
        layout: ``padded`` allows standard operators only.
    """
    tape = Tape(graph, f"{matmul.y.name}", before=matmul.node)
    if layout == "padded" or not nbits_supports(codes):
        weight = _dequantized(tape, codes)
        replace(matmul.y, tape.op("MatMul", [matmul.x, weight]))
        return
    packed, scale, zero_point = nbits_constants(codes)
    inputs = [matmul.x, tape.constant(packed, "codes"), tape.constant(scale, "scale")]
    if zero_point is not None:
        inputs.append(tape.constant(zero_point, "zero_point"))
    replace(matmul.y, nbits_matmul(tape, inputs, codes))


def _dequantized(tape: Tape, codes: Codes) -> ir.Value:
    """A weight ``[K, N]`` that standard operators compute from its codes.

    ONNX Runtime computes constants once, when a session opens. It would fuse a DequantizeLinear
    into MatMulNBits, and round activations to int8 in every session that does not forbid it.
    """
    import onnx_ir as ir

    dtype = ir.DataType.UINT4 if codes.bits == 4 else ir.DataType.UINT8
    (outputs, inputs), groups = codes.codes.shape, codes.scale.shape[1]
    size, middle = codes.group_size, 2 ** (codes.bits - 1)
    blocks = np.full((groups * size, outputs), middle, dtype=np.uint8)
    blocks[:inputs] = codes.codes.T
    zero = np.array(middle, np.uint8) if codes.zero_point is None else codes.zero_point.T[:, None]
    scale = np.ascontiguousarray(codes.scale.T[:, None])
    stored = tape.constant(blocks.reshape(groups, size, outputs), "codes", dtype)
    zero_point = tape.constant(np.ascontiguousarray(zero), "zero_point", dtype)
    centred = tape.op("Sub", [tape.cast(stored, "FLOAT"), tape.cast(zero_point, "FLOAT")])
    floats = tape.op("Mul", [centred, tape.constant(scale, "scale")])
    weight = tape.op("Reshape", [floats, tape.constant([-1, outputs], "shape")])
    if groups * size == inputs:
        return weight
    start, end = tape.constant([0], "start"), tape.constant([inputs], "end")
    return tape.op("Slice", [weight, start, end, tape.constant([0], "axis")])


def joined(parts: Sequence[Codes]) -> Codes:
    """Return the codes of layers of one input and form as those of one layer."""
    first = parts[0]
    zero_point = None
    if first.zero_point is not None:
        zero_points = [part.zero_point for part in parts if part.zero_point is not None]
        zero_point = np.concatenate(zero_points)
    codes = np.concatenate([part.codes for part in parts])
    scale = np.concatenate([part.scale for part in parts])
    return Codes(first.bits, first.group_size, codes, scale, zero_point)
