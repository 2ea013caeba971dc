import ast
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from slmc.artefact import Artefact
from slmc.errors import VerdictError
from slmc.export.config import ExportConfig
from slmc.export.export import export
from slmc.export.runtime.engine import Engine
from slmc.export.triton import model as triton_model
from slmc.export.triton import repository as triton
from slmc.recommend import recommend

Place = Callable[[str], Path]
ITEMS, HISTORY = 30, 12
"""As conftest.py makes them."""


@pytest.fixture(scope="module")
def served(dataset: Artefact, model: Artefact, place: Place) -> Artefact:
    config = ExportConfig(top_k=10, formats=("triton",))
    return export(config, {"data": dataset, "model": model}, place("served"))


def test_onnx_is_always_written_and_the_order_does_not_matter() -> None:
    assert ExportConfig(formats=()).formats == ("onnx",)
    assert ExportConfig(formats=("triton",)).formats == ("onnx", "triton")
    assert ExportConfig(formats=("triton", "onnx", "triton")).formats == ("onnx", "triton")


def test_every_variant_is_complete(served: Artefact, packed: Artefact) -> None:
    repository = {name for name in served.manifest.files if name.startswith("triton/")}
    assert repository == {
        "triton/recommender/config.pbtxt", "triton/recommender/warmup/history",
        "triton/recommender/1/items.jsonl", "triton/recommender/1/masked.onnx",
        "triton/recommender/1/model.onnx", "triton/recommender/1/model.py",
        "triton/recommender_onnx/config.pbtxt", "triton/recommender_onnx/warmup/history",
        "triton/recommender_onnx/1/model.onnx",
    }  # fmt: skip
    rest = {name: served.manifest.files[name] for name in packed.manifest.files}
    assert rest == packed.manifest.files
    hashes = served.manifest.files
    for variant in ("recommender", "recommender_onnx"):
        assert hashes[f"triton/{variant}/1/model.onnx"] == hashes["onnx/model.onnx"]


def test_the_python_variant_does_not_import_slmc() -> None:
    tree = ast.parse(Path(triton_model.__file__).read_text())
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    brought = {"numpy", "numpy.typing", "onnxruntime"}
    assert names - brought == {"json", "collections.abc", "importlib", "pathlib", "typing"}


class Utils(ModuleType):
    """The parts of Triton's Python module that the model uses."""

    class Tensor:
        def __init__(self, name: str, array: np.ndarray) -> None:
            self.name, self.array = name, array

        def as_numpy(self) -> np.ndarray:
            return self.array

    TritonError = str

    @staticmethod
    def InferenceResponse(  # noqa: N802
        output_tensors: list[Any] | None = None, error: str | None = None
    ) -> SimpleNamespace:
        arrays = {tensor.name: tensor.array for tensor in output_tensors or []}
        return SimpleNamespace(error=error, **arrays)

    @staticmethod
    def get_input_tensor_by_name(request: dict[str, Any], name: str) -> Any:
        return Utils.Tensor(name, request[name]) if name in request else None


def request(*histories: list[str], **more: bool) -> dict[str, np.ndarray]:
    rows = np.full((len(histories), max(map(len, histories))), b"", dtype=object)
    for row, one in zip(rows, histories, strict=True):
        row[len(row) - len(one) :] = [item.encode() for item in one]
    return {"history": rows} | {name: np.array([[value]]) for name, value in more.items()}


@pytest.fixture
def running(served: Artefact, monkeypatch: pytest.MonkeyPatch) -> triton_model.TritonPythonModel:
    utils = Utils("triton_python_backend_utils")
    monkeypatch.setitem(sys.modules, utils.__name__, utils)
    settings = {"threads": "1", "providers": "CUDAExecutionProvider,CPUExecutionProvider"}
    config = {"parameters": {name: {"string_value": value} for name, value in settings.items()}}
    model = triton_model.TritonPythonModel()
    repository = served.path / "triton/recommender"
    model.initialize(
        {
            "model_config": json.dumps(config),
            "model_repository": str(repository),
            "model_version": "1",
        }
    )
    return model


