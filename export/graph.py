"""The graph of a model: traced by torch, made faster by passes, its products in a precision."""

import logging
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from slmc.export import fusion, heads, histories, last_layer, lowering, norms, passes
from slmc.export import table as item_table
from slmc.export.config import HALVES
from slmc.export.masks import Choice, add_masks, choice_of
from slmc.export.reference import known_prefix, linear_layers
from slmc.export.rescore import RESCORED, rescore
from slmc.export.rotary import known_positions, turn
from slmc.model.codes import Codes
from slmc.model.loading import Recommender, quiet
from slmc.model.table import QuantizedTable


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
    """The graph of histories alone, then the same with the masks of :mod:`slmc.export.masks`.

    Each is an ``onnx.ModelProto`` with the top-k inside. The same model gives the same bytes, and
    nothing in them tells of the machine.

    Args:
        model: In evaluation mode, float32, on the CPU.
        layout: ``packed`` (ONNX Runtime) or ``padded`` (standard operators only).
        top_k: Items given back, at most V.
        opset: Of the default domain.
        precision: Of the decoder's products.
        own: The codes of a quantized model, by layer.
        table: ``fp32``, or a form of :data:`slmc.export.rescore.RESCORED`; a quantized item table
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

    if any(node.domain == fusion.MICROSOFT for node in made.graph):
        made.graph.opset_imports[fusion.MICROSOFT] = 1
    fusion.drop_unused(made)
    NameFixPass()(made)  # a pass that finds a value twice gives two nodes one name
    graph = ir.to_proto(made)
    passes.tidy(graph)
    return graph


def traced(model: Recommender, layout: str, top_k: int, opset: int) -> Any:
    """The graph as torch gives it, its item table held once; arguments as :func:`to_onnx`."""
    item_ids = torch.tensor([[0, 1, 1], [1, 1, 1]])
    dims = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=2)}
    with (
        _silence(),
        quiet(),
        _float_table(model),
        known_prefix(model),
        known_positions(model),
        _serving(model),
    ):
        program: Any = torch.onnx.export(
            _Ranker(model, layout, top_k),
            (item_ids,),
            dynamo=True,
            opset_version=opset,
            input_names=[passes.INPUT],
            output_names=[passes.TOP_ITEMS, passes.TOP_SCORES],
            dynamic_shapes={"item_ids": dims},
            verbose=False,
        )
    graph = program.model_proto
    passes.share_table(graph)
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
        fusion.drop_unused(made)  # what is small is told by the weights that are left
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
        form: As :func:`slmc.export.fusion.merge_products` takes it.
        own: Codes by layer; those of a layer that is cut in two are added.
    """
    graph = made.graph
    norms.divide(made)
    tokens = last_layer.select_rows(graph)
    turn(graph)
    fusion.drop_unused(made)  # how queries and keys were turned before
    fusion.split_slices(graph)
    alone = last_layer.select_queries(graph, tokens, own)
    fusion.drop_unused(made)
    fusion.merge_products(graph, form, fewest=fusion.WORTH_MERGING, whole=alone)
    heads.look_up_in_one(graph)
    norms.add(graph)


class _Ranker(nn.Module):
    """The best items of a history: what the graph computes."""

    def __init__(self, model: Recommender, layout: str, top_k: int) -> None:
        super().__init__()
        self.model, self.top_k = model, top_k
        self.user_vectors = model.user_vectors
        if layout == "padded":
            self.user_vectors = model.padded_user_vectors
        # Row 0 takes part in the product, so that the table is used whole, and never wins.
        bias = torch.zeros(model.config.num_items + 1)
        bias[0] = -torch.inf
        self.register_buffer("padding", bias)
        self.eval()

    def forward(self, item_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Rows ``[B, L]`` to the best rows ``[B, k]`` and their scores."""
        users = self.user_vectors(item_ids)
        scores = torch.addmm(self.get_buffer("padding"), users, self.model.item_vectors().T)
        values, rows = torch.topk(scores, self.top_k)
        return rows, values


@contextmanager
def _float_table(model: Recommender) -> Iterator[None]:
    """Trace a quantized item table as one of floats; a pass puts the codes in their place."""
    stored_table = model.item_embeddings
    if not isinstance(stored_table, QuantizedTable):
        yield
        return
    model.item_embeddings = nn.Embedding.from_pretrained(stored_table.weight)
    try:
        yield
    finally:
        model.item_embeddings = stored_table


def stored_rows(table: QuantizedTable) -> Codes:
    """The codes of a quantized item table, in blocks of a row."""
    codes = table.signed_codes().numpy()
    return item_table.row_codes(codes, table.scale.numpy(), table.bits)


@contextmanager
def _serving(model: Recommender) -> Iterator[None]:
    """Compute user vectors and nothing besides."""
    model.serving = True
    try:
        yield
    finally:
        model.serving = False


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter's advice to its developers from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it misses torchvision, which nothing here needs
    try:
        with warnings.catch_warnings():
            # Raised inside torch.export by torch's own use of pytree.
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"copyreg|torch\.")
            warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.|onnx")
            yield
    finally:
        logger.setLevel(level)
