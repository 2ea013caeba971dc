"""Give the products of a graph the precision that the engine is to have.

- int8: weights in 8 bits, a scale an output; tokens in 8 bits, a scale a token. A scale a token
  and not a batch, so that a user's list never hangs on who else is asked about.
- int8-accurate: both in 8 bits in blocks of inputs, each with a scale of its own.
- int4: weights as codes in blocks with a scale each, tokens in float32.
- bf16, fp16: weights of that type, tokens cast to it and products back: for GPUs.

A quantized model's own codes are carried over and never rounded again.

Letters: T tokens, K inputs, N outputs, b bits.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slmc.export.config import HALVES
from slmc.export.constraints import BLOCKS
from slmc.export.graph.ir import MICROSOFT, constant, name_nodes, products, put
from slmc.model.codes import Codes, rounded

RANGE = 127
"""Largest magnitude of an int8 code; -128 is left out, so that the codes are symmetric."""
MIDDLE = 128
"""What stands for 0 among a token's uint8 codes."""
TINY = np.float32(1e-8)
"""Largest entry that stands for a token of zeros."""
STEP = "step"
"""Mark of a product's value: the step of its tokens, which it was multiplied with last."""
FARTHEST, NOTHING = -80.0, 1e-34
"""Below the largest score, what a key's score is taken for at least, and the weight that is taken
for none: what is masked would else be a denormal number, which processors compute very slowly."""
COLUMNS = 16
"""Copies of a sum that are computed: a product with one column adds in lanes again."""
ACCURATE_BLOCK = 32
"""Inputs that share a scale in ``int8-accurate``."""
TOKENS_AS_FLOATS, TOKENS_IN_BLOCKS = 0, 4
"""Levels of MatMulNBits. On CPUs its 8-bit form is far slower on float tokens than on int8
ones, a row at a time (docs/log.md); its 4-bit form is as fast, and exact."""


def lower(graph: Any, precision: str, own: Mapping[str, Codes], layout: str) -> None:
    """Bring the products of a graph into a precision, in place.

    Args:
        graph: An ``onnx_ir.Graph`` whose products know their layer (``weight.meta["layer"]``).
        precision: ``int8``, ``int8-accurate``, ``int4`` (the model's own codes), or of halves.
        own: The codes of a quantized model by layer; layers without any stay float in ``int4``.
        layout: ``padded`` takes standard operators only.
    """
    tokens: dict[Any, tuple[Any, Any]] = {}
    zeros: dict[Any, Any] = {}
    halves: dict[Any, Any] = {}
    for node in list(products(graph)):
        value = node.inputs[1]
        weight = np.ascontiguousarray(value.const_value.numpy().T)
        names = value.meta.get("layers", ())
        if precision == "int8" and names:
            _per_token(graph, node, weight, layout, tokens, zeros)
        elif precision == "int8-accurate" and names:
            codes = (
                joined([own[name] for name in names]) if own and set(names) <= set(own) else None
            )
            codes = codes or rounded(weight, bits=8, group_size=ACCURATE_BLOCK)
            _blocks(graph, node, codes, layout)
        elif precision == "int4" and names and set(names) <= set(own):
            _blocks(graph, node, joined([own[name] for name in names]), layout)
        elif precision in HALVES and names:
            half_product(graph, node, precision, half_weight(graph, node, precision), halves)


def half_type(precision: str) -> tuple[Any, Any]:
    """The type of bf16 or fp16: ONNX's, numpy's."""
    import ml_dtypes
    import onnx_ir as ir

    if precision == "fp16":
        return ir.DataType.FLOAT16, np.float16
    return ir.DataType.BFLOAT16, ml_dtypes.bfloat16


def half_weight(graph: Any, node: Any, precision: str) -> Any:
    """The weight of a product as a constant of 16 bits."""
    values = node.inputs[1].const_value.numpy().astype(half_type(precision)[1])
    return constant(graph, values, f"{node.outputs[0].name}_half")


