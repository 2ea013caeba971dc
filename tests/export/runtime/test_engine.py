import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from slmc.artefact import Artefact, draft
from slmc.errors import ArtefactError, MissingError
from slmc.export.config import ExportConfig
from slmc.export.runtime.engine import GRAPH, SPIN_US, Engine, read_description, session_options
from slmc.export.vocabulary import Vocabulary

HISTORY = 12
ITEMS = 30
"""As conftest.py makes them."""
Place = Callable[[str], Path]


REMEDY = "Run `slmc export` again."


def rows(*items: int) -> np.ndarray:
    return np.array(items, dtype=np.int32)


def test_histories_of_different_lengths(packed: Artefact) -> None:
    engine = Engine.open(packed.path)
    items, scores = engine.top([rows(1), rows(2, 3, 4), rows(*range(1, 25))])
    assert items.shape == scores.shape == (3, 10)
    assert items.dtype == np.int64 and scores.dtype == np.float32
    assert (np.diff(scores) <= 0).all()
    long, _ = engine.top([rows(*range(1, 25))[-HISTORY:]])
    assert (items[2] == long[0]).all()


def test_no_history_and_an_empty_one(packed: Artefact) -> None:
    engine = Engine.open(packed)
    assert engine.top([])[0].shape == (0, 10)
    assert engine.top([rows()])[0].shape == (1, 10)


def test_rows_outside_the_catalogue_are_refused(packed: Artefact) -> None:
    engine = Engine.open(packed)
    for wrong in (rows(ITEMS + 1), rows(-1)):
        with pytest.raises(ValueError, match=r"rows must be in 1\.\.30"):
            engine.top([wrong])


def test_a_mask_of_another_catalogue_is_refused(packed: Artefact) -> None:
    with pytest.raises(ValueError, match="allowed must have"):
        Engine.open(packed).top([rows(1, 2)], allowed=np.ones((1, 1), dtype=bool))


def test_the_top_items_are_those_with_the_best_scores(packed: Artefact) -> None:
    tapped, engine = Engine.open(packed, scores=True), Engine.open(packed)
    histories = [rows(*range(1, n)) for n in range(2, 20)]
    full = tapped.scores(histories)
    items, scores = engine.top(histories)
    assert full.shape == (18, ITEMS)
    assert (np.take_along_axis(full, items - 1, axis=1) == scores).all()
    assert (np.argsort(-full, axis=1, kind="stable")[:, :10] + 1 == items).all()


def edited(engine: Artefact, out: Path, edit: Callable[[Path], None]) -> Artefact:
    """The engine with another file, sealed again."""
    with draft(out) as work:
        shutil.copytree(engine.path, work.path, dirs_exist_ok=True)
        (work.path / "slmc.json").unlink()
        edit(work.path)
        return work.seal(kind="engine", stage="export", config=ExportConfig(), inputs={})


def graph_edit(change: Callable[[onnx.ModelProto], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        graph = onnx.load(folder / GRAPH)
        change(graph)
        (folder / GRAPH).write_bytes(graph.SerializeToString())

    return edit


def truncate(folder: Path) -> None:
    (folder / GRAPH).write_bytes((folder / GRAPH).read_bytes()[:-1000])


def future(graph: onnx.ModelProto) -> None:
    graph.opset_import[0].version = 999


def rename_output(graph: onnx.ModelProto) -> None:
    graph.graph.node[-1].output[0] = graph.graph.output[1].name = "best"


def rename_input(graph: onnx.ModelProto) -> None:
    graph.graph.node[0].input[0] = graph.graph.input[0].name = "ids"


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (truncate, "ONNX Runtime cannot run it: "),
        (lambda folder: (folder / GRAPH).write_bytes(b"\x00\x01 no graph"), "cannot run it: "),
        (lambda folder: (folder / GRAPH).write_bytes(b""), "cannot run it: "),
        (lambda folder: (folder / GRAPH).unlink(), "cannot run it: "),
        (graph_edit(future), "cannot run it: "),
        (
            graph_edit(rename_output),
            "the graph does not have the inputs item_ids and the outputs top_items",
        ),
        (
            graph_edit(rename_input),
            "the graph does not have the inputs item_ids and the outputs top_items",
        ),
    ],
)
def test_a_broken_graph_is_an_error_of_two_lines(
    edit: Callable[[Path], None],
    why: str,
    packed: Artefact,
    place: Place,
    capfd: pytest.CaptureFixture[str],
) -> None:
    engine = edited(packed, place("broken"), edit)
    for scores in (False, True):
        with pytest.raises(ArtefactError) as caught:
            Engine.open(engine, scores=scores)
        assert str(caught.value).startswith(f"{engine.path / GRAPH}")
        assert "\n" not in caught.value.what
        assert caught.value.remedy == REMEDY
        if not scores:
            assert why in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_graph_that_fails_while_it_runs(packed: Artefact, place: Place) -> None:
    """Its item table has one row fewer than engine.json says."""

    def shorten(folder: Path) -> None:
        entries = json.loads((folder / "engine.json").read_text())
        (folder / "engine.json").write_text(json.dumps(entries | {"num_items": ITEMS + 1}))

    engine = Engine.open(edited(packed, place("short"), shorten))
    with pytest.raises(ArtefactError) as caught:
        engine.top([rows(ITEMS + 1)])
    assert "ONNX Runtime cannot run it: " in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"layout": "packed"}'])
def test_an_invalid_description(content: str, tmp_path: Path) -> None:
    (tmp_path / "engine.json").write_text(content)
    with pytest.raises(ArtefactError) as caught:
        read_description(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'engine.json'} does not describe an engine that this slmc can run."
    )


def test_a_model_is_not_an_engine(model: Artefact) -> None:
    with pytest.raises(ArtefactError) as caught:
        Engine.open(model.path)
    assert str(caught.value) == f"{model.path} is a model (stage teach), not an engine."
    assert caught.value.remedy.startswith("Name an engine; ")


def test_without_onnxruntime(packed: Artefact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingError) as caught:
        Engine.open(packed)
    assert str(caught.value).startswith("onnxruntime cannot be imported (")
    assert caught.value.remedy == "Install it with `pip install 'slmc[onnx]'`."


def test_an_engine_answers_without_torch(packed: Artefact) -> None:
    code = (
        "import sys; from pathlib import Path; from slmc.recommend import recommend\n"
        "items = recommend(Path(sys.argv[1]), ['film-3'], k=2)\n"
        "print(len(items), sorted({'torch', 'transformers', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, packed.path], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("2 []\n", "")


@pytest.mark.parametrize(
    "line", ["", "no json", "[]", '{"row": 3, "item": "a"}', '{"row": 2}', "\xff"]
)
def test_an_invalid_vocabulary(line: str, tmp_path: Path) -> None:
    file = tmp_path / "items.jsonl"
    file.write_bytes(f'{{"row": 1, "item": "a"}}\n{line}\n'.encode("latin-1"))
    with pytest.raises(ArtefactError) as caught:
        Vocabulary.open(file)
    assert str(caught.value) == f"{file}:2: the line does not describe the item of that row."


@pytest.mark.parametrize("spinning", [False, True])
def test_threads_spin_only_if_set_and_never_between_answers(spinning: bool) -> None:
    options = session_options(2, spinning=spinning)
    entry = options.get_session_config_entry
    assert entry("session.intra_op.allow_spinning") == str(int(spinning))
    assert entry("session.intra_op.spin_duration_us") == str(SPIN_US)
    assert entry("session.force_spinning_stop") == "1"
