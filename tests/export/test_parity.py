import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from slmc.artefact import Artefact
from slmc.data.dataset import Dataset
from slmc.errors import UndecidedError, VerdictError
from slmc.export import export as stage
from slmc.export import parity
from slmc.export.config import ExportConfig, ParityConfig
from slmc.export.graph import serialize
from slmc.export.runtime.engine import GRAPH, MASKED
from slmc.model.loading import load_model

HISTORY, USERS = 12, 40
"""As conftest.py makes them."""
Place = Callable[[str], Path]


def test_the_report(packed: Artefact) -> None:
    report = json.loads((packed.path / "parity.json").read_text())
    shapes = {(s["batch"], s["lengths"], s["columns"]) for s in report["shapes"]}
    lengths = [("one", 1), ("mixed", HISTORY), ("longest", HISTORY)]
    assert shapes == {(batch, *kind) for batch in (1, 32, 256) for kind in lengths}
    assert all(s["histories"] == USERS for s in report["shapes"])
    assert report["allowed"] == {"max_error": 1e-3, "min_overlap": 0.999}
    assert 0 < report["max_error"] == max(s["max_error"] for s in report["shapes"]) < 1e-5
    assert report["overlap"] == 1.0
    assert packed.manifest.metrics["parity"] == {"max_error": report["max_error"], "overlap": 1.0}


WEIGHTS = 18
"""Matrices of the graph: the item table, in and out projections, cosines and sines of positions
for whole layers and for queries of the last tokens, five of the first layer and six of the last."""


def damaged(graph: onnx.ModelProto, which: int) -> onnx.ModelProto:
    """One number of one matrix changed."""
    floats = onnx.TensorProto.FLOAT
    matrices = [t for t in graph.graph.initializer if len(t.dims) == 2 and t.data_type == floats]
    assert len(matrices) == WEIGHTS
    values = numpy_helper.to_array(matrices[which]).copy()
    values[3 % len(values), 3] += 1.0
    matrices[which].CopyFrom(numpy_helper.from_array(values, matrices[which].name))
    return graph


@pytest.mark.parametrize("which", range(WEIGHTS))
def test_a_changed_weight_is_detected(
    which: int, packed: Artefact, model: Artefact, dataset: Artefact, tmp_path: Path
) -> None:
    graph = damaged(onnx.load(packed.path / GRAPH), which)
    serialize.save(graph, tmp_path / GRAPH)
    (tmp_path / "engine.json").write_bytes((packed.path / "engine.json").read_bytes())
    histories = parity.real_histories(Dataset.open(dataset))
    with pytest.raises(VerdictError) as caught:
        parity.check(tmp_path, load_model(model), histories, ExportConfig(top_k=10))
    assert str(caught.value).startswith("parity: the engine was withheld: at batch 1, ")


