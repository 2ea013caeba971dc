"""Each precision computes what its emulation in PyTorch does, whatever the batch."""

import functools
from pathlib import Path
from typing import Any

import answers
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from answers import histories
from numpy.typing import NDArray
from safetensors.numpy import load_file

from slmc.artefact import Artefact
from slmc.compress.config import QuantizeConfig
from slmc.compress.quantize.item_table import quantize_table
from slmc.compress.quantize.quantize import quantize
from slmc.errors import MissingError, UsageError
from slmc.export.config import ExportConfig, ParityConfig
from slmc.export.constraints import STEADY_TOKENS, Source, no_gain
from slmc.export.export import export
from slmc.export.graph.optimize import both_graphs, to_onnx
from slmc.export.reference.cpu_emulation import cpu_graph
from slmc.export.reference.precision import in_precision, linear_layers
from slmc.export.runtime.engine import GRAPH, Engine
from slmc.model import random_models
from slmc.model.codes import load_codes, rounded
from slmc.model.loading import load_model
from slmc.model.recommender import SequentialRecommender

ITEMS, HISTORY, TOP_K = 300, 20, 10
EXACT = 1e-5
"""Float32 through two layers, relative to the spread of the scores."""
FLIPPED = 0.05
"""A difference in the last bit changes one 8-bit code of an activation to the next one."""

NEAR = 1e-3
"""The same in 16 bits: the last bit is 2^-11 of a value."""


def recommender(
    heads: int = 3, kv_heads: int = 1, item_dim: int = 64, history: int = HISTORY, prompt: int = 0
) -> SequentialRecommender:
    torch.manual_seed(0)
    decoder = {"hidden": 64 * heads, "heads": heads, "kv_heads": kv_heads, "intermediate": 256}
    shape = {"num_items": ITEMS, "item_dim": item_dim, "history": history, "prefix_length": prompt}
    model = random_models.recommender(decoder=decoder, **shape)
    model.prompt.normal_()
    with torch.no_grad():
        model.get_parameter("item_embeddings.weight")[1:].normal_()
    return model


@functools.cache
def engine_of(precision: str, layout: str) -> Any:
    return session(recommender(), layout, precision=precision)


def session(model: SequentialRecommender, layout: str, **how: Any) -> Any:
    """A session without options, as a user opens it."""
    graph = to_onnx(model, layout, TOP_K, 21, **how)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(
        "session.x64quantprecision", "1"
    )  # as the README of an int8 engine does
    return onnxruntime.InferenceSession(graph.SerializeToString(), options)


def ask(engine: Any, rows: NDArray[np.int64], **masks: object) -> list[NDArray[np.float32]]:
    answer: list[NDArray[np.float32]] = engine.run(None, {"item_ids": rows, **masks})
    return answer


SHAPES = [(1, 1), (1, 2), (3, 7), (40, HISTORY)]


def error(engine: Any, model: SequentialRecommender) -> float:
    return answers.error(lambda rows: ask(engine, rows)[1], model, SHAPES, ITEMS)


