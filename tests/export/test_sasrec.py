"""A SASRec is exported like any recommender: both layouts, every precision, every format."""

import functools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import answers
import numpy as np
import onnx
import onnxruntime
import polars as pl
import pytest
import torch
from numpy.typing import NDArray
from sealing import seal_model
from transformers import AutoConfig

from slmc.artefact import Artefact
from slmc.data.batches import pad_left
from slmc.errors import UsageError
from slmc.evaluation.config import EvaluateConfig
from slmc.evaluation.evaluate import evaluate
from slmc.export.config import BenchConfig, ExportConfig
from slmc.export.evaluation import evaluate_engine
from slmc.export.export import export
from slmc.export.graph.ir import MICROSOFT
from slmc.export.graph.optimize import to_onnx
from slmc.export.reference import cpu_emulation
from slmc.export.reference.precision import in_precision
from slmc.export.runtime.engine import GRAPH
from slmc.export.tensorrt.graph import check_operators, tensorrt_graph
from slmc.model.loading import Recommender
from slmc.model.sasrec import Sasrec, SasrecModelConfig
from slmc.recommend import recommend

ITEMS, HISTORY, TOP_K = 30, 12, 5
"""Items and history as conftest.py makes them."""
EXACT = 1e-5
"""Float32 through two layers, relative to the spread of the scores."""
FLIPPED = 0.05
"""A difference in the last bit moves one 8-bit code of an activation to its neighbour."""
ALLOWED = {"fp32": EXACT, "int8": FLIPPED, "int8-accurate": FLIPPED, "fp16": FLIPPED}
SHAPES = [(1, 1), (1, 2), (3, 7), (40, HISTORY)]
Place = Callable[[str], Path]


@functools.cache
def model() -> Sasrec:
    """Random weights and biases, so that users, positions and heads give different scores."""
    sasrec = Sasrec(SasrecModelConfig(num_items=ITEMS, item_dim=16, history=HISTORY, num_heads=4))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sasrec.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
        sasrec.item_embeddings.weight[0] = 0
    return sasrec.eval()


@functools.cache
def engine(layout: str, precision: str = "fp32", table: str = "fp32") -> Any:
    graph = to_onnx(model(), layout, TOP_K, 21, precision, table=table)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", "1")  # as in the card of int8
    return onnxruntime.InferenceSession(graph.SerializeToString(), options)


def run(session: Any, rows: NDArray[np.int64]) -> list[NDArray[Any]]:
    outputs: list[NDArray[Any]] = session.run(["top_items", "top_scores"], {"item_ids": rows})
    return outputs


def error(session: Any, expected: Recommender) -> float:
    return answers.error(lambda rows: run(session, rows)[1], expected, SHAPES, ITEMS)


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize(
    "precision",
    ["fp32", "int8", *(pytest.param(p, marks=pytest.mark.slow) for p in ("int8-accurate", "fp16"))],
)
def test_an_engine_computes_as_the_model_in_its_precision(precision: str, layout: str) -> None:
    reference = in_precision(model(), precision, {}, layout)
    assert error(engine(layout, precision), reference) < ALLOWED[precision]


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_unknown_empty_and_short_histories(layout: str) -> None:
    """0 stands for an unknown item; an empty history gets the answer of one padding item."""
    session, long = engine(layout), [3, 1, 4, 1, 5]
    rows = pad_left([np.array(one) for one in ([7], long, list(range(1, HISTORY + 1)))])
    rows = np.concatenate([rows, np.zeros_like(rows[:1])])
    items, scores = run(session, rows)
    with torch.inference_mode():
        expected = model()(torch.from_numpy(rows))[:, 1:]
        none = model()(torch.zeros(1, 1, dtype=torch.long))[0, 1:]
    assert (items == expected.topk(TOP_K).indices.numpy() + 1).all()
    assert np.abs(scores - expected.topk(TOP_K).values.numpy()).max() < EXACT * expected.std()
    assert (items[3] == none.topk(TOP_K).indices.numpy() + 1).all()
    skipped = rows[1].copy()
    skipped[-len(long) - 1 : -1], skipped[-2] = long, 0
    skipped[-1] = 9
    packed_items, _ = run(session, skipped[None])
    kept = np.array([[*long[:-1], 9]])
    assert (packed_items == run(session, kept)[0]).all()


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_rows_outside_the_catalogue_are_refused(layout: str) -> None:
    for wrong in (ITEMS + 1, -1, -ITEMS):
        with pytest.raises(Exception, match=r"INVALID_ARGUMENT.* out of data bounds"):
            run(engine(layout), np.array([[3, wrong]]))
    for shape in ((0, 2), (1, 0)):
        items, _ = run(engine(layout), np.zeros(shape, dtype=np.int64))
        assert items.shape == (shape[0], TOP_K)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_user_has_the_same_bits_alone_and_in_any_batch(precision: str) -> None:
    session, rows = engine("packed", precision), answers.histories(48, HISTORY, ITEMS)
    items, scores = run(session, rows)
    for size in (1, 2, 7):
        for start in range(0, 48, size):
            part = run(session, rows[start : start + size])
            assert (part[0] == items[start : start + size]).all()
            assert (part[1] == scores[start : start + size]).all()


def test_the_best_items_are_rescored_with_the_float_table() -> None:
    assert error(engine("packed", table="int8+rescore"), model()) < EXACT


