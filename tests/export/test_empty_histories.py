"""Users without a history: the engine computes what the model does for one padding item.

Unknown ids are skipped, so a history of unknown ids only is an empty one.
"""

import copy
import functools
from collections.abc import Callable
from typing import Any

import answers
import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from slmc.artefact import Artefact
from slmc.data.dataset import Dataset
from slmc.errors import VerdictError
from slmc.export import parity
from slmc.export.config import ExportConfig
from slmc.export.graph.optimize import both_graphs
from slmc.export.reference import cpu_emulation
from slmc.export.reference.precision import in_precision, linear_layers
from slmc.export.runtime.engine import Engine
from slmc.export.tensorrt.graph import tensorrt_graph
from slmc.model import random_models
from slmc.model.codes import Codes, rounded
from slmc.model.loading import Recommender, load_model
from slmc.model.sasrec import Sasrec, SasrecModelConfig

ITEMS, HISTORY, TOP_K = 30, 12, 10
"""Items and history as conftest.py makes them."""
EXACT = 1e-5
"""Float32 through two layers, relative to the spread of the scores."""
FLIPPED = 0.05
"""A difference in the last bit moves one 8-bit code of an activation to its neighbour."""

slow = pytest.mark.slow


FULL = answers.histories(6, HISTORY, ITEMS)
EVEN, FIRST, LAST = (np.arange(6) % 2 == 0, np.arange(6) == 0, np.arange(6) == 5)
BATCHES = {
    "one": np.zeros((1, 1), np.int64),
    "longer than the model's history": np.zeros((1, HISTORY + 3), np.int64),
    "all": np.zeros((5, 7), np.int64),
    **{
        name: np.where(empty[:, None], 0, FULL)
        for name, empty in (("every second", EVEN), ("the first", FIRST), ("the last", LAST))
    },
}
"""What is without items, and the rows ``[B, L]``."""


@functools.cache
def model_of(kind: str) -> Recommender:
    """A model with random weights: llama, llama with a prompt, or SASRec."""
    made: Recommender
    if kind == "sasrec":
        made = Sasrec(SasrecModelConfig(num_items=ITEMS, item_dim=16, history=HISTORY))
    else:
        prompt = {"prefix_length": 2, "suffix_length": 1} if kind == "prompted" else {}
        shape = {"num_items": ITEMS, "item_dim": 16, "history": HISTORY}
        made = random_models.recommender(
            decoder={"max_position_embeddings": 256}, **shape, **prompt
        )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in (*made.parameters(), *made.buffers()):
            if tensor.is_floating_point() and tensor.ndim > 1:
                tensor.normal_(std=0.3, generator=generator)
    return made.eval()


def same(items: NDArray[Any], scores: NDArray[Any], expected: NDArray[Any], within: float) -> bool:
    """Whether the best items have the scores of the model, and no other item is better."""
    best = -np.sort(-expected, axis=1)[:, :TOP_K]
    of_items = np.take_along_axis(expected, items - 1, axis=1)
    error = max(np.abs(scores - best).max(), np.abs(scores - of_items).max())
    return error < within and all(len(set(row)) == TOP_K for row in items.tolist())


