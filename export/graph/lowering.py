"""Give the matmuls of a graph the precision of the engine.

- int8: int8 weights, one scale per output; dynamic int8 activations, one scale per token.
- int8-accurate: both in 8 bits in blocks of inputs, each block with its own scale.
- int4: weights as codes in blocks with one scale each, activations in float32.
- bf16, fp16: weights of that type, activations cast to it and outputs cast back: for GPUs.

The codes of a quantized model are carried over and never rounded again.

Letters: K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from slmc.export.config import HALVES
from slmc.export.graph.dynamic_int8 import DynamicInt8
from slmc.export.graph.ir import Matmul, Tape, array, matmuls, replace
from slmc.export.graph.nbits import joined, lower_to_codes
from slmc.model.codes import Codes, rounded

if TYPE_CHECKING:
    import onnx_ir as ir

ACCURATE_BLOCK = 32
"""Inputs that share a scale in ``int8-accurate``."""


def lower_matmuls(
    graph: ir.Graph, precision: str, layer_codes: Mapping[str, Codes], layout: str
) -> None:
    """Compute the decoder's matmuls in a precision.

    Args:
        graph: Changed in place; its weights know their layers
            (:func:`slmc.export.graph.fusion.mark_layers`).
        precision: ``int8``, ``int8-accurate``, ``int4`` (the codes of a quantized model), ``bf16``
            or ``fp16``.
        layer_codes: The codes of a quantized model by layer; in ``int4`` layers without any stay
            float.
        layout: ``padded`` allows standard operators only.
    """
    int8 = DynamicInt8(graph, layout)
    casts: dict[ir.Value, ir.Value] = {}
    for matmul in matmuls(graph):
        if not matmul.layers:
            continue
        if precision == "int8":
            int8.lower(matmul)
        elif precision in ("int8-accurate", "int4"):
            codes = _codes(matmul, precision, layer_codes)
            if codes is not None:
                lower_to_codes(graph, matmul, codes, layout)
        elif precision in HALVES:
            tape = Tape(graph, f"{matmul.y.name}", before=matmul.node)
            half_matmul(tape, matmul, precision, half_weight(tape, matmul, precision), casts)


def _codes(matmul: Matmul, precision: str, layer_codes: Mapping[str, Codes]) -> Codes | None:
    """The codes of a weight, or ``None`` if it stays float."""
    if all(name in layer_codes for name in matmul.layers):
        return joined([layer_codes[name] for name in matmul.layers])
    if precision == "int4":
        return None
    weight = np.ascontiguousarray(array(matmul.weight).T)
    return rounded(weight, bits=8, group_size=ACCURATE_BLOCK)


def half_type(precision: str) -> tuple[ir.DataType, Any]:
    """Return the type of bf16 or fp16: ONNX's, numpy's."""
    import ml_dtypes
    import onnx_ir as ir

    if precision == "fp16":
        return ir.DataType.FLOAT16, np.float16
    return ir.DataType.BFLOAT16, ml_dtypes.bfloat16


def half_weight(tape: Tape, matmul: Matmul, precision: str) -> ir.Value:
    """Return the weight of a matmul as a constant of 16 bits."""
    return tape.constant(array(matmul.weight).astype(half_type(precision)[1]), "half")


def half_matmul(
    tape: Tape,
    matmul: Matmul,
    precision: str,
    weight: ir.Value,
    casts: dict[ir.Value, ir.Value],
) -> None:
    """Compute a float matmul in 16 bits: cast the activations, and the output back.

    Args:
        tape: At the matmul.
        matmul: Is replaced.
        precision: bf16 or fp16.
        weight: ``[K, N]`` of that type.
        casts: Activations that were cast already, by the float ones; new ones are added.
    """
    x = matmul.x
    if x not in casts:
        before = Tape(tape.graph, f"{x.name}_half", before=matmul.node)
        casts[x] = before.cast(x, half_type(precision)[0])
    replace(matmul.y, tape.cast(tape.op("MatMul", [casts[x], weight]), "FLOAT"))
