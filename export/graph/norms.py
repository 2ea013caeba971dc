"""The norms of a decoder in the form that ONNX Runtime computes in one pass over memory."""

from typing import Any

from slmc.export.graph.ir import MICROSOFT
from slmc.export.graph.last_layer import has_tokens, is_last_axis


def divide(model: Any) -> None:
    """Write ``x * (1 / sqrt(m))`` as ``x / sqrt(m)``: ONNX Runtime sees a norm in it then."""
    from onnxscript.rewriter import pattern, rewrite

    def multiplied(op: Any, x: Any, squares: Any) -> Any:
        return op.Mul(x, op.Reciprocal(op.Sqrt(squares)))

    def divided(op: Any, x: Any, squares: Any) -> Any:
        return op.Div(x, op.Sqrt(squares))

    rewrite(model, pattern_rewrite_rules=[pattern.RewriteRule(multiplied, divided)])


def add(graph: Any) -> None:
    """Add up the residual stream in the norm that reads it: ``SkipSimplifiedLayerNormalization``.

    Args:
        graph: Its norms divide (:func:`divide`); one of another form stays.
    """
    import onnx_ir as ir

    for node in list(graph):
        found = _norm_of_sum(node)
        if found is None:
            continue
        added, scaled, weight, epsilon = found
        inputs = [*added.inputs, weight]
        norm = ir.node(
            "SkipSimplifiedLayerNormalization",
            inputs,
            {"epsilon": epsilon},
            domain=MICROSOFT,
            num_outputs=4,
        )
        name = added.outputs[0].name
        norm.name = f"{name}_norm"
        for out, end in zip(norm.outputs, ("normed", "mean", "variance", "sum"), strict=True):
            out.name = f"{name}_{end}"
        graph.insert_after(added, norm)
        for old, new in ((scaled.outputs[0], norm.outputs[0]), (added.outputs[0], norm.outputs[3])):
            new.type, new.shape = old.type, old.shape
            old.replace_all_uses_with(new)


def _norm_of_sum(node: Any) -> tuple[Any, Any, Any, float] | None:
    """Of ``w * (s / sqrt(mean(s^2) + epsilon))``: the nodes of ``s = a + b`` and of ``w *``."""
    if node.op_type != "Div":
        return None
    total, root = node.inputs
    added, users = total.producer(), [user for user, _ in node.outputs[0].uses()]
    steps = [root.producer()]
    for kind in ("Sqrt", "Add", "ReduceMean"):
        if steps[-1] is None or steps[-1].op_type != kind:
            return None
        steps.append(steps[-1].inputs[0].producer())
    _, plus, mean, power = steps
    epsilon = plus.inputs[1].const_value
    if added is None or added.op_type != "Add" or not all(map(has_tokens, added.inputs)):
        return None
    if power is None or power.op_type != "Pow" or power.inputs[0] is not total:
        return None
    if epsilon is None or not is_last_axis(mean) or len(users) != 1 or users[0].op_type != "Mul":
        return None
    weights = [value for value in users[0].inputs if value is not node.outputs[0]]
    if len(weights) != 1 or weights[0].const_value is None or len(weights[0].shape) != 1:
        return None
    return added, users[0], weights[0], float(epsilon.numpy())