def half_product(
    graph: Any,
    node: Any,
    precision: str,
    weight: Any,
    tokens: dict[Any, Any],
    before: tuple[Any, ...] = (),
) -> None:
    """Cast a product's tokens, multiply them with a weight of that type, and cast back.

    Args:
        graph: Changed in place.
        node: The product ``x @ W`` of floats that is replaced.
        precision: bf16 or fp16.
        weight: ``[K, N]`` of that type.
        tokens: Tokens that were cast already, by the value that they were.
        before: Nodes that make the weight.
    """
    import onnx_ir as ir

    x = node.inputs[0]
    if x not in tokens:
        cast = ir.node("Cast", [x], {"to": half_type(precision)[0]})
        name_nodes([cast], f"{x.name}_half")
        graph.insert_before(node, [cast])
        tokens[x] = cast.outputs[0]
    found = ir.node("MatMul", [tokens[x], weight])
    back = ir.node("Cast", found.outputs, {"to": ir.DataType.FLOAT})
    put(graph, node, [*before, found, back])


def joined(parts: list[Codes]) -> Codes:
    """Codes of layers with one input as those of one layer; all have the same form."""
    first = parts[0]
    zero = None
    if first.zero_point is not None:
        zero = np.concatenate([p.zero_point for p in parts if p.zero_point is not None])
    codes = np.concatenate([part.codes for part in parts])
    return Codes(
        first.bits, first.group_size, codes, np.concatenate([p.scale for p in parts]), zero
    )


def nbits_form(codes: Codes) -> tuple[NDArray[np.uint8], NDArray[np.float32], Any]:
    """``B [N, G, block * b / 8]``, scales ``[N, G]`` and zero points as MatMulNBits has them."""
    outputs, inputs = codes.codes.shape
    groups, block = codes.scale.shape[1], codes.group_size
    padded = np.full((outputs, groups * block), 2 ** (codes.bits - 1), dtype=np.uint8)
    padded[:, :inputs] = codes.codes
    stored: NDArray[Any] = padded.reshape(outputs, groups, block)
    zero: NDArray[Any] | None = codes.zero_point
    if codes.bits == 4:
        stored = stored[..., 0::2] | (stored[..., 1::2] << 4)
        if zero is not None:
            even = np.pad(zero, ((0, 0), (0, groups % 2)))
            zero = even[:, 0::2] | (even[:, 1::2] << 4)
    return stored, codes.scale, zero


def fits(codes: Codes) -> bool:
    """Whether MatMulNBits takes these blocks."""
    return codes.group_size in BLOCKS


def _per_token(
    graph: Any,
    node: Any,
    weight: NDArray[np.float32],
    layout: str,
    tokens: dict[Any, tuple[Any, Any]],
    zeros: dict[Any, Any],
) -> None:
    import onnx_ir as ir

    x, name = node.inputs[0], node.outputs[0].name
    if x not in tokens:
        tokens[x] = _quantized_tokens(graph, node, *_unscaled(graph, node, x), zeros)
    quantized, step = tokens[x]
    scale = np.abs(weight).max(axis=1) / np.float32(RANGE)
    scale = np.where(scale == 0, np.float32(1), scale).astype(np.float32)
    codes = np.clip(np.rint(weight / scale[:, None]), -RANGE, RANGE).astype(np.int8).T
    stored = constant(graph, np.ascontiguousarray(codes), f"{name}_codes")
    zero = constant(graph, np.array(MIDDLE, dtype=np.uint8), f"{name}_zero")
    each = constant(graph, scale, f"{name}_scale")
    if layout == "packed":
        unit = constant(graph, np.array(1, dtype=np.float32), f"{name}_unit")
        inputs = [quantized, stored, unit, each, zero]
        nodes = [ir.node("MatMulIntegerToFloat", inputs, domain=MICROSOFT)]
    else:
        whole = ir.node("MatMulInteger", [quantized, stored, zero])
        cast = ir.node("Cast", whole.outputs, {"to": ir.DataType.FLOAT})
        nodes = [whole, cast, ir.node("Mul", [cast.outputs[0], each])]
    nodes.append(ir.node("Mul", [nodes[-1].outputs[0], step]))
    nodes[-1].outputs[0].meta[STEP] = step
    put(graph, node, nodes)