def test_the_last_layer_computes_only_last_tokens() -> None:
    """Except q, k and v, which its attention needs for every token."""
    model_proto = to_onnx(model(), "packed", TOP_K, 21)
    graph = model_proto.graph
    weights = {tensor.name for tensor in graph.initializer}
    matmuls = [n for n in graph.node if n.op_type == "MatMul" and n.input[1] in weights]
    names = [node.output[0] for node in matmuls]
    kind = onnx.TensorProto.FLOAT
    graph.output.extend(onnx.helper.make_tensor_value_info(name, kind, None) for name in names)
    session = onnxruntime.InferenceSession(model_proto.SerializeToString())
    rows = pad_left([np.arange(1, 8), np.array([3]), np.arange(4, 9)])
    tokens, batch = np.count_nonzero(rows), len(rows)
    counts = [value.shape[1] for value in session.run(names, {"item_ids": rows})]
    assert counts == [tokens] * 5 + [batch] * 3
    assert "Split" not in {node.op_type for node in graph.node}


def test_the_padded_graph_has_standard_operators_only() -> None:
    graph = to_onnx(model(), "padded", TOP_K, 21)
    assert {node.domain for node in graph.graph.node} == {""}
    assert not {"NonZero", "GatherND"} & {node.op_type for node in graph.graph.node}
    onnx.checker.check_model(graph, full_check=True)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_graph_for_tensorrt(precision: str, exported: Artefact) -> None:
    loaded = model()
    graph = tensorrt_graph(loaded, TOP_K, precision, {}, {})
    check_operators(graph)
    types = Counter(t.data_type for t in graph.graph.initializer if len(t.dims) == 2)
    halves = types[onnx.TensorProto.BFLOAT16]
    assert halves == (8 if precision == "bf16" else 0)
    answer = cpu_emulation.engine(graph, exported.path).answer
    same = cpu_emulation.emulated(loaded, precision, {}, {})
    allowed = EXACT if precision == "fp32" else FLIPPED
    assert answers.error(lambda rows: answer(rows)[1], same, SHAPES, ITEMS) < allowed


@pytest.fixture(scope="module")
def sasrec(dataset: Artefact, place: Place) -> Artefact:
    return seal_model(model(), dataset, place("sasrec"))


@pytest.fixture(scope="module")
def exported(dataset: Artefact, sasrec: Artefact, place: Place) -> Artefact:
    settings: dict[str, Any] = {"top_k": TOP_K, "formats": ["triton"]}
    settings |= {"outputs": ["topk", "scores", "user_vectors"]}
    inputs = {"data": dataset, "model": sasrec}
    return export(ExportConfig.model_validate(settings), inputs, place("sasrec-engine"))


def test_the_folder_is_that_of_any_engine(exported: Artefact, sasrec: Artefact) -> None:
    assert {name for name in exported.manifest.files if not name.startswith("triton/")} == {
        "README.md", "engine.json", "item_vectors.safetensors", "items.jsonl", "items.parquet",
        "onnx/config.json", "onnx/masked.onnx", "onnx/model.onnx", "parity.json",
        "preprocessor.json",
    }  # fmt: skip
    known = AutoConfig.from_pretrained(exported.path / "onnx")
    assert (known.hidden_size, known.num_hidden_layers, known.num_attention_heads) == (16, 2, 4)
    description = json.loads((exported.path / "engine.json").read_text())
    assert description["source"] == sasrec.digest and description["layout"] == "packed"
    assert exported.manifest.metrics["parity"]["max_error"] < 1e-4
    domains = {node.domain for node in onnx.load(exported.path / GRAPH).graph.node}
    assert domains == {""}, f"a float SASRec needs no operators of {MICROSOFT}"


def test_triton_gets_its_variants(exported: Artefact) -> None:
    text = (exported.path / "triton/recommender_onnx/config.pbtxt").read_text()
    assert 'backend: "onnxruntime"' in text
    assert f"to the rows of the {TOP_K} best items" in text
    assert "triton/recommender/1/model.py" in exported.manifest.files


def test_it_ranks_as_the_model(
    exported: Artefact, sasrec: Artefact, dataset: Artefact, place: Place
) -> None:
    config = EvaluateConfig(batch=7)
    ours = evaluate_engine(config, {"data": dataset, "engine": exported}, place("ours"))
    theirs = evaluate(config, {"data": dataset, "model": sasrec}, place("theirs"))
    tables = [pl.read_parquet(one.file("per_user.parquet")) for one in (ours, theirs)]
    for column in ("user", "target", "rank", "rank_unseen"):
        assert tables[0][column].equals(tables[1][column]), column


def test_it_recommends_and_skips_unknown_items(exported: Artefact) -> None:
    best = recommend(exported, ["film-3", "film-99", "film-1"], k=3, exclude_seen=True)
    assert best == recommend(exported, ["film-3", "film-1"], k=3, exclude_seen=True)
    assert not {"film-1", "film-3"} & {one.item for one in best}
    with pytest.raises(UsageError):
        recommend(exported, ["film-99"])


@pytest.mark.slow
def test_it_is_timed_with_the_model_as_the_baseline(
    exported: Artefact, sasrec: Artefact, dataset: Artefact, place: Place
) -> None:
    from slmc.export.runtime.bench import bench

    config = BenchConfig(batch=(1, 4), rounds=3, threads=1)
    report = bench(
        config, {"data": dataset, "engine": exported, "baseline": sasrec}, place("bench")
    )
    assert report.manifest.metrics["batches"]["4"]["speedup"] > 0


@pytest.mark.slow
@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("precision", ["bf16", "int8", "fp8"])
def test_a_plan_is_built(precision: str, sasrec: Artefact, dataset: Artefact, place: Place) -> None:
    settings = {"formats": ["tensorrt"], "top_k": TOP_K}
    settings |= {"tensorrt": {"flavour": "tensorrt-rtx", "precision": precision}}
    inputs = {"data": dataset, "model": sasrec}
    built = export(ExportConfig.model_validate(settings), inputs, place(f"plan-{precision}"))
    assert "tensorrt/model.plan" in built.manifest.files
    assert built.manifest.metrics["tensorrt"]["precision"] == precision
