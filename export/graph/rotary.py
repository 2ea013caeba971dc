"""Rotary positions of an engine: looked up instead of computed, and applied by one operator.

An engine sees few positions, so their cosines and sines are constants of it. Letters: P positions,
T tokens, D width of a head, R the part of it that is turned.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slmc.export.graph.fusion import cut_of
from slmc.export.graph.ir import MICROSOFT, constant, name_nodes, replace
from slmc.model.loading import Recommender
from slmc.model.recommender import SequentialRecommender

EVERY = "every"
"""Stands for the kind of layer, where all layers turn alike."""
HEADS_FIRST = (0, 2, 1, 3)
"""Turns ``[1, T, heads, D]`` into ``[1, heads, T, D]``, and back."""


class RotaryTables(nn.Module):
    """A decoder's rotary module whose cosines and sines are looked up, not computed."""

    def __init__(self, computed: Any, positions: int) -> None:
        """Ask ``computed`` once for all positions.

        Args:
            computed: Gives cosines and sines ``[1, T, R]`` of positions ``[1, T]``, for a kind
                of layer where layers differ.
            positions: P.

        Raises:
            ValueError: What it gives hangs on how long a history is.
        """
        super().__init__()
        differs = "layer_type" in signature(computed.forward).parameters
        self.kinds = tuple(computed.layer_types) if differs else ()
        for kind in self.kinds or (EVERY,):
            given = (kind,) if self.kinds else ()
            short, long = (
                computed(torch.zeros(1), torch.arange(length)[None], *given)
                for length in (2, positions)
            )
            if not all(torch.equal(a, b[:, :2]) for a, b in zip(short, long, strict=True)):
                raise ValueError("rotary frequencies hang on the length of a history")
            for name, part in zip(("cos", "sin"), long, strict=True):
                self.register_buffer(f"{kind}_{name}", part[0].detach().clone())

    def forward(
        self, _: Tensor, position_ids: Tensor, layer_type: str = EVERY
    ) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[1, T, R]`` of positions ``[1, T]``."""
        cos, sin = (
            nn.functional.embedding(position_ids, self.get_buffer(f"{layer_type}_{name}"))
            for name in ("cos", "sin")
        )
        return cos, sin


@contextmanager
def known_positions(model: Recommender) -> Iterator[None]:
    """Let a decoder look its rotary positions up, unless they hang on the length."""
    computed = getattr(getattr(model, "backbone", None), "rotary_emb", None)
    if computed is None or not isinstance(model, SequentialRecommender):
        yield
        return
    config = model.config
    try:
        positions = config.history + config.prefix_length + config.suffix_length
        model.backbone.rotary_emb = RotaryTables(computed, max(positions, 2))
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        model.backbone.rotary_emb = computed


def turn(graph: Any) -> None:
    """Apply rotary positions by ``RotaryEmbedding``: one pass over memory in the place of six.

    Args:
        graph: An ``onnx_ir.Graph``, traced with :func:`known_positions`; changed in place. What
            is not written as Llama does it (``x * cos + rotate_half(x) * sin``) stays.
    """
    import onnx_ir as ir

    halves: dict[Any, Any] = {}
    by_position: dict[Any, Any] = {}
    for node in list(graph):
        found = _rotation(node)
        if found is None:
            continue
        x, (cosines, positions), (sines, _) = found
        for table in (cosines, sines):
            if table not in halves:
                array = table.const_value.numpy()
                half = array[:, : array.shape[1] // 2]
                halves[table] = constant(graph, half.copy(), f"{table.name}_half")
        if positions not in by_position:
            column = ir.node("Reshape", [positions, _sizes(graph, [-1, 1], "column")])
            name_nodes([column], f"{positions.name}_column")
            graph.insert_after(positions.producer(), column)
            by_position[positions] = column.outputs[0]
        _put_operator(graph, node, x, [by_position[positions], halves[cosines], halves[sines]])


def _put_operator(graph: Any, node: Any, x: Any, tables: list[Any]) -> None:
    import onnx_ir as ir

    heads, width = x.shape[1], x.shape[3]
    made = x.producer()
    if made.op_type == "Transpose" and made.attributes["perm"].as_ints() == HEADS_FIRST:
        nodes, source = [], made.inputs[0]
    else:
        nodes = [ir.node("Transpose", [x], {"perm": HEADS_FIRST})]
        source = nodes[0].outputs[0]
    parts = source.producer()
    if parts is not None and parts.op_type == "Reshape":
        source = parts.inputs[0]
    # A token is a batch of its own: the operator takes no sequence longer than its tables.
    apart = _sizes(graph, [-1, 1, heads * width], f"apart_{heads}")
    back = _sizes(graph, [1, -1, heads, width], f"by_head_{heads}")
    tokens = ir.node("Reshape", [source, apart])
    turned = ir.node(
        "RotaryEmbedding", [tokens.outputs[0], *tables], {"num_heads": heads}, domain=MICROSOFT
    )
    shaped = ir.node("Reshape", [turned.outputs[0], back])
    first = ir.node("Transpose", [shaped.outputs[0]], {"perm": HEADS_FIRST})
    nodes += [tokens, turned, shaped, first]
    name_nodes(nodes, f"{node.outputs[0].name}_turned")
    graph.insert_before(node, nodes)
    replace(graph, node, first.outputs[0])


def _sizes(graph: Any, sizes: list[int], name: str) -> Any:
    known = graph.initializers.get(f"rotary_{name}")
    return known or constant(graph, np.array(sizes, dtype=np.int64), f"rotary_{name}")


def _rotation(node: Any) -> tuple[Any, tuple[Any, Any], tuple[Any, Any]] | None:
    """``x [1, heads, T, D]`` and how cos and sin were looked up, if the node adds it up turned."""
    if node.op_type != "Add":
        return None
    for plain, crossed in (node.inputs, node.inputs[::-1]):
        for x, cos in _factors(plain):
            for rotated, sin in _factors(crossed):
                tables = _looked_up(cos), _looked_up(sin)
                if tables[0] and tables[1] and _is_rotated(rotated, x) and _by_head(x):
                    return x, tables[0], tables[1]
    return None


def _factors(value: Any) -> list[tuple[Any, Any]]:
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Mul":
        return []
    a, b = node.inputs
    return [(a, b), (b, a)]


def _is_rotated(value: Any, x: Any) -> bool:
    """Whether ``value`` is the second half of ``x``, negated, before its first."""
    node = value.producer()
    if node is None or node.op_type != "Concat" or len(node.inputs) != 2:
        return False
    negated, first = (part.producer() for part in node.inputs)
    if negated is None or first is None or negated.op_type != "Neg":
        return False
    second = negated.inputs[0].producer()
    if second is None or x.shape is None:
        return False
    half = x.shape[-1] // 2
    return bool(cut_of(first, x) == (0, half) and cut_of(second, x) == (half, 2 * half))


def _by_head(x: Any) -> bool:
    """Whether ``x`` is ``[1, heads, T, D]``, heads and D known."""
    shape = x.shape
    if shape is None or len(shape) != 4 or x.producer() is None:
        return False
    return isinstance(shape[1], int) and isinstance(shape[3], int)


def _looked_up(value: Any) -> tuple[Any, Any] | None:
    """The table ``[P, R]``, both halves alike, and the positions that ``value`` is looked up by."""
    node = value.producer()
    found = node.inputs[0].producer() if node is not None and node.op_type == "Unsqueeze" else None
    if found is None or found.op_type != "Gather" or found.inputs[0].const_value is None:
        return None
    first, second = np.split(found.inputs[0].const_value.numpy(), 2, axis=-1)
    return (found.inputs[0], found.inputs[1]) if np.array_equal(first, second) else None
