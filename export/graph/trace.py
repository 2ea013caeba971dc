"""The graph of a model as torch traces it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from slmc.export.graph import interface
from slmc.export.graph.item_table import share_table
from slmc.export.graph.rotary import rotary_tables
from slmc.export.reference.precision import known_prefix
from slmc.model.loading import Recommender
from slmc.model.quantized_table import QuantizedTable
from slmc.model.silence import silence_transformers

if TYPE_CHECKING:
    import onnx


def traced(model: Recommender, layout: str, top_k: int, opset: int) -> onnx.ModelProto:
    """Return the graph as torch exports it, with one copy of the item table.

    Arguments as :func:`slmc.export.graph.optimize.both_graphs`.
    """
    item_ids = torch.tensor([[0, 1, 1], [1, 1, 1]])
    dims = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=2)}
    with (
        _silence(),
        silence_transformers(),
        _float_table(model),
        known_prefix(model),
        rotary_tables(model),
        _serving(model),
    ):
        program: Any = torch.onnx.export(
            _Ranker(model, layout, top_k),
            (item_ids,),
            dynamo=True,
            opset_version=opset,
            input_names=[interface.INPUT],
            output_names=[interface.TOP_ITEMS, interface.TOP_SCORES],
            dynamic_shapes={"item_ids": dims},
            verbose=False,
        )
    graph = program.model_proto
    share_table(graph)
    return graph


class _Ranker(nn.Module):
    """The module that is traced: histories to their best items."""

    def __init__(self, model: Recommender, layout: str, top_k: int) -> None:
        super().__init__()
        self.model, self.top_k = model, top_k
        self.user_vectors = model.user_vectors
        if layout == "padded":
            self.user_vectors = model.padded_user_vectors
        # The matmul includes row 0, so that it uses the whole table; its bias of -inf never wins.
        bias = torch.zeros(model.config.num_items + 1)
        bias[0] = -torch.inf
        self.register_buffer("padding", bias)
        self.eval()

    def forward(self, item_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the best rows ``[B, k]`` and their scores for histories ``[B, L]``."""
        users = self.user_vectors(item_ids)
        scores = torch.addmm(self.get_buffer("padding"), users, self.model.item_vectors().T)
        values, rows = torch.topk(scores, self.top_k)
        return rows, values


@contextmanager
def _float_table(model: Recommender) -> Iterator[None]:
    """Trace a quantized item table as one of floats, which a later pass replaces by the codes."""
    stored_table = model.item_embeddings
    if not isinstance(stored_table, QuantizedTable):
        yield
        return
    model.item_embeddings = nn.Embedding.from_pretrained(stored_table.weight)
    try:
        yield
    finally:
        model.item_embeddings = stored_table


@contextmanager
def _serving(model: Recommender) -> Iterator[None]:
    """Compute user vectors and nothing else."""
    model.serving = True
    try:
        yield
    finally:
        model.serving = False


@contextmanager
def _silence() -> Iterator[None]:
    """Hide the exporter's advice to its developers from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns that torchvision is missing, which nothing here needs
    try:
        with warnings.catch_warnings():
            # Raised inside torch.export, where torch uses pytree.
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"copyreg|torch\.")
            warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.|onnx")
            yield
    finally:
        logger.setLevel(level)
