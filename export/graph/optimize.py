"""The graph of a model: traced by torch, made faster by passes, its matmuls in a precision."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import TYPE_CHECKING

from slmc.export.config import HALVES
from slmc.export.graph import (
    fusion,
    heads,
    histories,
    item_table,
    last_layer,
    lowering,
    norms,
    rotary,
    serialize,
)
from slmc.export.graph.ir import drop_unused
from slmc.export.graph.masks import Choice, add_masks, topk_choice
from slmc.export.graph.rescore import RESCORED, rescore
from slmc.export.graph.softmax import batch_invariant_softmax
from slmc.export.graph.trace import traced
from slmc.export.reference.precision import linear_layers
from slmc.model.codes import Codes
from slmc.model.loading import Recommender
from slmc.model.quantized_table import QuantizedTable

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir


def to_onnx(
    model: Recommender,
    layout: str,
    top_k: int,
    opset: int,
    precision: str = "fp32",
    layer_codes: Mapping[str, Codes] | None = None,
    table: str = "fp32",
) -> onnx.ModelProto:
    """Return the graph of a model with the top-k inside; arguments as :func:`both_graphs`."""
    return next(both_graphs(model, layout, top_k, opset, precision, layer_codes, table))


def both_graphs(
    model: Recommender,
    layout: str,
    top_k: int,
    opset: int,
    precision: str = "fp32",
    layer_codes: Mapping[str, Codes] | None = None,
    table: str = "fp32",
) -> Iterator[onnx.ModelProto]:
    """Yield the graph of histories alone, then the one with :mod:`slmc.export.graph.masks`.

    Both have the top-k inside. The same model gives the same bytes, and nothing in them depends on
    the machine.

    Args:
        model: In evaluation mode, float32, on the CPU.
        layout: ``packed`` (ONNX Runtime) or ``padded`` (standard operators only).
        top_k: Number of items returned, at most V.
        opset: Of the default domain.
        precision: Of the decoder's matmuls.
        layer_codes: The codes of a quantized model, by layer.
        table: ``fp32``, or a form of :data:`slmc.export.graph.rescore.RESCORED`; a quantized item
            table stays as it is stored.
    """
    graph = traced(model, layout, top_k, opset)
    codes = dict(layer_codes or {})
    optimized, choice = _optimized(graph, model, layout, top_k, precision, codes, table)
    histories.accept_all_lengths(optimized.graph, model.config.history, model.config.num_items)
    yield serialize.to_proto(optimized)
    add_masks(optimized.graph, choice)
    yield serialize.to_proto(optimized)


def _optimized(
    graph: onnx.ModelProto,
    model: Recommender,
    layout: str,
    top_k: int,
    precision: str,
    layer_codes: dict[str, Codes],
    table: str,
) -> tuple[ir.Model, Choice]:
    """The same graph, faster, its matmuls in ``precision``, and where it chooses the best."""
    import onnx_ir as ir

    optimized = ir.from_proto(graph)
    layers = linear_layers(model)
    weights = {name: layer.weight.detach().numpy() for name, layer in layers.items()}
    fusion.mark_layers(optimized.graph, weights)

    def form_of(names: tuple[str, ...]) -> tuple[object, ...]:
        codes = layer_codes.get(names[0]) if names else None
        if codes is None or precision == "fp32":
            return (bool(names),)
        return (codes.bits, codes.group_size, codes.zero_point is None)

    if layout == "packed":
        _optimize_packed(optimized, form_of, layer_codes)
    else:
        fusion.merge_matmuls(optimized.graph, form_of, fewest=fusion.WORTH_MERGING)
    if precision != "fp32":
        lowering.lower_matmuls(optimized.graph, precision, layer_codes, layout)
    if precision == "int8" or (layout == "packed" and precision not in HALVES):
        batch_invariant_softmax(optimized.graph)
    stored_table = model.item_embeddings
    if isinstance(stored_table, QuantizedTable):
        item_table.store_codes(optimized.graph, table_codes(stored_table), layout)
    else:
        drop_unused(optimized)  # the next pass compares with the weights that are left
        item_table.fold_input_projection(optimized.graph)
    if table in RESCORED:
        vectors = model.item_vectors().detach().numpy()
        return optimized, rescore(optimized.graph, vectors, table, top_k)
    return optimized, topk_choice(optimized.graph)


def _optimize_packed(
    model: ir.Model,
    form_of: Callable[[tuple[str, ...]], Hashable],
    layer_codes: dict[str, Codes],
) -> None:
    """Run the passes for the packed layout, and merge its matmuls.

    Args:
        model: Changed in place.
        form_of: As for :func:`slmc.export.graph.fusion.merge_matmuls`.
        layer_codes: Codes by layer; those of a layer that is cut in two are added.
    """
    graph = model.graph
    norms.use_division(model)
    tokens = last_layer.select_last_tokens(graph)
    rotary.fuse_rotary(graph)
    drop_unused(model)  # the nodes that rotated queries and keys before
    fusion.split_slices(graph)
    unsplit = last_layer.select_last_queries(graph, tokens, layer_codes)
    drop_unused(model)
    fusion.merge_matmuls(graph, form_of, fewest=fusion.WORTH_MERGING, unsplit=unsplit)
    heads.merge_qkv_lookups(graph)
    norms.fuse_residual_add(graph)


def table_codes(table: QuantizedTable) -> Codes:
    """Return the codes of a quantized item table, in blocks of a row."""
    codes = table.signed_codes().numpy()
    return item_table.row_codes(codes, table.scale.numpy(), table.bits)