@pytest.mark.parametrize("layout", ["packed", pytest.param("padded", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("precision", "tolerance"),
    [
        ("fp32", EXACT),
        ("int8", FLIPPED),
        pytest.param("int8-accurate", FLIPPED, marks=pytest.mark.slow),
        pytest.param("fp16", NEAR, marks=pytest.mark.slow),
    ],
)
def test_an_engine_computes_what_the_model_does_in_its_precision(
    precision: str, tolerance: float, layout: str
) -> None:
    reference = in_precision(recommender(), precision, {}, layout)
    assert error(engine_of(precision, layout), reference) < tolerance


@pytest.mark.slow
def test_a_bf16_graph_computes_what_the_model_does_with_operators_of_a_cpu() -> None:
    graph = cpu_graph(to_onnx(recommender(), "packed", TOP_K, 21, "bf16"))
    engine = onnxruntime.InferenceSession(graph.SerializeToString())
    assert error(engine, in_precision(recommender(), "bf16", {}, "packed")) < 8 * NEAR


def test_bf16_needs_a_gpu(dataset: Artefact, model: Artefact, tmp_path: Path) -> None:
    config, inputs = ExportConfig(precision="bf16"), {"data": dataset, "model": model}
    with pytest.raises(MissingError) as caught:
        export(config, inputs, tmp_path / "engine")
    assert caught.value.exit_code == 4
    assert str(caught.value).startswith(
        "precision bf16: ONNX Runtime supports it only on NVIDIA GPUs"
    )
    assert "onnxruntime-gpu" in caught.value.remedy
    assert not (tmp_path / "engine").exists()


@pytest.mark.slow
def test_an_fp16_engine_is_half_as_large_and_answers(
    dataset: Artefact, model: Artefact, tmp_path: Path
) -> None:
    config = ExportConfig(precision="fp16", formats=("onnx", "triton"), top_k=10)
    engine = export(config, {"data": dataset, "model": model}, tmp_path / "engine")
    graph = onnx.load(engine.path / GRAPH)
    halves = [t for t in graph.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16]
    layers = linear_layers(load_model(model)).values()
    assert sum(len(t.raw_data) for t in halves) == sum(2 * layer.weight.numel() for layer in layers)
    text = (engine.path / "triton/recommender_onnx/config.pbtxt").read_text()
    assert "kind: KIND_GPU" in text
    rows, _ = Engine.open(engine).top([np.array([1, 2], dtype=np.int32)])
    assert rows.shape == (1, 10)


@pytest.mark.parametrize("layout", ["packed", pytest.param("padded", marks=pytest.mark.slow)])
def test_int8_gives_a_user_the_same_bits_alone_and_in_any_batch(layout: str) -> None:
    check_bits(engine_of("int8", layout), histories(48, HISTORY, ITEMS))


@pytest.mark.slow
def test_int8_gives_the_same_bits_for_long_histories_behind_a_prompt() -> None:
    length = STEADY_TOKENS - 60
    model = recommender(history=length, prompt=60)
    check_bits(session(model, "packed", precision="int8"), histories(48, length, ITEMS))


def check_bits(engine: Any, rows: NDArray[np.int64]) -> None:
    items, scores = ask(engine, rows)
    for size in (1, 2, 7):
        for start in range(0, 48, size):
            part = ask(engine, rows[start : start + size])
            assert (part[0] == items[start : start + size]).all()
            assert (part[1] == scores[start : start + size]).all()
    order = np.random.default_rng(0).permutation(48)
    assert (ask(engine, rows[order])[1] == scores[order]).all()


@pytest.mark.parametrize("layout", ["packed", pytest.param("padded", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("form", "width"),
    [
        ("int4", 21),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("int4", 64), ("int8", 64), ("int8", 21))
        ),
    ],
)
def test_a_quantized_item_table_stays_codes(form: str, width: int, layout: str) -> None:
    model = recommender(item_dim=width)
    quantize_table(model, form)
    engine = session(model, layout)
    assert error(engine, in_precision(model, "fp32", {}, layout)) < FLIPPED


@functools.cache
def rescoring(table: str) -> tuple[Any, Any]:
    """Sessions on the graph of histories alone, and on the one with masks."""
    graphs = both_graphs(recommender(), "packed", TOP_K, 21, table=table)
    plain, masked = (onnxruntime.InferenceSession(graph.SerializeToString()) for graph in graphs)
    return plain, masked


@pytest.mark.parametrize(
    "table", ["int8+rescore", pytest.param("int4+rescore", marks=pytest.mark.slow)]
)
def test_rescoring_gives_the_float_tables_best(table: str) -> None:
    assert error(rescoring(table)[0], recommender()) < EXACT


@pytest.mark.parametrize(
    "table", ["fp32", "int8+rescore", pytest.param("int4+rescore", marks=pytest.mark.slow)]
)
def test_items_are_left_out_on_request(table: str) -> None:
    plain_session, masked = rescoring(table)

    def ask(rows: NDArray[np.int64], **masks: NDArray[np.bool_]) -> list[NDArray[Any]]:
        none = {"exclude_seen": np.array([False]), "allowed": np.array([[True]])}
        answer: list[NDArray[Any]] = masked.run(None, {"item_ids": rows, **none, **masks})
        return answer

    rows = histories(5, 9, ITEMS)
    plain = ask(rows)[0]
    assert (plain == plain_session.run(None, {"item_ids": rows})[0]).all()
    unseen = ask(rows, exclude_seen=np.array([True]))[0]
    assert not any(set(best) & set(row) for best, row in zip(unseen, rows, strict=True))
    newest = histories(3, HISTORY, ITEMS)
    best, exclude = ask(newest)[0], {"exclude_seen": np.array([True])}
    longer = np.concatenate([best[:, :4], newest], axis=1)  # its oldest items are cut
    assert (ask(longer, **exclude)[0] == ask(newest, **exclude)[0]).all()
    some = np.zeros((1, ITEMS + 1), dtype=bool)
    some[:, [5, 7, 9]] = True
    best, scores = ask(rows, allowed=some)
    assert all(set(row[:3]) == {5, 7, 9} for row in best)
    assert np.isneginf(scores[:, 3:]).all() and np.isfinite(scores[:, :3]).all()
    each = np.ones((5, ITEMS + 1), dtype=bool)
    each[2, plain[2, 0]] = False
    items = ask(rows, allowed=each)[0]
    assert items[2, 0] == plain[2, 1]
    assert (np.delete(items, 2, axis=0) == np.delete(plain, 2, axis=0)).all()
    one = ask(rows, exclude_seen=np.arange(5) == 2)[0]
    assert (one == np.where((np.arange(5) == 2)[:, None], unseen, plain)).all()


def test_ties_go_to_the_smaller_row() -> None:
    model = recommender()
    with torch.no_grad():
        table = model.get_parameter("item_embeddings.weight")
        table[:] = table[1].clone()
    best = ask(session(model, "packed", table="int8+rescore"), histories(3, 5, ITEMS))[0]
    assert (best == np.arange(1, TOP_K + 1)).all()


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({"bits": 4, "symmetric": False}, marks=pytest.mark.slow),
        pytest.param({"bits": 8}, marks=pytest.mark.slow),
        pytest.param(
            {"bits": 4, "assign": {"*.down_proj": 8, "*.q_proj": "skip"}}, marks=pytest.mark.slow
        ),
        {"bits": 4, "group_size": 8, "item_table": "int4"},
    ],
)
def test_the_codes_of_a_quantized_model_are_carried_over(
    how: dict[str, object], dataset: Artefact, model: Artefact, tmp_path: Path
) -> None:
    settings = {"method": "rtn", "group_size": 16, "calibration": 24} | how
    inputs = {"data": dataset, "model": model}
    small = quantize(QuantizeConfig.model_validate(settings), inputs, tmp_path / "quantized")
    weights = dict(load_model(small).named_parameters())
    for name, codes in load_codes(small).items():
        assert (codes.weight == weights[f"{name}.weight"].detach().numpy()).all()
    config = ExportConfig(
        top_k=10, parity=ParityConfig(histories=40), outputs=("scores", "user_vectors")
    )
    engine = export(config, {"data": dataset, "model": small}, tmp_path / "engine")
    assert engine.manifest.metrics["precision"] == ("int8-accurate" if how["bits"] == 8 else "int4")
    exact = how["bits"] == 4 and "assign" not in how
    assert engine.manifest.metrics["parity"]["max_error"] < (1e-4 if exact else 0.1)
    session = Engine.open(engine).session
    top, best, scores, users = session.run(None, {"item_ids": np.array([[1, 2, 3]])})
    assert (np.take_along_axis(scores, top, axis=1) == best).all()
    vectors = load_file(engine.file("item_vectors.safetensors"))["item_vectors"]
    near = (users @ vectors.T)[:, 1:]
    assert np.abs(near - scores[:, 1:]).max() < FLIPPED * near.std()