def test_requests_of_a_batch_get_their_own_answers(
    running: triton_model.TritonPythonModel, served: Artefact
) -> None:
    histories = [[f"film-{1 + (7 * n + k) % ITEMS}" for k in range(n)] for n in range(1, 20)]
    requests = [request(one, exclude_seen=n % 3 == 0) for n, one in enumerate(histories)]
    requests.append(request(histories[0], histories[5]))
    answers = running.execute(requests)
    engine = Engine.open(served, threads=1)
    for n, (one, answer) in enumerate(zip(histories, answers[:-1], strict=True)):
        expected = recommend(engine, one, 10, exclude_seen=n % 3 == 0)
        assert [item.decode() for item in answer.items[0]] == [e.item for e in expected]
        assert answer.scores[0] == pytest.approx([e.score for e in expected], abs=1e-4)
    for row, n in enumerate((0, 5)):
        expected = recommend(engine, histories[n], 10)
        assert [item.decode() for item in answers[-1].items[row]] == [e.item for e in expected]


def test_exclude_seen_has_one_value_per_history(
    running: triton_model.TritonPythonModel,
) -> None:
    three = request(["film-28"], ["film-28"], ["film-3", "film-28"])
    three["exclude_seen"] = np.array([[False], [True], [False]])
    none = request(["film-28"])
    wrong = none | {"exclude_seen": np.array([[True], [False]])}
    some, plain, refused = running.execute([three, none, wrong])
    assert (some.items[0] == plain.items[0]).all() and b"film-28" in plain.items
    assert b"film-28" not in some.items[1] and b"film-28" in some.items[2]
    assert refused.error == "exclude_seen: 2 values for 1 histories"


def test_a_batch_of_0_gets_a_response(running: triton_model.TritonPythonModel) -> None:
    for columns in (0, 3):
        none = {"history": np.empty((0, columns), dtype=object)}
        first, second = running.execute([none, none | {"exclude_seen": np.empty((0, 1), bool)}])
        for answer in (first, second):
            assert answer.items.shape == answer.scores.shape == (0, 10)
            assert answer.items.dtype == object and answer.scores.dtype == np.float32
    no_items, one = running.execute(
        [{"history": np.empty((2, 0), dtype=object)}, request(["film-3"])]
    )
    assert no_items.items.shape == (2, 10) and one.items.shape == (1, 10)


def test_odd_requests(running: triton_model.TritonPythonModel) -> None:
    """Unknown ids are skipped, one invalid request fails alone, missing items are empty ids."""
    everything = [f"film-{row}" for row in range(1, ITEMS - 1)]
    good, unknown, empty, broken, few = running.execute(
        [
            request(["film-3", "film-1"]),
            request(["film-3", "never", "film-1"]),
            request(["never"]),
            {"history": np.array([[b"\xff"]], dtype=object)},
            request(everything, exclude_seen=True),
        ]
    )
    assert (good.items == unknown.items).all() and (good.scores == unknown.scores).all()
    assert empty.items.shape == (1, 10) and b"" not in empty.items
    assert broken.error.startswith("history: an id is not UTF-8: ")
    assert {item.decode() for item in few.items[0, :2]} == {"film-29", "film-30"}
    assert set(few.items[0, 2:]) == {b""} and (few.scores[0, 2:] == triton_model.NOTHING).all()


def test_a_variant_that_differs_is_withheld(
    packed: Artefact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "model.py"
    source = Path(triton_model.__file__).read_text()
    other.write_text(source.replace("self.ids[items], scores", "self.ids[items], scores + 1"))
    monkeypatch.setattr(triton, "triton_model", SimpleNamespace(__file__=str(other)))
    shutil.copytree(packed.path, tmp_path / "engine")
    with pytest.raises(VerdictError) as caught:
        triton.write(tmp_path / "engine", ExportConfig(), [np.array([1, 2], dtype=np.int32)])
    assert str(caught.value) == (
        "triton: the repository was withheld: its Python variant differs from the engine."
    )


def test_warm_up_requests_are_histories(served: Artefact) -> None:
    rows = np.frombuffer(
        (served.path / "triton/recommender_onnx/warmup/history").read_bytes(), "<i8"
    )
    assert rows.tolist() == list(range(1, HISTORY + 1))
    data = (served.path / "triton/recommender/warmup/history").read_bytes()
    assert data.startswith(b"\x06\x00\x00\x00film-1\x06\x00\x00\x00film-2")
