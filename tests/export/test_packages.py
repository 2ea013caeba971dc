"""Packages of real engines answer as the engines do."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slmc.artefact import Artefact
from slmc.export.config import ExportConfig
from slmc.export.export import export
from slmc.export.graph import serialize
from slmc.export.runtime.engine import Engine
from slmc.package.package import package
from slmc.recommend import recommend

HISTORIES = [
    ["film-3", "film-1"],
    ["film-30"],
    ["film-2"] * 20,
    [f"film-{i}" for i in range(1, 25)],
]
ASK = """
import json, sys
from recommender import Recommender, Request
served = Recommender()
print(json.dumps([served.recommend(Request(**one)) for one in json.load(sys.stdin)]))
"""


def answers(folder: Path, requests: list[Any]) -> list[Any]:
    """What the recommender of a package answers, in a process without slmc."""
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
        input=json.dumps(requests),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    replies: list[Any] = json.loads(done.stdout)
    return replies


def check(engine: Artefact, out: Path) -> None:
    """The package gives the items and scores of the engine, and the popular items."""
    session, k = Engine.open(engine), 5
    requests = [
        {"history": history, "k": k, "exclude_seen": exclude}
        for history in [*HISTORIES, ["nobody's"], []]
        for exclude in (False, True)
    ]
    for request, reply in zip(requests, answers(package(engine, out).path, requests), strict=True):
        history = request["history"]
        best = recommend(session, history, k, request["exclude_seen"])
        assert [(one["item"], one["title"]) for one in reply["items"]] == [
            (one.item, one.title) for one in best
        ]
        scores = [one["score"] for one in reply["items"]]
        np.testing.assert_allclose(scores, [one.score for one in best], rtol=1e-5)
        assert reply["by"] == ("model" if history in HISTORIES else "popular")


@pytest.mark.parametrize("kind", ["packed", "padded"])
def test_a_package_answers_as_its_engine(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    check(request.getfixturevalue(kind), tmp_path / "package")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "int8-accurate", "fp16"])
def test_weights_in_a_second_file_are_part_of_it(
    precision: Any,
    dataset: Artefact,
    model: Artefact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serialize, "LARGEST_FILE", 1000)
    config = ExportConfig(top_k=10, precision=precision)
    engine = export(config, {"data": dataset, "model": model}, tmp_path / "engine")
    check(engine, tmp_path / "package")
    assert (tmp_path / "package/onnx/model.onnx.data").is_file()
