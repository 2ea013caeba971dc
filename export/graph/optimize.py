"""The graph of a model: traced by torch, made faster by interface, its products in a precision."""

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

from slmc.export.config import HALVES
from slmc.export.graph import (
    fusion,
    heads,
    histories,
    item_table,
    last_layer,
    lowering,
    norms,
    serialize,
)
from slmc.export.graph.ir import MICROSOFT, drop_unused
from slmc.export.graph.masks import Choice, add_masks, choice_of
from slmc.export.graph.rescore import RESCORED, rescore
from slmc.export.graph.rotary import turn
from slmc.export.graph.trace import traced
from slmc.export.reference.precision import linear_layers
from slmc.model.codes import Codes
from slmc.model.loading import Recommender
from slmc.model.quantized_table import QuantizedTable


def to_onnx(
    model: Recommender,
    layout: str,
    top_k: int,
    opset: int,
    precision: str = "fp32",
    own: Mapping[str, Codes] | None = None,
    table: str = "fp32",
) -> Any:
    """The graph of a model with the top-k inside, as an ``onnx.ModelProto``.

    Arguments as :func:`both_graphs`, which gives it first.
    """
    return next(both_graphs(model, layout, top_k, opset, precision, own, table))


def both_graphs(
    model: Recommender,
    layout: str,
    top_k: int,
    opset: int,
    precision: str = "fp32",
    own: Mapping[str, Codes] | None = None,
    table: str = "fp32",
) -> Iterator[Any]:
    """The graph of histories alone, then the same with the masks of :mod:`slmc.export.graph.masks`.

    Each is an ``onnx.ModelProto`` with the top-k inside. The same model gives the same bytes, and
    nothing in them tells of the machine.

    Args:
        model: In evaluation mode, float32, on the CPU.
        layout: ``packed`` (ONNX Runtime) or ``padded`` (standard operators only).
        top_k: Items given back, at most V.
        opset: Of the default domain.
        precision: Of the decoder's products.
        own: The codes of a quantized model, by layer.
        table: ``fp32``, or a form of :data:`slmc.export.graph.rescore.RESCORED`; a quantized item
        table
            stays as it is stored.
    """
    graph = traced(model, layout, top_k, opset)
    made, choice = _optimized(graph, model, layout, top_k, precision, dict(own or {}), table)
    histories.take(made.graph, model.config.history, model.config.num_items)
    yield _finished(made)
    add_masks(made.graph, choice)
    yield _finished(made)


def _finished(made: Any) -> Any:
    """An ``onnx_ir.Model`` as it is written."""
    import onnx_ir as ir
    from onnx_ir.passes.common import NameFixPass

    if any(node.domain == MICROSOFT for node in made.graph):
        made.graph.opset_imports[MICROSOFT] = 1
    drop_unused(made)
    NameFixPass()(made)  # a pass that finds a value twice gives two nodes one name
    graph = ir.to_proto(made)
    serialize.tidy(graph)
    return graph


def _optimized(
    graph: Any,
    model: Recommender,
    layout: str,
    top_k: int,
    precision: str,
    own: dict[str, Codes],
    table: str,
) -> tuple[Any, Choice]:
    """The same graph, faster, its products in ``precision``, and where it chooses the best."""
    import onnx_ir as ir

    made = ir.from_proto(graph)
    layers = linear_layers(model)
    weights = {name: layer.weight.detach().numpy() for name, layer in layers.items()}
    fusion.name_products(made.graph, weights)

    def form(names: tuple[str, ...]) -> tuple[object, ...]:
        codes = own.get(names[0]) if names else None
        if codes is None or precision == "fp32":
            return (bool(names),)
        return (codes.bits, codes.group_size, codes.zero_point is None)

    if layout == "packed":
        _pack(made, form, own)
    else:
        fusion.merge_products(made.graph, form, fewest=fusion.WORTH_MERGING)
    if precision != "fp32":
        lowering.lower(made.graph, precision, own, layout)
    if precision == "int8" or (layout == "packed" and precision not in HALVES):
        lowering.steady_softmax(made.graph)
    stored_table = model.item_embeddings
    if isinstance(stored_table, QuantizedTable):
        item_table.place_codes(made.graph, stored_rows(stored_table), layout)
    else:
        drop_unused(made)  # what is small is told by the weights that are left
        item_table.fold_inputs(made.graph)
    if table in RESCORED:
        vectors = model.item_vectors().detach().numpy()
        return made, rescore(made.graph, vectors, table, top_k)
    return made, choice_of(made.graph)


def _pack(
    made: Any,
    form: Callable[[tuple[str, ...]], Hashable],
    own: dict[str, Codes],
) -> None:
    """The passes that only the packed form goes through, and merge its products by ``form``.

    Args:
        made: Changed in place.
        form: As :func:`slmc.export.graph.fusion.merge_products` takes it.
        own: Codes by layer; those of a layer that is cut in two are added.
    """
    graph = made.graph
    norms.divide(made)
    tokens = last_layer.select_rows(graph)
    turn(graph)
    drop_unused(made)  # how queries and keys were turned before
    fusion.split_slices(graph)
    alone = last_layer.select_queries(graph, tokens, own)
    drop_unused(made)
    fusion.merge_products(graph, form, fewest=fusion.WORTH_MERGING, whole=alone)
    heads.look_up_in_one(graph)
    norms.add(graph)


def stored_rows(table: QuantizedTable) -> Codes:
    """The codes of a quantized item table, in blocks of a row."""
    codes = table.signed_codes().numpy()
    return item_table.row_codes(codes, table.scale.numpy(), table.bits)
