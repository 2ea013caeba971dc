"""New items with given vectors, near other items, or next to them in a log; nothing is trained."""

import json
import logging
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from slmc.artefact import Artefact
from slmc.errors import DataError, UsageError
from slmc.export.config import ExportConfig
from slmc.export.export import export
from slmc.export.runtime.engine import Engine
from slmc.model.loading import load_model

WIDTH = 16
HISTORIES = [np.array([1, 2, 3]), np.array([4])]


@pytest.fixture(scope="module")
def table(sasrec: Artefact) -> np.ndarray:
    return load_model(sasrec).item_vectors().detach().numpy()


def extended(sasrec: Artefact, dataset: Artefact, out: Path, **settings: object) -> Engine:
    config = ExportConfig.model_validate({"top_k": 5, "outputs": ["topk", "scores"], **settings})
    made = export(config, {"data": dataset, "model": sasrec}, out / "engine")
    return Engine.open(made, scores=True)


def expected(engine: Engine, sasrec: Artefact, vectors: np.ndarray) -> np.ndarray:
    """Scores of item vectors for the test's histories."""
    import torch

    with torch.inference_mode():
        users = load_model(sasrec).user_vectors(torch.tensor([[1, 2, 3], [0, 0, 4]]))
    return users.numpy() @ vectors.T


def test_given_vectors_are_used_as_they_are(
    sasrec: Artefact, dataset: Artefact, tmp_path: Path
) -> None:
    vectors = np.random.default_rng(1).normal(size=(2, WIDTH)).astype(np.float32)
    file = tmp_path / "new.parquet"
    pl.DataFrame({"item_id": [7, 8], "title": ["Seven", None], "vector": vectors}).write_parquet(
        file
    )
    engine = extended(sasrec, dataset, tmp_path, items=str(file))
    got = engine.scores(HISTORIES)[:, -2:]
    assert np.allclose(got, expected(engine, sasrec, vectors), atol=1e-4)
    items = pl.read_parquet(engine.folder / "items.parquet").tail(2)
    assert items.rows() == [(31, "7", 0, "Seven"), (32, "8", 0, None)]
    described = json.loads((engine.folder / "engine.json").read_text())
    assert described["new_items"] == {"added": 2, "replaced": 0, "by": "vectors"}
    assert "2 items are newer than the model" in (engine.folder / "README.md").read_text()


NEAR = {
    "csv": 'item_id,neighbours,weights\nnew,film-1 film-5,1 3\nlone,film-7,2\n',
    "jsonl": '{"item_id": "new", "neighbours": ["film-1", "film-5"], "weights": [1, 3]}\n'
    '{"item_id": "lone", "neighbours": ["film-7"], "weights": [2]}\n',
    "tsv": 'item_id\tneighbours\tweights\nnew\t["film-1", "film-5"]\t[1, 3]\n'
    'lone\t["film-7"]\t[2]\n',
}  # fmt: skip


@pytest.mark.parametrize("kind", NEAR)
def test_a_new_item_competes_with_its_neighbours(
    kind: str, sasrec: Artefact, dataset: Artefact, table: np.ndarray, tmp_path: Path
) -> None:
    file = tmp_path / f"new.{kind}"
    file.write_text(NEAR[kind])
    engine = extended(sasrec, dataset, tmp_path, items=str(file))
    mean = (table[1] + 3 * table[5]) / 4
    length = (np.linalg.norm(table[1]) + 3 * np.linalg.norm(table[5])) / 4
    vectors = np.stack([mean * length / np.linalg.norm(mean), table[7]])
    assert np.allclose(
        engine.scores(HISTORIES)[:, -2:], expected(engine, sasrec, vectors), atol=1e-4
    )


