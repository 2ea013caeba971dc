import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from cards import code_of
from transformers import PreTrainedModel

from slmc import artefact
from slmc.artefact import Artefact
from slmc.data.batches import pad_left
from slmc.errors import MissingError, UsageError
from slmc.export import export as stage
from slmc.export.config import ExportConfig
from slmc.export.export import export
from slmc.export.graph import serialize
from slmc.export.graph.optimize import to_onnx
from slmc.export.runtime.engine import GRAPH, MASKED, Engine
from slmc.model.loading import load_model

HISTORY = 12
ITEMS = 30
TWINS = (4, 9)
"""As in conftest.py."""
Place = Callable[[str], Path]


SAME = 1e-4
"""Scores of random weights have a spread near 10; float32 rounding leaves 1e-5 of it."""


def best(model: PreTrainedModel, item_ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and scores by a stable sort: of equal scores the smaller row first."""
    with torch.inference_mode():
        scores = model(torch.from_numpy(item_ids))[:, 1:]
    values, order = scores.sort(dim=1, descending=True, stable=True)
    return (order + 1)[:, :k].numpy(), values[:, :k].numpy()


def histories(batch: int, length: int) -> np.ndarray:
    rng = np.random.default_rng(batch * 100 + length)
    rows = [rng.integers(1, ITEMS + 1, 1 + rng.integers(length)) for _ in range(batch - 1)]
    return pad_left([rng.integers(1, ITEMS + 1, length), *rows])


@pytest.mark.parametrize("shape", [(1, 1), (1, HISTORY), (5, 1), (7, 5), (33, HISTORY)])
@pytest.mark.parametrize("kind", ["packed", "padded"])
def test_the_engine_returns_what_the_model_does(
    kind: str, shape: tuple[int, int], request: pytest.FixtureRequest
) -> None:
    engine = Engine.open(request.getfixturevalue(kind))
    source = request.getfixturevalue({"packed": "model", "padded": "prompted"}[kind])
    item_ids = histories(*shape)
    rows, scores = engine.answer(item_ids)
    expected_rows, expected = best(load_model(source), item_ids, engine.description.top_k)
    assert np.abs(scores - expected).max() < SAME
    assert (rows == expected_rows).all()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_prompt_before_the_items_is_keys_and_values_in_the_graph(
    precision: str, dataset: Artefact, prompted: Artefact, place: Place
) -> None:
    config = ExportConfig.model_validate({"top_k": 5, "precision": precision})
    engine = export(config, {"data": dataset, "model": prompted}, place("engine"))
    model, item_ids = load_model(prompted), histories(7, HISTORY)
    backbone = model.config.backbone_config
    shape = [backbone.num_key_value_heads, 2, backbone.head_dim]
    shapes = [list(tensor.dims) for tensor in onnx.load(engine.path / GRAPH).graph.initializer]
    assert shapes.count(shape) == 2 * backbone.num_hidden_layers
    rows, scores = Engine.open(engine).answer(item_ids)
    expected_rows, expected = best(model, item_ids, 5)
    if precision == "fp32":
        assert np.abs(scores - expected).max() < SAME
        assert (rows == expected_rows).all()


def test_ties_go_to_the_smaller_row(padded: Artefact, packed: Artefact) -> None:
    for engine in (Engine.open(padded), Engine.open(packed)):
        rows, scores = engine.answer(histories(20, HISTORY))
        tied = 0
        for top, values in zip(rows.tolist(), scores.tolist(), strict=True):
            if set(TWINS) <= set(top):
                first, second = top.index(TWINS[0]), top.index(TWINS[1])
                assert second == first + 1 and values[first] == values[second]
                tied += 1
            else:
                assert TWINS[1] not in top
        assert tied


def test_top_k_is_at_most_the_catalogue(padded: Artefact) -> None:
    assert padded.manifest.metrics["top_k"] == ITEMS
    rows, _ = Engine.open(padded).answer(histories(3, 4))
    assert (np.sort(rows, axis=1) == np.arange(1, ITEMS + 1)).all()


def test_the_graph_keeps_the_newest_items(packed: Artefact, padded: Artefact) -> None:
    long = np.random.default_rng(0).integers(1, ITEMS + 1, (3, HISTORY + 9))
    for engine in (Engine.open(packed), Engine.open(padded)):
        rows, scores = engine.answer(long)
        newest_rows, newest = engine.answer(long[:, -HISTORY:])
        assert (rows == newest_rows).all() and (scores == newest).all()


def test_an_answer_does_not_depend_on_the_batch(packed: Artefact) -> None:
    engine = Engine.open(packed)
    item_ids = histories(33, HISTORY)
    rows, scores = engine.answer(item_ids)
    for index in range(0, 33, 8):
        history = item_ids[index][item_ids[index] > 0][None]
        alone_rows, alone = engine.answer(history)
        assert (alone_rows == rows[index]).all()
        assert np.abs(alone - scores[index]).max() < SAME


def test_the_padded_layout_has_standard_operators_only(padded: Artefact) -> None:
    graph = onnx.load(padded.path / GRAPH)
    assert {node.domain for node in graph.graph.node} == {""}
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", 18)]
    assert "NonZero" not in {node.op_type for node in graph.graph.node}
    onnx.checker.check_model(graph, full_check=True)


def test_the_packed_layout_computes_no_padding(packed: Artefact) -> None:
    graph = onnx.load(packed.path / GRAPH)
    assert "NonZero" in {node.op_type for node in graph.graph.node}
    onnx.checker.check_model(graph, full_check=True)


NO_MASKS = {"exclude_seen": np.array([False]), "allowed": np.array([[True]])}
"""Inputs of the graph with masks that mask nothing."""


def plain_session(engine: Artefact, graph: str) -> Callable[..., list[np.ndarray]]:
    """A session as a user opens one, without any options."""
    session = onnxruntime.InferenceSession(engine.path / graph)
    more = NO_MASKS if graph == MASKED else {}
    return lambda rows, **masks: session.run(None, {"item_ids": rows, **more, **masks})


GRAPHS = pytest.mark.parametrize("graph", [GRAPH, MASKED])
LAYOUTS = pytest.mark.parametrize("kind", ["packed", "padded"])


@GRAPHS
@LAYOUTS
def test_a_session_without_options_answers_as_the_engine_without_warnings(
    kind: str, graph: str, request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    engine, item_ids = request.getfixturevalue(kind), histories(7, HISTORY)
    answers = plain_session(engine, graph)(item_ids)
    expected = Engine.open(engine).answer(item_ids)
    assert all(np.array_equal(*both) for both in zip(answers, expected, strict=True))
    assert capfd.readouterr() == ("", "")


@GRAPHS
@LAYOUTS
def test_histories_without_items_get_the_answer_of_one_padding_item(
    kind: str, graph: str, request: pytest.FixtureRequest
) -> None:
    engine = request.getfixturevalue(kind)
    run, k = plain_session(engine, graph), engine.manifest.metrics["top_k"]
    expected = run(np.zeros((1, 1), dtype=np.int64))
    for batch in (1, 3):
        answers = run(np.zeros((batch, 0), dtype=np.int64))
        assert all((a == b).all() for a, b in zip(answers, expected, strict=True))
        assert [a.shape for a in answers] == [(batch, k)] * 2
    for shape in ((0, 0), (0, 1), (0, HISTORY + 5)):
        items, scores = run(np.zeros(shape, dtype=np.int64))
        assert items.shape == scores.shape == (0, k)
        assert items.dtype == np.int64 and scores.dtype == np.float32


@GRAPHS
@LAYOUTS
def test_rows_outside_the_catalogue_are_refused(
    kind: str, graph: str, request: pytest.FixtureRequest
) -> None:
    run = plain_session(request.getfixturevalue(kind), graph)
    for wrong in (ITEMS + 1, 10**9, -1, -2, -ITEMS, -ITEMS - 1, -(2**63)):
        for row in ([wrong, 3, 7], [3, wrong, 7], [3, 7, wrong]):
            with pytest.raises(Exception, match=r"INVALID_ARGUMENT.* out of data bounds"):
                run(np.array([[1, 2, 3], row]))


def test_seen_items_are_excluded_per_history(packed: Artefact) -> None:
    run, item_ids = plain_session(packed, MASKED), np.array([[3, 7, 9], [3, 7, 9], [0, 0, 28]])
    plain = run(item_ids)[0]
    assert all(set(best) & set(row) for best, row in zip(plain, item_ids, strict=True))
    items, scores = run(item_ids, exclude_seen=np.array([True, False, True]))
    assert not set(items[0]) & {3, 7, 9} and 28 not in items[2]
    assert (items[1] == plain[1]).all() and np.isfinite(scores).all()
    assert run(item_ids[:0], exclude_seen=np.zeros(0, dtype=bool))[0].shape == (0, 10)


@LAYOUTS
def test_a_mask_of_more_rows_than_histories_is_refused(
    kind: str, request: pytest.FixtureRequest
) -> None:
    run = plain_session(request.getfixturevalue(kind), MASKED)
    for rows in (2, 3):
        with pytest.raises(Exception, match="cannot be reshaped"):
            run(np.array([[1, 2, 3]]), allowed=np.ones((rows, ITEMS + 1), dtype=bool))


def test_the_item_table_is_stored_once(packed: Artefact) -> None:
    sizes = [sorted(tensor.dims) for tensor in onnx.load(packed.path / GRAPH).graph.initializer]
    assert sizes.count(sorted([ITEMS + 1, 16])) == 1


@pytest.mark.slow
def test_the_same_model_gives_the_same_files(
    dataset: Artefact, model: Artefact, packed: Artefact, place: Place
) -> None:
    """Even in another process and from another directory."""
    out = place("again")
    code = (
        "import sys; from pathlib import Path; from slmc import artefact\n"
        "from slmc.export.config import ExportConfig; from slmc.export.export import export\n"
        "data, model, out = map(Path, sys.argv[1:])\n"
        "inputs = {'data': artefact.load(data), 'model': artefact.load(model)}\n"
        "export(ExportConfig(top_k=10), inputs, out)\n"
    )
    arguments = [sys.executable, "-c", code, dataset.path, model.path, out]
    done = subprocess.run(arguments, cwd=out.parent, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert artefact.load(out).digest == packed.digest


def test_no_file_contains_paths_of_the_machine(packed: Artefact) -> None:
    for name in packed.manifest.files:
        content = (packed.path / name).read_bytes()
        for trace in (b"/tmp", b"/home", b"/work", b".py", str(packed.path.parent).encode()):
            assert trace not in content, name


def test_the_folder(packed: Artefact, model: Artefact) -> None:
    assert set(packed.manifest.files) == {
        "README.md", "engine.json", "items.jsonl", "items.parquet", "onnx/config.json",
        "onnx/masked.onnx", "onnx/model.onnx", "parity.json", "preprocessor.json",
    }  # fmt: skip
    lines = (packed.path / "items.jsonl").read_text().splitlines()
    assert lines[:2] == [
        '{"row": 1, "item": "film-1"}',
        '{"row": 2, "item": "film-2", "title": "Título 2"}',
    ]
    assert json.loads((packed.path / "engine.json").read_text()) == {
        "input": {"item_ids": ["int64", ["batch", "length"]]},
        "masks": {
            "exclude_seen": ["bool", ["1 or batch"]],
            "allowed": ["bool", ["1 or batch", ITEMS + 1]],
        },
        "outputs": {
            "top_items": ["int64", ["batch", 10]],
            "top_scores": ["float32", ["batch", 10]],
        },
        "layout": "packed", "top_k": 10, "opset": 21, "precision": "fp32",
        "history": HISTORY, "num_items": ITEMS, "source": model.digest,
    }  # fmt: skip
    served = ("onnx/", "items.jsonl", "preprocessor.json")
    assert packed.manifest.metrics["size_mb"] == artefact.size_mb(packed, served)


def test_the_code_of_the_card_runs(packed: Artefact) -> None:
    code = code_of((packed.path / "README.md").read_text())
    imported = re.findall(r"^(?:import|from) (\w+)", code, flags=re.MULTILINE)
    assert imported == ["json", "numpy", "onnxruntime"]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=packed.path, capture_output=True, text=True, check=True
    )
    rows, scores = Engine.open(packed).top([np.array([1, 2], dtype=np.int32)])
    for line, row, score in zip(done.stdout.splitlines(), rows[0], scores[0], strict=True):
        title = f" Título {row}" if row % 2 == 0 else ""
        assert line.strip() == f"{score:.3f} film-{row}{title}"
    assert done.stderr == ""


def test_the_code_of_the_card_answers_without_known_items(packed: Artefact) -> None:
    code = code_of((packed.path / "README.md").read_text())
    codes = [
        re.sub(r"(?m)^history = \[.*?\]", f"history = {history}", code)
        for history in ("[]", '["nobody\'s", "film-31"]')
    ]
    assert code not in codes
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(codes)], cwd=packed.path, capture_output=True, text=True
    )
    assert (done.returncode, len(done.stdout.splitlines()), done.stderr) == (0, 20, "")


def test_large_weights_go_into_a_second_file(
    dataset: Artefact,
    model: Artefact,
    packed: Artefact,
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graphs = [onnx.load(packed.path / name) for name in (GRAPH, MASKED)]
    monkeypatch.setattr(stage, "both_graphs", lambda *_: iter(graphs))
    monkeypatch.setattr(serialize, "LARGEST_FILE", 1000)
    engine = export(ExportConfig(top_k=10), {"data": dataset, "model": model}, place("large"))
    weights = engine.path / "onnx/model.onnx.data"
    for name in (GRAPH, MASKED):
        assert weights.stat().st_size > 5 * (engine.path / name).stat().st_size
    histories = [np.array([3, 1, 2], dtype=np.int32)]
    rows, scores = Engine.open(engine).top(histories)
    full = Engine.open(engine, scores=True).scores(histories)
    assert (np.take_along_axis(full, rows - 1, axis=1) == scores).all()
    others = np.arange(ITEMS + 1)[None] != rows[0, 0]
    assert (Engine.open(engine).top(histories, allowed=others)[0][0, :9] == rows[0, 1:]).all()


def test_the_dataset_must_number_the_same_items(
    dataset: Artefact, model: Artefact, tmp_path: Path
) -> None:
    import polars as pl

    with artefact.draft(tmp_path / "other") as work:
        items = pl.read_parquet(dataset.file("items.parquet")).with_columns(
            item=pl.col("item") + "x"
        )
        items.write_parquet(work.path / "items.parquet")
        other = work.seal(kind="dataset", stage="prepare", config=ExportConfig(), inputs={})
    with pytest.raises(UsageError) as caught:
        export(ExportConfig(), {"data": other, "model": model}, tmp_path / "engine")
    assert str(caught.value) == (
        f"{model.path} and {other.path} do not have the same items in the same rows."
    )
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize("module", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_extra_is_named(
    module: str,
    dataset: Artefact,
    model: Artefact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingError) as caught:
        export(ExportConfig(), {"data": dataset, "model": model}, tmp_path / "engine")
    assert str(caught.value).startswith(f"{module} cannot be imported (")
    assert caught.value.remedy == "Install it with `pip install 'slmc[onnx]'`."


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_the_newest_opset(layout: str, model: Artefact, packed: Artefact, tmp_path: Path) -> None:
    loaded = load_model(model)
    serialize.save(to_onnx(loaded, layout, 5, opset=23), tmp_path / GRAPH)
    (tmp_path / "engine.json").write_bytes((packed.path / "engine.json").read_bytes())
    rows, _ = Engine(tmp_path).answer(histories(4, 6))
    assert (rows == best(loaded, histories(4, 6), 5)[0]).all()
