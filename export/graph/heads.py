"""Heads of queries, keys and values as rows of one product: none is cut out of it and copied.

Attention looks its heads up by token and head at once (:mod:`slmc.model.packing`), so all three
may lie in one table of rows. Letters: T tokens, A heads of q, k and v together, D width of a head.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from slmc.export.graph.ir import MICROSOFT, constant, name_nodes
from slmc.export.graph.rotary import HEADS_FIRST


@dataclass(frozen=True)
class _Part:
    """How queries, keys or values are looked up in what a Split gives."""

    rotary: Any
    """The node that turns them; ``None`` for values."""
    width: int
    """D."""
    lookup: Any
    """The Gather of their rows ``[T * heads, D]``."""
    index: Any
    """What gives its rows ``token * heads + head``: the Add of a Mul."""
    heads: int


def look_up_in_one(graph: Any) -> None:
    """Turn q, k and v of a layer by one operator, and look all of them up in what it gives.

    The token of each head is a batch of its own, and that of values stands at a position that
    turns nothing. Where nothing is turned, all are looked up in the product itself.

    Args:
        graph: An ``onnx_ir.Graph`` whose q, k and v are one product
            (:func:`slmc.export.graph.fusion.merge_products`), turned by
            :func:`slmc.export.graph.rotary.turn` if they have positions; changed in place. A layer
            of another form, such as one with norms of queries, stays.
    """
    known: dict[Any, Any] = {}
    for split in [node for node in graph if node.op_type == "Split"]:
        parts = [_part(value) for value in split.outputs]
        found = [part for part in parts if part is not None]
        if len(found) == len(parts) and _alike(found, _sizes(split)):
            _look_up(graph, split, found, known)
    graph.sort()


def _part(value: Any) -> _Part | None:
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
        elif node.op_type == "Reshape" and node.inputs[1].const_value is not None:
            width = int(node.inputs[1].const_value.numpy()[-1])
        elif node.op_type == "RotaryEmbedding" and rotary is None:
            rotary = node
        elif node.op_type == "Gather":
            found = looked_up_by(node)
            return found and _Part(rotary, width, node, *found)
        else:
            return None
        value = node.outputs[0]


def looked_up_by(lookup: Any) -> tuple[Any, int] | None:
    """What makes the rows ``token * heads + head`` that a Gather looks up, and the heads."""
    made = lookup.inputs[1].producer()
    if made is not None and made.op_type == "Reshape":
        made = made.inputs[0].producer()
    if made is None or made.op_type != "Add" or made.inputs[1].const_value is None:
        return None
    times = made.inputs[0].producer()
    if times is None or times.op_type != "Mul" or times.inputs[1].const_value is None:
        return None
    heads = int(times.inputs[1].const_value.numpy().reshape(-1)[0])
    head = made.inputs[1].const_value.numpy().reshape(-1)
    return (made, heads) if np.array_equal(head, np.arange(heads)) else None


def _alike(parts: list[_Part], sizes: list[Any]) -> bool:
    """Whether all but the last are turned by the same tables, or none; values never are.

    Args:
        parts: What the Split gives, whole heads of one width.
        sizes: Their widths.
    """
    *turned, values = parts
    if not turned or values.rotary is not None:
        return False
    tables = [part.rotary and tuple(part.rotary.inputs[1:]) for part in turned]
    same = all(one == tables[0] for one in tables)
    whole = [part.heads * parts[0].width for part in parts]
    return same and sizes == whole


def _sizes(split: Any) -> list[Any]:
    """Widths of what a Split gives: its constants, or else equal parts."""
    if len(split.inputs) < 2:
        return [out.shape and out.shape[-1] for out in split.outputs]
    given = split.inputs[1].const_value
    return [] if given is None else given.numpy().tolist()


def _look_up(graph: Any, split: Any, parts: list[_Part], known: dict[Any, Any]) -> None:
    import onnx_ir as ir

    width = parts[0].width
    if width not in known:
        shapes = {"heads_apart": [-1, 1, width], "heads_rows": [-1, width]}
        known[width] = [constant(graph, np.array(sizes), name) for name, sizes in shapes.items()]
    apart, rows = known[width]
    nodes, heads = [], split.inputs[0]
    if parts[0].rotary is not None:
        tokens = ir.node("Reshape", [heads, apart])
        tables = _tables(graph, parts, known)
        turned = ir.node(
            "RotaryEmbedding", [tokens.outputs[0], *tables], {"num_heads": 1}, domain=MICROSOFT
        )
        nodes, heads = [tokens, turned], turned.outputs[0]
    flat = ir.node("Reshape", [heads, rows])
    nodes.append(flat)
    name_nodes(nodes, f"{split.inputs[0].name}_heads")
    graph.insert_after(split, nodes)
    before = 0
    for part in parts:
        part.lookup.replace_input_with(0, flat.outputs[0])
        _move(graph, part, before, sum(one.heads for one in parts), known)
        before += part.heads


def _move(graph: Any, part: _Part, before: int, heads: int, known: dict[Any, Any]) -> None:
    """Let a part be looked up where it lies among all heads of a token."""
    import onnx_ir as ir

    old = part.lookup.inputs[1]
    if (old, before, heads) not in known:
        times = part.index.inputs[0].producer()
        head = part.index.inputs[1].const_value.numpy() + before
        moved = ir.node("Mul", [times.inputs[0], constant(graph, np.array(heads), "all_heads")])
        added = ir.node("Add", [moved.outputs[0], constant(graph, head, f"heads_from_{before}")])
        nodes = [moved, added]
        if old is not part.index.outputs[0]:
            nodes.append(ir.node("Reshape", [added.outputs[0], *old.producer().inputs[1:]]))
        name_nodes(nodes, f"{old.name}_from_{before}")
        graph.insert_before(part.lookup, nodes)
        known[old, before, heads] = nodes[-1].outputs[0]
    part.lookup.replace_input_with(1, known[old, before, heads])


def _tables(graph: Any, parts: list[_Part], known: dict[Any, Any]) -> list[Any]:
    """Positions ``[T * A, 1]``, and the tables with one position more, that turns nothing."""
    import onnx_ir as ir

    column, cosines, sines = parts[0].rotary.inputs[1:]
    turned, values = sum(part.heads for part in parts[:-1]), parts[-1].heads
    key = column, cosines, sines, turned, values
    if key in known:
        return list(known[key])
    still, half = cosines.const_value.numpy().shape
    for table, fill in ((cosines, 1), (sines, 0)):
        if table not in known:
            row = np.full((1, half), fill, dtype=np.float32)
            longer = np.concatenate([table.const_value.numpy(), row])
            known[table] = constant(graph, longer, f"{table.name}_still")
    moves = np.repeat([1, 0], [turned, values])
    times = ir.node("Mul", [column, constant(graph, moves, "heads_turned")])
    rest = constant(graph, (1 - moves) * still, "heads_still")
    added = ir.node("Add", [times.outputs[0], rest])
    flat = ir.node(
        "Reshape", [added.outputs[0], constant(graph, np.array([-1, 1]), "heads_column")]
    )
    nodes = [times, added, flat]
    name_nodes(nodes, f"{column.name}_of_{turned}_heads")
    graph.insert_after(column.producer(), nodes)
    known[key] = [flat.outputs[0], known[cosines], known[sines]]
    return list(known[key])
