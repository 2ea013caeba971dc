"""Matmuls of int8 weights and dynamic int8 activations, with one scale per token.

One scale per token and not per batch: the result for a user does not depend on the rest of the
batch. Letters: T tokens, K inputs, N outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from slmc.export.graph.ir import MICROSOFT, Matmul, Tape, array, only_user, producer, replace

if TYPE_CHECKING:
    import onnx_ir as ir

LARGEST_CODE = 127
"""Largest magnitude of an int8 code; -128 is left out, so that the codes are symmetric."""
ZERO_POINT = 128
"""The uint8 code of an activation of 0."""
TINY = np.float32(1e-8)
"""Smallest range of a token's activations: the scale of a token of zeros must not be 0."""
ACTIVATION_SCALE = "activation_scale"
"""Metadata of a matmul's output: the activation scale, which it was multiplied by last."""


def int8_columns(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return a weight ``[K, N]`` as int8 codes, and one scale per output, ``[N]``."""
    scale = np.abs(weight).max(axis=0) / np.float32(LARGEST_CODE)
    scale = np.where(scale == 0, np.float32(1), scale).astype(np.float32)
    codes = np.clip(np.rint(weight / scale), -LARGEST_CODE, LARGEST_CODE).astype(np.int8)
    return np.ascontiguousarray(codes), scale


class DynamicInt8:
    """Lowers matmuls one after the other; those of one input share its codes."""

    def __init__(self, graph: ir.Graph, layout: str) -> None:
        """Begin.

        Args:
            graph: Changed in place.
            layout: ``padded`` allows standard operators only.
        """
        self.graph, self.layout = graph, layout
        self.activations: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        """Codes and scales by the float activations."""
        self.zero_points: dict[object, ir.Value] = {}
        """One zero point per token, by the number of tokens."""

    def lower(self, matmul: Matmul) -> None:
        """Compute a matmul in int8."""
        if matmul.x not in self.activations:
            self.activations[matmul.x] = self._quantized(matmul.node, matmul.x)
        codes, scale = self.activations[matmul.x]
        weight_codes, weight_scale = int8_columns(array(matmul.weight))
        tape = Tape(self.graph, f"{matmul.y.name}", before=matmul.node)
        stored = tape.constant(weight_codes, "codes")
        zero_point = tape.constant(np.array(ZERO_POINT, dtype=np.uint8), "zero_point")
        per_output = tape.constant(weight_scale, "scale")
        if self.layout == "packed":
            unit = tape.constant(np.float32(1), "unit")
            inputs = [codes, stored, unit, per_output, zero_point]
            y = tape.op("MatMulIntegerToFloat", inputs, domain=MICROSOFT)
        else:
            sums = tape.op("MatMulInteger", [codes, stored, zero_point])
            y = tape.op("Mul", [tape.cast(sums, "FLOAT"), per_output])
        y = tape.op("Mul", [y, scale])
        y.meta[ACTIVATION_SCALE] = scale
        replace(matmul.y, y)

    def _quantized(self, node: ir.Node, activations: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Quantize activations before a node.

        Axes before T are of size 1. The largest magnitude is computed without writing absolute
        values, and one operator divides and rounds: fewer passes over memory than Abs, ReduceMax,
        Div and QuantizeLinear.

        Returns:
            Codes ``[..., T, K]`` as uint8 around :data:`ZERO_POINT`, and scales ``[..., T, 1]``.
        """
        x, factor = self._without_factor(node, activations)
        tape = Tape(self.graph, f"{activations.name}_int8", before=node)
        axis = tape.constant([-1], "axis")
        highest = tape.op("ReduceMax", [x, axis], {"keepdims": 1})
        lowest = tape.op("ReduceMin", [x, axis], {"keepdims": 1})
        tiny = tape.constant(TINY, "tiny")
        largest = tape.op("Max", [highest, tape.op("Neg", [lowest]), tiny])
        unit = tape.constant(np.array(1 / LARGEST_CODE, dtype=np.float32), "unit")
        scale = tape.op("Mul", [largest, unit])
        flat = tape.op("Reshape", [scale, axis])
        tokens = x if x.shape is None else x.shape[-2]
        if tokens not in self.zero_points:
            # Without zero points codes would be int8, which is far slower to multiply.
            middle = tape.constant(np.array(ZERO_POINT, dtype=np.uint8), "zero_point")
            self.zero_points[tokens] = tape.op("Expand", [middle, tape.op("Shape", [flat])])
        codes = tape.op("QuantizeLinear", [x, flat, self.zero_points[tokens]], {"axis": -2})
        return codes, scale if factor is None else tape.op("Mul", [scale, factor])

    def _without_factor(
        self, node: ir.Node, activations: ir.Value
    ) -> tuple[ir.Value, ir.Value | None]:
        """Move the up projection's activation scale out of ``gate * up``.

        It does not change the codes of ``gate * up``, only their scale: it is multiplied with that
        scale, and not with each entry.

        Returns:
            Activations without the factor, and the factor; or the activations, and ``None``.
        """
        mul = producer(activations, "Mul")
        if mul is None or len(activations.uses()) > 1:
            return activations, None
        for index, value in enumerate(mul.inputs):
            if value is None or ACTIVATION_SCALE not in value.meta or only_user(value) is None:
                continue
            last = value.producer()
            if last is None:
                continue
            tape = Tape(self.graph, f"{activations.name}_unscaled", before=node)
            factors = [mul.inputs[1 - index], last.inputs[0]]
            return tape.op("Mul", factors, like=activations), value.meta[ACTIVATION_SCALE]
        return activations, None