def _unscaled(graph: Any, node: Any, x: Any) -> tuple[Any, Any]:
    """What has the codes of ``x``, and the step that ``x`` is larger by, if there is any.

    The up projection's step does not change the codes of ``gate * up``, only what they are
    worth: it is multiplied with the step of those, not with every one of their entries.
    """
    import onnx_ir as ir

    made = x.producer()
    if made is None or made.op_type != "Mul" or len(x.uses()) > 1:
        return x, None
    for index, factor in enumerate(made.inputs):
        step = factor.meta.get(STEP)
        if step is not None and len(factor.uses()) == 1:
            inputs = [made.inputs[1 - index], factor.producer().inputs[0]]
            product = ir.node("Mul", inputs)
            name_nodes([product], f"{x.name}_unscaled")
            product.outputs[0].type, product.outputs[0].shape = x.type, x.shape
            graph.insert_before(node, [product])
            return product.outputs[0], step
    return x, None


def _quantized_tokens(
    graph: Any, node: Any, x: Any, step: Any, zeros: dict[Any, Any]
) -> tuple[Any, Any]:
    """Tokens ``[..., T, K]`` as uint8 around :data:`MIDDLE`, and the step of each ``[..., T, 1]``.

    Axes before the tokens are of size 1. The largest entry is found without writing absolute
    values, and one operator divides and rounds: fewer passes over memory than Abs, ReduceMax, Div
    and QuantizeLinear.
    """
    import onnx_ir as ir

    axis = constant(graph, np.array([-1], dtype=np.int64), f"{x.name}_axis")
    most = ir.node("ReduceMax", [x, axis], {"keepdims": 1})
    least = ir.node("ReduceMin", [x, axis], {"keepdims": 1})
    turned = ir.node("Neg", least.outputs)
    tiny = constant(graph, np.array(TINY), f"{x.name}_tiny")
    largest = ir.node("Max", [most.outputs[0], turned.outputs[0], tiny])
    unit = constant(graph, np.array(1 / RANGE, dtype=np.float32), f"{x.name}_unit")
    steps = ir.node("Mul", [largest.outputs[0], unit])
    flat = ir.node("Reshape", [steps.outputs[0], axis])
    nodes = [most, least, turned, largest, steps, flat]
    number = x if x.shape is None else x.shape[-2]
    if number not in zeros:
        # Without zero points codes would be int8, which is far slower to multiply.
        middle = constant(graph, np.array(MIDDLE, dtype=np.uint8), f"{x.name}_middle")
        size = ir.node("Shape", flat.outputs)
        nodes += [size, ir.node("Expand", [middle, size.outputs[0]])]
        zeros[number] = nodes[-1].outputs[0]
    inputs = [x, flat.outputs[0], zeros[number]]
    codes = ir.node("QuantizeLinear", inputs, {"axis": -2})
    nodes.append(codes)
    if step is not None:
        nodes.append(ir.node("Mul", [steps.outputs[0], step]))
    name_nodes(nodes, x.name)
    graph.insert_before(node, nodes)
    return codes.outputs[0], (steps if step is None else nodes[-1]).outputs[0]


def _blocks(graph: Any, node: Any, codes: Codes, layout: str) -> None:
    name = node.outputs[0].name
    if layout == "padded" or not fits(codes):
        put(graph, node, _dequantized(graph, node, codes, name))
        return
    stored, scale, zero = nbits_form(codes)
    inputs = [
        node.inputs[0],
        constant(graph, stored, f"{name}_codes"),
        constant(graph, scale, f"{name}_scale"),
    ]
    if zero is not None:
        inputs.append(constant(graph, zero, f"{name}_zero"))
    put(graph, node, [nbits_product(inputs, codes)])


def nbits_product(inputs: list[Any], codes: Codes, level: int | None = None) -> Any:
    """A MatMulNBits node.

    Args:
        inputs: Tokens and the constants of :func:`nbits_form`.
        codes: What those constants are.
        level: :data:`TOKENS_AS_FLOATS` or :data:`TOKENS_IN_BLOCKS`; by the bits if not given.
    """
    import onnx_ir as ir

    usual = TOKENS_IN_BLOCKS if codes.bits == 8 else TOKENS_AS_FLOATS
    attributes = {
        "K": codes.codes.shape[1],
        "N": codes.codes.shape[0],
        "bits": codes.bits,
        "block_size": codes.group_size,
        "accuracy_level": usual if level is None else level,
    }
    return ir.node("MatMulNBits", inputs, attributes, domain=MICROSOFT)