def test_neighbours_are_counted_in_a_log(
    sasrec: Artefact, dataset: Artefact, table: np.ndarray, tmp_path: Path
) -> None:
    """``new`` stands next to film-1 twice, and two places from film-2 once: weights 2 and 1/2."""
    log = tmp_path / "log.csv"
    rows = ["a,film-1,1", "a,new,2", "b,film-1,1", "b,new,2", "b,other,3", "b,film-2,4"]
    log.write_text("\n".join(["user_id,item_id,timestamp", *rows, ""]))
    only = tmp_path / "only.csv"
    only.write_text("item_id,title,neighbours\nnew,New,\n")
    engine = extended(sasrec, dataset, tmp_path, items=str(only), cooccurrence=str(log))
    mean = (2 * table[1] + 0.5 * table[2]) / 2.5
    length = (2 * np.linalg.norm(table[1]) + 0.5 * np.linalg.norm(table[2])) / 2.5
    vector = mean * length / np.linalg.norm(mean)
    got = engine.scores(HISTORIES)[:, -1:]
    assert engine.description.num_items == 31
    assert np.allclose(got, expected(engine, sasrec, vector[None]), atol=1e-4)
    every = extended(sasrec, dataset, tmp_path / "every", cooccurrence=str(log))
    assert every.description.num_items == 32  # new and other


def test_known_items_are_replaced_only_if_asked(
    sasrec: Artefact, dataset: Artefact, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "slmc.export")
    vector = np.linspace(-1, 1, WIDTH, dtype=np.float32)
    file = tmp_path / "new.jsonl"
    rows = [{"item_id": "film-3", "vector": vector.tolist(), "title": "Third"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UsageError, match="has no item that the model does not have"):
        extended(sasrec, dataset, tmp_path, items=str(file))
    engine = extended(sasrec, dataset, tmp_path, items=str(file), replace=True)
    scores = engine.scores(HISTORIES)
    assert scores.shape[1] == 30
    # The first history has the item itself, whose vector is another one now.
    assert np.allclose(scores[1, 2], expected(engine, sasrec, vector[None])[1, 0], atol=1e-4)
    assert pl.read_parquet(engine.folder / "items.parquet")["title"][2] == "Third"


BAD = {
    "width": ({"vector": [[1.0] * 3]}, "the vector of 'x' has 3 numbers"),
    "missing": ({"vector": [None]}, "the vector of 'x' has no numbers"),
    "zeros": ({"vector": [[0.0] * WIDTH]}, "the vector of 'x' is all zeros"),
    "nan": ({"vector": [[float("nan")] * WIDTH]}, "not a finite number"),
    "both": ({"vector": [[1.0]], "neighbours": [["film-1"]]}, "has both columns"),
    "unknown": ({"neighbours": [["a", "b"]]}, "100.0% of the 2 neighbours are not in"),
    "lonely": ({"neighbours": [[]]}, "no item has a neighbour that the model knows"),
    "uneven": ({"neighbours": [["film-1"]], "weights": [[1, 2]]}, "has 1 neighbours and 2 weights"),
    "negative": ({"neighbours": [["film-1"]], "weights": [[-1]]}, "not a positive number"),
    "number": ({"vector": [1.0]}, "has the type Float64, not lists"),
    "texts": ({"title": ["x"]}, "did not come from texts"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_is_refused(
    case: str, sasrec: Artefact, dataset: Artefact, tmp_path: Path
) -> None:
    columns, message = BAD[case]
    file = tmp_path / "new.parquet"
    pl.DataFrame({"item_id": ["x"], **columns}).write_parquet(file)
    with pytest.raises((UsageError, DataError), match=message):
        extended(sasrec, dataset, tmp_path, items=str(file))
    assert not (tmp_path / "engine").exists()


def test_a_file_with_an_item_twice_is_refused(
    sasrec: Artefact, dataset: Artefact, tmp_path: Path
) -> None:
    file = tmp_path / "new.csv"
    file.write_text("item_id,neighbours\nx,film-1\nx,film-2\n")
    with pytest.raises(DataError, match="the item 'x' has 2 rows"):
        extended(sasrec, dataset, tmp_path, items=str(file))