@pytest.mark.parametrize(
    ("precision", "bits", "opset"),
    [("int4", 4, 21), pytest.param("int8-accurate", 8, 18, marks=pytest.mark.slow)],
)
def test_padded_codes_have_the_same_values_in_every_session(
    precision: str, bits: int, opset: int
) -> None:
    """ONNX Runtime would fuse DequantizeLinear into a matmul that rounds activations to int8."""
    model, layer_codes = recommender(), {}
    for name, layer in linear_layers(model).items():
        # 64 inputs, which MatMulNBits supports, or a short last block.
        size = 24 if "down_proj" in name else 64
        layer_codes[name] = rounded(layer.weight.detach().numpy(), bits=bits, group_size=size)
        layer.weight.data = torch.from_numpy(layer_codes[name].weight)
    graph = to_onnx(model, "padded", TOP_K, opset, precision, layer_codes)
    assert {node.domain for node in graph.graph.node} == {""}
    largest = max(len(tensor.raw_data) for tensor in graph.graph.initializer)
    assert largest == 4 * model.item_vectors().numel()  # no weight is stored as floats
    engine = onnxruntime.InferenceSession(graph.SerializeToString())
    assert error(engine, model) < EXACT


def test_a_precision_without_gain_is_reported() -> None:
    four = Source(bits=frozenset([4]))
    assert "not faster on batches" in str(no_gain("int4", four))
    assert "as large and as slow" in str(no_gain("fp32", four))
    assert "for GPUs" in str(no_gain("fp16", Source()))
    assert no_gain("fp32", Source()) is None and no_gain("int8", Source(history=50)) is None
    assert "the rest of the batch" in str(no_gain("int8", Source(history=200, prompt=42)))


def test_8_bit_rounding_by_hand() -> None:
    codes = rounded(np.array([[127.5, -127.5, 0.0, 1.0, 2.0]], np.float32), bits=8, group_size=3)
    assert codes.codes.tolist() == [[255, 0, 128, 192, 255]]
    assert codes.scale == pytest.approx(np.array([[1.0, 2 / 127.5]]))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"precision": "int4"}, "precision int4: the model has no 4-bit codes."),
        (
            {"table": "int8+rescore", "layout": "padded"},
            "table int8+rescore: no standard operator multiplies with a quantized item table.",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    config: dict[str, str], message: str, dataset: Artefact, model: Artefact, tmp_path: Path
) -> None:
    inputs = {"data": dataset, "model": model}
    with pytest.raises(UsageError) as caught:
        export(ExportConfig.model_validate(config), inputs, tmp_path / "engine")
    assert str(caught.value) == message
    assert not (tmp_path / "engine").exists()
