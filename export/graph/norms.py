"""The norms of a decoder in the form that ONNX Runtime computes in one pass over memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slmc.export.graph.ir import (
    MICROSOFT,
    Tape,
    array,
    inputs,
    is_constant,
    nodes,
    only_user,
    producer,
    rank,
    replace,
)
from slmc.export.graph.last_layer import has_tokens, is_last_axis

if TYPE_CHECKING:
    import onnx_ir as ir


def use_division(model: ir.Model) -> None:
    """Write ``x * (1 / sqrt(m))`` as ``x / sqrt(m)``, which ONNX Runtime recognises as a norm."""
    from onnxscript.rewriter import pattern, rewrite

    def multiplied(op: Any, x: Any, squares: Any) -> Any:
        return op.Mul(x, op.Reciprocal(op.Sqrt(squares)))

    def divided(op: Any, x: Any, squares: Any) -> Any:
        return op.Div(x, op.Sqrt(squares))

    rewrite(model, pattern_rewrite_rules=[pattern.RewriteRule(multiplied, divided)])


def fuse_residual_add(graph: ir.Graph) -> None:
    """Fuse a residual addition and the norm after it: ``SkipSimplifiedLayerNormalization``.

    Args:
        graph: Its norms divide (:func:`use_division`); norms of another form stay.
    """
    for node in nodes(graph, "Div"):
        match = _norm_of_sum(node)
        if match is None:
            continue
        addition, scaled, weight, epsilon = match
        total = addition.outputs[0]
        tape = Tape(graph, f"{total.name}_norm", before=addition)
        normed, _, _, fused_sum = tape.ops(
            "SkipSimplifiedLayerNormalization",
            [*addition.inputs, weight],
            {"epsilon": epsilon},
            domain=MICROSOFT,
            outputs=4,
        )
        replace(scaled.outputs[0], normed)
        replace(total, fused_sum)


def _norm_of_sum(node: ir.Node) -> tuple[ir.Node, ir.Node, ir.Value, float] | None:
    """Match ``weight * (s / sqrt(mean(s^2) + epsilon))`` with ``s = a + b``.

    Returns:
        The Add of ``s``, the Mul by ``weight``, ``weight`` and ``epsilon``.
    """
    total, root = inputs(node)
    addition, scaled = producer(total, "Add"), only_user(node.outputs[0])
    chain: list[ir.Node] = []
    value = root
    for kind in ("Sqrt", "Add", "ReduceMean", "Pow"):
        before = producer(value, kind)
        if before is None:
            return None
        chain.append(before)
        value = inputs(before)[0]
    _, plus, mean, power = chain
    if addition is None or not all(map(has_tokens, inputs(addition))):
        return None
    if power.inputs[0] is not total or not is_constant(plus.inputs[1]) or not is_last_axis(mean):
        return None
    if scaled is None or scaled.op_type != "Mul":
        return None
    weights = [value for value in inputs(scaled) if value is not node.outputs[0]]
    if len(weights) != 1 or not is_constant(weights[0]) or rank(weights[0]) != 1:
        return None
    return addition, scaled, weights[0], float(array(plus.inputs[1]))
