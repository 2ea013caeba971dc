"""Rotary position embeddings of an engine: looked up in tables, and applied by one operator.

An engine sees few positions, so their cosines and sines are constants in the graph. Letters: P
positions, T tokens, D width of a head, R the part of it that is rotated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from slmc.export.graph.fusion import slice_bounds
from slmc.export.graph.ir import (
    MICROSOFT,
    Tape,
    array,
    constant,
    inputs,
    is_constant,
    nodes,
    producer,
    replace,
)
from slmc.model.loading import Recommender
from slmc.model.recommender import SequentialRecommender

if TYPE_CHECKING:
    import onnx_ir as ir

EVERY = "every"
"""Stands for the type of layer where all layers have the same frequencies."""
HEADS_FIRST = (0, 2, 1, 3)
"""Permutes the axes ``[1, T, heads, D]`` to ``[1, heads, T, D]``, and back."""


class RotaryTables(nn.Module):
    """A decoder's rotary module whose cosines and sines are looked up, not computed."""

    def __init__(self, computed: Any, positions: int) -> None:
        """Compute the tables of all positions.

        Args:
            computed: Computes cosines and sines ``[1, T, R]`` of positions ``[1, T]``, for a type
                of layer where layers differ.
            positions: P.

        Raises:
            ValueError: Its result depends on the length of a history.
        """
        super().__init__()
        differs = "layer_type" in signature(computed.forward).parameters
        self.layer_types = tuple(computed.layer_types) if differs else ()
        for layer_type in self.layer_types or (EVERY,):
            arguments = (layer_type,) if self.layer_types else ()
            short, long = (
                computed(torch.zeros(1), torch.arange(length)[None], *arguments)
                for length in (2, positions)
            )
            if not all(torch.equal(a, b[:, :2]) for a, b in zip(short, long, strict=True)):
                raise ValueError("rotary frequencies depend on the length of a history")
            for name, table in zip(("cos", "sin"), long, strict=True):
                self.register_buffer(f"{layer_type}_{name}", table[0].detach().clone())

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
def rotary_tables(model: Recommender) -> Iterator[None]:
    """Make a decoder look up cosines and sines, unless they depend on the length of a history."""
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


@dataclass(frozen=True)
class _Rotation:
    """A rotation ``x * cos + rotate_half(x) * sin``."""

    x: ir.Value
    """``[1, heads, T, D]``."""
    heads: int
    width: int
    """D."""
    cosines: ir.Value
    sines: ir.Value
    """Tables ``[P, R]``."""
    positions: ir.Value
    """By which they are looked up."""


def fuse_rotary(graph: ir.Graph) -> None:
    """Rotate by the operator ``RotaryEmbedding``: one pass over memory instead of six.

    Args:
        graph: Traced with :func:`rotary_tables`; changed in place. A rotation that is not written
            as Llama does it (``x * cos + rotate_half(x) * sin``) stays.
    """
    columns: dict[ir.Value, ir.Value] = {}
    for node in nodes(graph, "Add"):
        match = _rotation(node)
        if match is None:
            continue
        positions = match.positions
        if positions not in columns:
            tape = Tape(graph, f"{positions.name}_column", after=positions.producer())
            shape = constant(graph, [-1, 1], "rotary_column")
            columns[positions] = tape.op("Reshape", [positions, shape])
        tables = [_half(graph, match.cosines), _half(graph, match.sines)]
        _rotate(graph, node, match, [columns[positions], *tables])


def _half(graph: ir.Graph, table: ir.Value) -> ir.Value:
    """The first half of the columns of a table ``[P, R]``, whose halves are equal."""
    values = array(table)
    return constant(graph, values[:, : values.shape[1] // 2].copy(), f"{table.name}_half")


def _rotate(graph: ir.Graph, node: ir.Node, match: _Rotation, tables: list[ir.Value]) -> None:
    """Replace a rotation.

    Args:
        graph: Changed in place.
        node: The Add that ends it.
        match: The rotation.
        tables: Positions ``[T, 1]``, cosines and sines.
    """
    x, y, heads, width = match.x, node.outputs[0], match.heads, match.width
    tape = Tape(graph, f"{y.name}_rotated", before=node)
    transpose = producer(x, "Transpose")
    if transpose is not None and transpose.attributes["perm"].as_ints() == HEADS_FIRST:
        source = inputs(transpose)[0]
    else:
        source = tape.op("Transpose", [x], {"perm": HEADS_FIRST})
    reshape = producer(source, "Reshape")
    if reshape is not None:
        source = inputs(reshape)[0]
    # Each token is a batch entry of its own: the operator refuses sequences longer than its tables.
    per_token = constant(graph, [-1, 1, heads * width], f"rotary_tokens_{heads}")
    per_head = constant(graph, [1, -1, heads, width], f"rotary_heads_{heads}")
    tokens = tape.op("Reshape", [source, per_token])
    attributes = {"num_heads": heads}
    rotated = tape.op("RotaryEmbedding", [tokens, *tables], attributes, domain=MICROSOFT)
    shaped = tape.op("Reshape", [rotated, per_head])
    replace(y, tape.op("Transpose", [shaped], {"perm": HEADS_FIRST}))


_Lookup = tuple["ir.Value", "ir.Value"]
"""A table and the positions by which it is looked up."""


def _rotation(node: ir.Node) -> _Rotation | None:
    """Match an Add as the end of a rotation of heads whose number and width are known."""
    for plain, crossed in (node.inputs, node.inputs[::-1]):
        for x, cos in _factors(plain):
            for rotated, sin in _factors(crossed):
                cosines, sines = _table_lookup(cos), _table_lookup(sin)
                sizes = _heads_and_width(x)
                if cosines and sines and sizes and _is_rotated_half(rotated, x):
                    return _Rotation(x, *sizes, cosines[0], sines[0], cosines[1])
    return None


def _factors(value: ir.Value | None) -> list[tuple[ir.Value, ir.Value]]:
    """The two factors of a Mul, in both orders."""
    node = producer(value, "Mul")
    if node is None:
        return []
    a, b = inputs(node)
    return [(a, b), (b, a)]


def _is_rotated_half(value: ir.Value, x: ir.Value) -> bool:
    """Whether ``value`` is the second half of ``x``, negated, before its first half."""
    node = producer(value, "Concat")
    if node is None or len(node.inputs) != 2:
        return False
    negated, first = producer(node.inputs[0], "Neg"), producer(node.inputs[1])
    second = None if negated is None else producer(negated.inputs[0])
    if first is None or second is None or x.shape is None:
        return False
    width = x.shape[-1]
    half = width // 2 if isinstance(width, int) else 0
    return slice_bounds(first, x) == (0, half) and slice_bounds(second, x) == (half, 2 * half)


def _heads_and_width(x: ir.Value) -> tuple[int, int] | None:
    """Heads and D of ``x [1, heads, T, D]``, or ``None`` if they are not known."""
    shape = x.shape
    if shape is None or len(shape) != 4 or x.producer() is None:
        return None
    _, heads, _, width = shape
    return (heads, width) if isinstance(heads, int) and isinstance(width, int) else None


def _table_lookup(value: ir.Value) -> _Lookup | None:
    """The table ``[P, R]``, whose halves are equal, and the positions that ``value`` comes from."""
    node = producer(value, "Unsqueeze")
    lookup = None if node is None else producer(node.inputs[0], "Gather")
    if lookup is None or not is_constant(lookup.inputs[0]):
        return None
    table, positions = inputs(lookup)
    first, second = np.split(array(table), 2, axis=-1)
    return (table, positions) if np.array_equal(first, second) else None