def _dequantized(graph: Any, node: Any, codes: Codes, name: str) -> list[Any]:
    """The standard form: a product with the floats that codes stand for, computed from them.

    ONNX Runtime computes constants once, when a session opens. Of DequantizeLinear it would make
    MatMulNBits, and round tokens to 8 bits in every session that is not told to leave them.
    """
    import onnx_ir as ir

    kind = ir.DataType.UINT4 if codes.bits == 4 else ir.DataType.UINT8
    (outputs, inputs), groups = codes.codes.shape, codes.scale.shape[1]
    size, middle = codes.group_size, 2 ** (codes.bits - 1)
    whole = np.full((groups * size, outputs), middle, dtype=np.uint8)
    whole[:inputs] = codes.codes.T
    zero = np.array(middle, np.uint8) if codes.zero_point is None else codes.zero_point.T[:, None]
    scale = np.ascontiguousarray(codes.scale.T[:, None])
    steps = [
        ir.node("Cast", [constant(graph, array, f"{name}_{of}", kind)], {"to": ir.DataType.FLOAT})
        for of, array in (
            ("codes", whole.reshape(groups, size, outputs)),
            ("zero", np.ascontiguousarray(zero)),
        )
    ]
    less = ir.node("Sub", [step.outputs[0] for step in steps])
    floats = ir.node("Mul", [less.outputs[0], constant(graph, scale, f"{name}_scale")])
    shape = constant(graph, np.array([-1, outputs]), f"{name}_shape")
    made = [*steps, less, floats, ir.node("Reshape", [floats.outputs[0], shape])]
    if groups * size != inputs:
        bounds = [constant(graph, np.array([at]), f"{name}_end") for at in (0, inputs, 0)]
        made.append(ir.node("Slice", [made[-1].outputs[0], *bounds]))
    return [*made, ir.node("MatMul", [node.inputs[0], made[-1].outputs[0]])]


def steady_softmax(graph: Any) -> None:
    """Add up attention weights one after the other, so that none hangs on where it stands.

    A Softmax adds in vector lanes, so that the last bit of a sum hangs on where a history lies
    among others; a product with ones adds in order, and what is masked adds exactly nothing. On a
    CPU it is also the faster of the two, since it computes no denormal numbers.
    """
    import onnx_ir as ir

    last = constant(graph, np.array([-1], dtype=np.int64), "softmax_axis")
    ones_like = constant(graph, np.array([COLUMNS], dtype=np.int64), "softmax_columns")
    bounds = [
        constant(graph, np.array([value], dtype=np.int64), f"softmax_{name}")
        for name, value in (("from", 0), ("to", 1))
    ]
    one = constant(graph, np.array(1, dtype=np.float32), "softmax_one")
    farthest = constant(graph, np.array(FARTHEST, dtype=np.float32), "softmax_farthest")
    ones: dict[Any, Any] = {}
    for node in list(graph):
        if node.op_type != "Softmax":
            continue
        x = node.inputs[0]
        most = ir.node("ReduceMax", [x, last], {"keepdims": 1})
        less = ir.node("Sub", [x, most.outputs[0]])
        bounded = ir.node("Clip", [less.outputs[0], farthest])
        powers = ir.node("Exp", bounded.outputs)
        power = ir.node("ThresholdedRelu", powers.outputs, {"alpha": NOTHING})
        nodes = [most, less, bounded, powers, power]
        number = x if x.shape is None else x.shape[-1]
        if number not in ones:
            keys = ir.node("Shape", [x], {"start": -1})
            shape = ir.node("Concat", [keys.outputs[0], ones_like], {"axis": 0})
            nodes += [keys, shape, ir.node("Expand", [one, shape.outputs[0]])]
            ones[number] = nodes[-1].outputs[0]
        sums = ir.node("MatMul", [power.outputs[0], ones[number]])
        first = ir.node("Slice", [sums.outputs[0], *bounds, last])
        share = ir.node("Div", [power.outputs[0], first.outputs[0]])
        put(graph, node, [*nodes, sums, first, share])