def opened(graph: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # as in the card of int8
    return onnxruntime.InferenceSession(graph, options)


def quantized(source: Recommender) -> tuple[Recommender, dict[str, Codes]]:
    """The model with the values of 4-bit codes, and the codes."""
    rounded_model, codes = copy.deepcopy(source), {}
    for name, layer in linear_layers(rounded_model).items():
        codes[name] = rounded(layer.weight.detach().numpy(), bits=4, group_size=32)
        layer.weight.data = torch.from_numpy(codes[name].weight)
    return rounded_model, codes


CASES = [
    ("llama", "fp32", "fp32", EXACT),
    ("llama", "int8", "fp32", FLIPPED),
    ("llama", "fp32", "int8+rescore", EXACT),
]
SLOW_CASES = [
    ("llama", "int4", "fp32", EXACT),
    ("llama", "int8-accurate", "fp32", FLIPPED),
    ("llama", "fp16", "fp32", FLIPPED),
    ("llama", "fp32", "int4+rescore", EXACT),
    ("prompted", "fp32", "fp32", EXACT),
    ("prompted", "int8", "fp32", FLIPPED),
    ("sasrec", "fp32", "fp32", EXACT),
    ("sasrec", "int8", "fp32", FLIPPED),
]
"""Model, precision, form of the item table, largest error."""


@pytest.mark.parametrize(
    ("layout", "kind", "precision", "table", "within"),
    [
        *(("packed", *case) for case in CASES),
        *(pytest.param("packed", *case, marks=slow) for case in SLOW_CASES),
        *(
            pytest.param("padded", *case, marks=slow)
            for case in (*CASES, *SLOW_CASES)
            if case[2] == "fp32"
        ),
    ],
)
def test_both_graphs_score_a_history_without_items_as_one_padding_item(
    layout: str, kind: str, precision: str, table: str, within: float
) -> None:
    source = model_of(kind)
    codes: dict[str, Codes] = {}
    if precision == "int4":
        source, codes = quantized(source)
    reference = in_precision(source, precision, codes, layout)
    masks = {"exclude_seen": np.array([True]), "allowed": np.array([[True]])}
    for graph, more in zip(
        both_graphs(source, layout, TOP_K, 21, precision, codes, table), ({}, masks), strict=True
    ):
        session = opened(graph.SerializeToString())
        for name, rows in BATCHES.items():
            with torch.inference_mode():
                expected = reference(torch.from_numpy(rows[:, -HISTORY:]))[:, 1:].numpy()
            spread = float(expected.std())
            if more:
                seen = np.zeros((len(rows), ITEMS + 1), dtype=bool)
                np.put_along_axis(seen, rows[:, -HISTORY:], True, axis=1)
                expected = np.where(seen[:, 1:], -np.inf, expected)
            items, scores = session.run(["top_items", "top_scores"], {"item_ids": rows} | more)
            assert same(items, scores, expected, within * spread), name
        without, padding = (
            session.run(["top_items", "top_scores"], {"item_ids": rows} | more)
            for rows in (np.zeros((2, 0), np.int64), np.zeros((2, 1), np.int64))
        )
        assert all(map(np.array_equal, without, padding))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        ("llama", "fp32"),
        ("llama", "int8"),
        *(pytest.param("llama", p, marks=slow) for p in ("bf16", "fp16", "fp8")),
        *(pytest.param("sasrec", p, marks=slow) for p in ("fp32", "int8", "bf16")),
    ],
)
def test_so_does_the_graph_for_tensorrt(kind: str, precision: str, packed: Artefact) -> None:
    """It takes at least one history of one item, so an empty history comes as padding."""
    source = model_of(kind)
    scales = dict.fromkeys(linear_layers(source), 0.05) if precision == "int8" else {}
    graph = tensorrt_graph(source, TOP_K, precision, {}, scales)
    engine = cpu_emulation.engine(graph, packed.path)
    reference = cpu_emulation.emulated(source, precision, {}, scales)
    for name, rows in BATCHES.items():
        newest = rows[:, -HISTORY:]
        with torch.inference_mode():
            expected = reference(torch.from_numpy(newest))[:, 1:].numpy()
        within = (EXACT if precision == "fp32" else FLIPPED) * expected.std()
        assert same(*engine.answer(newest), expected, within), name


def changed_for_padding(engine: Engine, change: Callable[[NDArray[np.int64]], Any]) -> Engine:
    """The engine, but the scores of some histories are shifted."""
    answer = engine.answer

    def shifted(rows: NDArray[np.int64], **masks: Any) -> Any:
        items, scores = answer(rows, **masks)
        return items, scores + change(rows).astype(np.float32)[:, None]

    engine.answer = shifted  # type: ignore[method-assign]
    return engine


@pytest.mark.parametrize(
    ("change", "at"),
    [
        (lambda rows: (rows == 0).all(axis=1), "batch 1, empty histories (1)"),
        (
            lambda rows: (rows == 0).all(axis=1) & (len(rows) > 1) & (rows != 0).any(),
            "batch 41, half empty histories (1)",
        ),
        (
            lambda rows: (rows != 0).any(axis=1) & (rows == 0).all(axis=1).any() * (len(rows) > 1),
            "batch 41, half empty histories (1)",
        ),
    ],
)
def test_an_engine_that_differs_on_empty_histories_is_withheld(
    change: Callable[[NDArray[np.int64]], Any],
    at: str,
    packed: Artefact,
    model: Artefact,
    dataset: Artefact,
) -> None:
    histories = parity.real_histories(Dataset.open(dataset))
    engine = changed_for_padding(Engine.open(packed), change)
    with pytest.raises(VerdictError) as caught:
        parity.check_answers(engine, load_model(model), histories, ExportConfig(top_k=10))
    assert str(caught.value).startswith(f"parity: the engine was withheld: at {at} a score differs")
