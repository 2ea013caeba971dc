"""The padded graph with every product in one type: what TensorRT builds strongly typed.

Standard operators only, and no optional inputs: TensorRT has none. Norms, rotary positions,
attention, the item table and the top-k stay in float32; the decoder's products, where the weights
and the time are, get the type that is asked for.

- bf16, fp16: tokens are cast, multiplied with weights of that type, and cast back.
- int8: weights in 8 bits, a scale an output; tokens in 8 bits, one fixed scale a product.
- fp8: weights as 8-bit floats (e4m3), a scale an output; tokens in bf16.
- int4: the model's own symmetric codes in blocks of inputs; tokens in bf16.

Letters: K inputs, N outputs.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slmc.errors import UsageError
from slmc.export.constraints import BLOCKS_FROM, TENSORRT_BLOCKS
from slmc.export.graph import fusion, item_table, serialize
from slmc.export.graph.ir import constant, drop_unused, name_nodes, products, put
from slmc.export.graph.lowering import half_product, half_type, half_weight, joined
from slmc.export.graph.trace import traced
from slmc.export.reference.precision import linear_layers
from slmc.model.codes import Codes
from slmc.model.loading import Recommender
from slmc.model.quantized_table import QuantizedTable

RANGE = 127
"""Largest magnitude of an int8 code."""
LARGEST_FLOAT8 = 448
"""Largest magnitude of an 8-bit float of 4 bits of exponent and 3 of mantissa."""
LACKING = frozenset(["DynamicQuantizeLinear", "MatMulInteger", "NonZero"])
"""Operators that TensorRT has not, or whose outputs have sizes that only data tells."""


def typed_graph(
    model: Recommender,
    top_k: int,
    precision: str,
    own: Mapping[str, Codes],
    scales: Mapping[str, float],
) -> Any:
    """The graph, as an ``onnx.ModelProto``; the same model gives the same bytes.

    Args:
        model: In evaluation mode, float32, on the CPU.
        top_k: Items given back, at most :data:`slmc.export.constraints.LARGEST_K`.
        precision: ``bf16``, ``fp16``, ``fp32``, ``int8``, ``fp8`` or ``int4``.
        own: The codes of a quantized model, by layer.
        scales: For ``int8``, what one step of a token's codes is worth, by layer.
    """
    import onnx_ir as ir

    made = ir.from_proto(traced(model, "padded", top_k, BLOCKS_FROM))
    weights = {name: layer.weight.detach().numpy() for name, layer in linear_layers(model).items()}
    fusion.name_products(made.graph, weights)
    fusion.merge_products(made.graph, lambda names: _form(names, precision, own))
    forms = {"bf16": _cast, "fp16": _cast, "int8": _static, "fp8": _floats, "int4": _blocks}
    put = forms.get(precision)
    if put is not None:
        tokens: dict[Any, Any] = {}
        for node in list(products(made.graph)):
            names = node.inputs[1].meta.get("layers", ())
            if names:
                put(made.graph, node, _Product(names, precision, own, scales, tokens))
    if isinstance(model.item_embeddings, QuantizedTable):
        held = model.item_embeddings
        codes, scale = positive(held.signed_codes().numpy(), held.scale.numpy())
        item_table.place_signed(made.graph, codes, scale[:, 0])
    drop_unused(made)
    graph = ir.to_proto(made)
    serialize.tidy(graph)
    return graph


class _Product:
    """What is known of a product besides its node."""

    def __init__(
        self,
        layers: tuple[str, ...],
        precision: str,
        own: Mapping[str, Codes],
        scales: Mapping[str, float],
        tokens: dict[Any, Any],
    ) -> None:
        self.layers = layers
        self.half = "fp16" if precision == "fp16" else "bf16"
        """The 16-bit type of what is not in 8 bits."""
        self.codes = [own[name] for name in layers if four_bits(own.get(name))]
        self.scale = scales.get(layers[0], 0.0)
        self.tokens = tokens
        """Tokens that were prepared already, by the value that they were."""


def four_bits(codes: Codes | None) -> bool:
    """Whether a layer has codes that go into an int4 plan as they are."""
    return codes is not None and codes.bits == 4


def check_blocks(own: Mapping[str, Codes]) -> None:
    """Refuse blocks of 4-bit codes that do not fill their layer: TensorRT has no short block.

    Raises:
        UsageError: A layer's inputs are no multiple of its blocks.
    """
    for name, codes in own.items():
        inputs = codes.codes.shape[1]
        if four_bits(codes) and inputs % codes.group_size:
            fit = [str(size) for size in TENSORRT_BLOCKS if inputs % size == 0]
            raise UsageError(
                f"tensorrt: {name} has blocks of {codes.group_size} inputs of {inputs}; its "
                f"4-bit DequantizeLinear takes {', '.join(fit) or 'none'}.",
                "Quantize with such a --group-size, or take --tensorrt.precision bf16.",
            )


def check_operators(graph: Any) -> None:
    """Name an operator that TensorRT lacks; raises ``UsageError``."""
    for node in graph.graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type in LACKING:
            raise UsageError(
                f"tensorrt: it has no operator {node.op_type} (node {node.name}).",
                "Export without tensorrt, and report the model's shape.",
            )


def _form(names: tuple[str, ...], precision: str, own: Mapping[str, Codes]) -> tuple[object, ...]:
    """What products of one input have in common that are merged into one."""
    codes = own.get(names[0]) if names and precision == "int4" else None
    if codes is None or not four_bits(codes):
        return (bool(names),)
    return (bool(names), codes.group_size)


def _cast(graph: Any, node: Any, product: _Product) -> None:
    weight = half_weight(graph, node, product.half)
    half_product(graph, node, product.half, weight, product.tokens)


def _static(graph: Any, node: Any, product: _Product) -> None:
    import onnx_ir as ir

    x, name = node.inputs[0], node.name
    if x not in product.tokens:
        scale = constant(graph, np.array(product.scale, dtype=np.float32), f"{name}_token_scale")
        zero = constant(graph, np.array(0, dtype=np.int8), f"{name}_token_zero")
        codes = ir.node("QuantizeLinear", [x, scale, zero])
        back = ir.node("DequantizeLinear", [codes.outputs[0], scale, zero])
        name_nodes([codes, back], f"{x.name}_int8")
        graph.insert_before(node, [codes, back])
        product.tokens[x] = back.outputs[0]
    stored, scales = rounded_columns(node.inputs[1].const_value.numpy())
    inputs = [
        constant(graph, stored, f"{name}_codes"),
        constant(graph, scales, f"{name}_scale"),
        constant(graph, np.zeros(len(scales), dtype=np.int8), f"{name}_zero"),
    ]
    weight = ir.node("DequantizeLinear", inputs, {"axis": 1})
    put(graph, node, [weight, ir.node("MatMul", [product.tokens[x], weight.outputs[0]])])


def rounded_columns(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """A weight ``[K, N]`` as int8 codes and a scale an output, ``[N]``."""
    scale = np.abs(weight).max(axis=0) / np.float32(RANGE)
    scale = np.where(scale == 0, np.float32(1), scale).astype(np.float32)
    codes = np.clip(np.rint(weight / scale), -RANGE, RANGE).astype(np.int8)
    return np.ascontiguousarray(codes), scale


def _floats(graph: Any, node: Any, product: _Product) -> None:
    import onnx_ir as ir

    codes, scale = float8_columns(node.inputs[1].const_value.numpy())
    inputs = [
        constant(graph, codes, f"{node.name}_codes"),
        constant(graph, scale, f"{node.name}_scale"),
    ]
    weight = ir.node("DequantizeLinear", inputs, {"axis": 1})
    half_product(graph, node, product.half, weight.outputs[0], product.tokens, (weight,))


def float8_columns(weight: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
    """A weight ``[K, N]`` as 8-bit floats (e4m3) and a scale in bf16 an output, ``[N]``."""
    import ml_dtypes

    scale = (np.abs(weight).max(axis=0) / np.float32(LARGEST_FLOAT8)).astype(ml_dtypes.bfloat16)
    scale = np.where(scale == 0, ml_dtypes.bfloat16(1), scale)
    codes = weight / scale.astype(np.float32)
    bounded = np.clip(codes, -LARGEST_FLOAT8, LARGEST_FLOAT8).astype(ml_dtypes.float8_e4m3fn)
    return np.ascontiguousarray(bounded), scale


def _blocks(graph: Any, node: Any, product: _Product) -> None:
    """The model's codes; layers without 4-bit ones are floats of the same values."""
    import ml_dtypes
    import onnx_ir as ir

    if not product.codes:
        _cast(graph, node, product)
        return
    own = joined(product.codes)
    signed, each = positive(own.codes.astype(np.int8) - np.int8(8), own.scale)
    codes = np.ascontiguousarray(signed.T).astype(ml_dtypes.int4)
    scale = np.ascontiguousarray(each.T).astype(half_type(product.half)[1])
    inputs = [
        constant(graph, codes, f"{node.name}_codes"),
        constant(graph, scale, f"{node.name}_scale"),
    ]
    attributes = {"axis": 0, "block_size": own.group_size}
    weight = ir.node("DequantizeLinear", inputs, attributes)
    half_product(graph, node, product.half, weight.outputs[0], product.tokens, (weight,))


def positive(
    codes: NDArray[np.int8], scale: NDArray[np.float32]
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """The same values with no scale of 0, which TensorRT refuses: zeros are codes of 0.

    Args:
        codes: ``[N, K]`` around 0.
        scale: ``[N, G]``, of K / G codes each.
    """
    nothing = scale == 0
    over = np.repeat(nothing, codes.shape[1] // scale.shape[1], axis=1)
    return np.where(over, np.int8(0), codes), np.where(nothing, np.float32(1), scale)