def test_an_engine_that_fails_is_withheld(
    dataset: Artefact,
    model: Artefact,
    packed: Artefact,
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = damaged(onnx.load(packed.path / GRAPH), 0)
    monkeypatch.setattr(stage, "both_graphs", lambda *_: iter([graph, graph]))
    out = place("engine")
    with pytest.raises(VerdictError) as caught:
        stage.export(ExportConfig(top_k=10), {"data": dataset, "model": model}, out)
    assert caught.value.exit_code == 1
    assert not out.exists()


def test_an_engine_that_does_not_run_is_withheld(
    dataset: Artefact,
    model: Artefact,
    packed: Artefact,
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = onnx.load(packed.path / GRAPH)
    graph.graph.node[-1].op_type = "NoSuchOperator"
    monkeypatch.setattr(stage, "both_graphs", lambda *_: iter([graph, graph]))
    out = place("engine")
    with pytest.raises(VerdictError) as caught:
        stage.export(ExportConfig(top_k=10), {"data": dataset, "model": model}, out)
    assert str(caught.value).startswith(
        "parity: the engine was withheld: onnx/model.onnx: ONNX Runtime cannot run it: "
    )
    assert "No Op registered for NoSuchOperator" in str(caught.value)
    assert caught.value.remedy == "Export with another --opset or --layout."
    assert not out.exists()


def test_a_graph_with_masks_that_gives_other_answers_is_withheld(
    packed: Artefact, dataset: Artefact, tmp_path: Path
) -> None:
    for name in (GRAPH, "engine.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((packed.path / name).read_bytes())
    graph = onnx.load(packed.path / MASKED, load_external_data=False)
    histories = parity.real_histories(Dataset.open(dataset))
    (tmp_path / MASKED).write_bytes(graph.SerializeToString())
    parity.check_masks(tmp_path, histories)
    masks = next(node for node in graph.graph.node if node.op_type == "If")
    for attribute in masks.attribute:
        if attribute.name == "then_branch":  # where -inf stood
            bias = next(node for node in attribute.g.node if node.op_type == "Where")
            bias.input[2] = bias.input[1]
            floor = next(node for node in attribute.g.node if node.op_type == "Expand")
            floor.input[0] = bias.input[1]
    (tmp_path / MASKED).write_bytes(graph.SerializeToString())
    with pytest.raises(VerdictError) as caught:
        parity.check_masks(tmp_path, histories)
    assert str(caught.value) == (
        "parity: the engine was withheld: onnx/masked.onnx gives other answers than "
        "onnx/model.onnx."
    )


def test_the_limits_are_the_configs(packed: Artefact, model: Artefact, dataset: Artefact) -> None:
    histories = parity.real_histories(Dataset.open(dataset))
    strict = ExportConfig(top_k=10, parity=ParityConfig(max_error=1e-12))
    with pytest.raises(VerdictError, match="of the scores' spread; the limit is 1e-12"):
        parity.check(packed.path, load_model(model), histories, strict)


@pytest.mark.parametrize(
    ("batch", "lengths", "expected"),
    [
        (1, "one", 512),
        (1, "longest", 512),
        (32, "mixed", 512),
        (256, "mixed", 512),
        (1, "mixed", 64),
        (32, "one", 64),
        (256, "longest", 256),
    ],
)
def test_how_many_histories_are_compared(batch: int, lengths: str, expected: int) -> None:
    assert parity.Shape(batch, lengths, 50).quota(512) == expected


def test_overlap_by_hand() -> None:
    scores = np.array([[5.0, 4.0, 4.0, 1.0, 0.0]], dtype=np.float32)

    def of(*items: int) -> float:
        return float(parity.overlap(np.array([items]), scores, spread=2.0)[0])

    assert of(1, 2) == 1.0
    assert of(1, 3) == 1.0  # tied with row 2
    assert of(1, 4) == 0.5
    assert of(4, 5) == 0.0
    assert of(1, 1) == 0.5  # a repeated item counts once
    nearly = scores + np.array([[0, 0, -1e-6, 0, 0]], dtype=np.float32)
    assert parity.overlap(np.array([[1, 3]]), nearly, spread=2.0) == 1.0
    apart = scores + np.array([[0, 0, -1e-3, 0, 0]], dtype=np.float32)
    assert parity.overlap(np.array([[1, 3]]), apart, spread=2.0) == 0.5


def test_nan_fails_the_check() -> None:
    shape = parity.Shape(1, "one", 1)
    shape.add(float("nan"), np.array([1.0]))
    shape.add(0.0, np.array([1.0]))
    with pytest.raises(VerdictError, match="a score differs by nan of the scores' spread"):
        parity._check_limits(shape, ParityConfig())


def test_without_test_users_the_training_part_is_compared(dataset: Artefact) -> None:
    import polars as pl

    data = Dataset.open(dataset)
    ends = data.sequences.with_columns(test_from=pl.col("items").list.len().cast(pl.Int32))
    untested = Dataset(data.items, ends, data.history)
    assert len(parity.real_histories(untested)) == 40
    assert max(rows.size for rows in parity.real_histories(untested)) == HISTORY
    nobody = data.sequences.head(1).with_columns(
        items=pl.lit([], dtype=pl.List(pl.Int32)), valid_from=0, test_from=0
    )
    with pytest.raises(UndecidedError) as caught:
        parity.real_histories(Dataset(data.items, nobody, data.history))
    assert str(caught.value) == "the dataset has no history on which to compare engine and model."
