"""Heads of queries, keys and values as rows of one matmul's output: no Split copies them.

Attention looks its heads up by token and head at once (:mod:`slmc.model.packing`), so all three
may lie in one table of rows. Letters: T tokens, A heads of q, k and v together, D width of a head,
P positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from slmc.export.graph.ir import (
    MICROSOFT,
    Tape,
    array,
    constant,
    inputs,
    is_constant,
    nodes,
    producer,
)
from slmc.export.graph.rotary import HEADS_FIRST

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class _Part:
    """How attention looks up the queries, keys or values that a Split cuts out."""

    rotary: ir.Node | None
    """The node that rotates them; ``None`` for values."""
    width: int
    """D."""
    lookup: ir.Node
    """The Gather of their rows ``[T * heads, D]``."""
    rows: ir.Node
    """The Add that computes the rows ``token * heads + head``."""
    heads: int


class _Known:
    """Values that several layers share."""

    def __init__(self) -> None:
        self.rows: dict[tuple[ir.Value, int, int], ir.Value] = {}
        """Rows among all heads, by the rows before, the first head and A."""
        self.positions: dict[tuple[ir.Value, int, int, int], ir.Value] = {}
        """Positions per head, by those per token, rotated heads, heads of values and P."""


def merge_qkv_lookups(graph: ir.Graph) -> None:
    """Rotate q, k and v of a layer by one operator, and look all three up in its output.

    Each head of a token is a batch entry of its own. Values get an extra position with cos = 1 and
    sin = 0, which leaves them unrotated. Without rotary positions all three are looked up in the
    output of the matmul.

    Args:
        graph: Its q, k and v are one matmul (:func:`slmc.export.graph.fusion.merge_matmuls`),
            rotated by :func:`slmc.export.graph.rotary.fuse_rotary` if they have positions; changed
            in place. A layer of another form, such as one with norms of queries, stays.
    """
    known = _Known()
    for split in nodes(graph, "Split"):
        parts = [part for value in split.outputs if (part := _part(value)) is not None]
        if len(parts) == len(split.outputs) and _mergeable(parts, _widths(split)):
            _merge(graph, split, parts, known)
    graph.sort()


def _part(value: ir.Value) -> _Part | None:
    rotary, width, swapped = None, 0, False
    while True:
        uses = list(value.uses())
        if len(uses) != 1 or uses[0].idx != 0:
            return None
        node = uses[0].node
        if node.op_type == "Transpose" and node.attributes["perm"].as_ints() == HEADS_FIRST:
            swapped = not swapped
        elif swapped:
            return None
        elif node.op_type == "Reshape" and is_constant(node.inputs[1]):
            width = int(array(node.inputs[1])[-1])
        elif node.op_type == "RotaryEmbedding" and rotary is None:
            rotary = node
        elif node.op_type == "Gather":
            rows = rows_of_heads(node)
            return rows and _Part(rotary, width, node, *rows)
        else:
            return None
        value = node.outputs[0]


def rows_of_heads(lookup: ir.Node) -> tuple[ir.Node, int] | None:
    """Match the rows ``token * heads + head`` that a Gather looks up.

    Returns:
        The Add that computes the rows, and the number of heads; ``None`` for other rows.
    """
    rows = producer(lookup.inputs[1])
    if rows is not None and rows.op_type == "Reshape":
        rows = producer(rows.inputs[0])
    if rows is None or rows.op_type != "Add" or not is_constant(rows.inputs[1]):
        return None
    times = producer(rows.inputs[0], "Mul")
    if times is None or not is_constant(times.inputs[1]):
        return None
    heads = int(array(times.inputs[1]).reshape(-1)[0])
    head = array(rows.inputs[1]).reshape(-1)
    return (rows, heads) if np.array_equal(head, np.arange(heads)) else None


def _mergeable(parts: list[_Part], widths: list[int]) -> bool:
    """Whether all parts but the last are rotated by the same tables, or none; values never are.

    Args:
        parts: Queries, keys and values, all heads of one width.
        widths: What the Split cuts.
    """
    *rotated, values = parts
    if not rotated or values.rotary is not None:
        return False
    tables = [None if part.rotary is None else part.rotary.inputs[1:] for part in rotated]
    same_tables = all(each == tables[0] for each in tables)
    return same_tables and widths == [part.heads * parts[0].width for part in parts]


def _widths(split: ir.Node) -> list[int]:
    """The widths that a Split cuts: its constants, or else equal parts; empty if unknown."""
    if len(split.inputs) < 2:
        last = [None if out.shape is None else out.shape[-1] for out in split.outputs]
        return [width for width in last if isinstance(width, int)]
    sizes = split.inputs[1]
    return array(sizes).tolist() if is_constant(sizes) else []


def _merge(graph: ir.Graph, split: ir.Node, parts: list[_Part], known: _Known) -> None:
    heads, width = inputs(split)[0], parts[0].width
    tape = Tape(graph, f"{heads.name}_heads", after=split)
    if parts[0].rotary is not None:
        tables = _tables(graph, parts[0].rotary, parts, known)
        shape = constant(graph, [-1, 1, width], f"heads_of_{width}_apart")
        apart = tape.op("Reshape", [heads, shape])
        heads = tape.op("RotaryEmbedding", [apart, *tables], {"num_heads": 1}, domain=MICROSOFT)
    rows = tape.op("Reshape", [heads, constant(graph, [-1, width], f"heads_of_{width}")])
    first, all_heads = 0, sum(part.heads for part in parts)
    for part in parts:
        part.lookup.replace_input_with(0, rows)
        _move(graph, part, first, all_heads, known)
        first += part.heads


def _move(graph: ir.Graph, part: _Part, first: int, all_heads: int, known: _Known) -> None:
    """Look a part up where it lies among all heads of a token: from head ``first`` on."""
    _, old = inputs(part.lookup)
    key = old, first, all_heads
    if key not in known.rows:
        tape = Tape(graph, f"{old.name}_from_{first}", before=part.lookup)
        times = producer(part.rows.inputs[0], "Mul")
        token = None if times is None else times.inputs[0]
        head = constant(graph, array(part.rows.inputs[1]) + first, f"heads_from_{first}")
        scaled = tape.op("Mul", [token, constant(graph, np.array(all_heads), "all_heads")])
        rows = tape.op("Add", [scaled, head])
        reshape = producer(old, "Reshape")
        if reshape is not None:
            rows = tape.op("Reshape", [rows, *reshape.inputs[1:]])
        known.rows[key] = rows
    part.lookup.replace_input_with(1, known.rows[key])


def _tables(graph: ir.Graph, rotary: ir.Node, parts: list[_Part], known: _Known) -> list[ir.Value]:
    """Positions ``[T * A, 1]`` and tables with an extra row P, which leaves values unrotated."""
    _, column, cosines, sines = inputs(rotary)
    rotated, values = sum(part.heads for part in parts[:-1]), parts[-1].heads
    extra, half = array(cosines).shape
    longer = []
    for table, fill in ((cosines, 1), (sines, 0)):
        row = np.full((1, half), fill, dtype=np.float32)
        rows = np.concatenate([array(table), row])
        longer.append(constant(graph, rows, f"{table.name}_and_unrotated"))
    key = column, rotated, values, extra
    if key not in known.positions:
        tape = Tape(graph, f"{column.name}_of_{rotated}_heads", after=column.producer())
        is_rotated = np.repeat([1, 0], [rotated, values])
        rotated_at = tape.op("Mul", [column, tape.constant(is_rotated, "rotated")])
        unrotated_at = tape.constant((1 - is_rotated) * extra, "unrotated")
        positions = tape.op("Add", [rotated_at, unrotated_at])
        shape = constant(graph, [-1, 1], "heads_column")
        known.positions[key] = tape.op("Reshape", [positions, shape])
    return [known.positions[key], *longer]
