"""An index of the item vectors: what it finds, what it says, and when it is withheld."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import slmc
from slmc.artefact import Artefact
from slmc.errors import UsageError, VerdictError
from slmc.export.config import ExportConfig
from slmc.export.export import export
from slmc.export.index import build, measure
from slmc.export.runtime.vector_index import ABOUT, VectorIndex

faiss = pytest.importorskip("faiss")
KINDS = ("faiss", "hnsw")
BEST = {"faiss": 10, "hnsw": 5}
"""top_k of the engine of each kind: ten, and fewer."""


def clustered(number: int, width: int = 16) -> np.ndarray:
    """Vectors around 50 centres, of norms 0.5 to 2, as item tables have them."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(50, width))
    vectors = centres[rng.integers(50, size=number)] + 0.4 * rng.normal(size=(number, width))
    norms = rng.uniform(0.5, 2, size=(number, 1)) / np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors * norms).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_it_finds_the_items_of_the_largest_inner_product(kind: build.Kind) -> None:
    vectors = clustered(5000)
    users = clustered(400)[200:]
    scores = users @ vectors.T
    exact = np.argsort(-scores, axis=1, kind="stable")[:, :10] + 1
    index = build.build(kind, vectors, threads=1)
    measure.tune(index, users, exact, 0.97)
    rows, found = index.search(users, 10)
    assert measure.recall(rows, exact) >= 0.97
    true = np.take_along_axis(scores, rows - 1, axis=1)
    assert np.allclose(found, true, atol=1e-4)
    assert (np.diff(found, axis=1) <= 1e-4).all()


@pytest.mark.parametrize("kind", KINDS)
def test_more_effort_finds_more(kind: build.Kind) -> None:
    vectors, users = clustered(5000), clustered(300)
    exact = np.argsort(-(users @ vectors.T), axis=1)[:, :10] + 1
    index = build.build(kind, vectors, threads=1)
    efforts = list(build.efforts(index))
    recalls = []
    for effort in (efforts[0], efforts[-1]):
        build.set_effort(index, effort)
        recalls.append(measure.recall(index.search(users, 10)[0], exact))
    assert recalls[0] < recalls[1] > 0.99


def test_recall_is_the_share_of_the_exact_items() -> None:
    exact = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    found = np.array([[4, 1, 9, 2, 3], [8, 7, 6, 5, 1]])
    assert measure.recall(found, exact) == (3 / 4 + 1) / 2


@pytest.fixture
def worth_it() -> Iterator[None]:
    """Let a small catalogue have an index, though exact search is faster there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "faster", lambda _: True)
        yield


@pytest.fixture(scope="module")
def indexed(
    sasrec: Artefact, dataset: Artefact, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Artefact]:
    made, place = {}, tmp_path_factory.mktemp("indexed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "faster", lambda _: True)
        for kind in KINDS:
            config = ExportConfig(top_k=BEST[kind], index=kind)
            made[kind] = export(config, {"data": dataset, "model": sasrec}, place / kind)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_index_recommends_what_the_engine_does(
    kind: str, indexed: dict[str, Artefact]
) -> None:
    exact, near = slmc.load(indexed[kind].path), slmc.load(indexed[kind].path, index=True)
    for history in (["film-1", "film-2"], ["film-20"], ["film-3", "unknown", "film-9"]):
        one, other = exact.recommend(history, k=5), near.recommend(history, k=5)
        assert [row.item for row in one] == [row.item for row in other]
        assert np.allclose([r.score for r in one], [r.score for r in other], atol=1e-4)
    allowed = near.recommend(["film-1"], k=2, allow=["film-4", "film-5", "film-6"])
    assert {row.item for row in allowed} <= {"film-4", "film-5", "film-6"}
    about = json.loads((indexed[kind].path / ABOUT).read_text())
    assert about["kind"] == kind and about[f"recall@{BEST[kind]}"] >= 0.95
    card = (indexed[kind].path / "README.md").read_text()
    assert f"of the {BEST[kind]} best of\n30 items" in card
    assert set(about["latency"]) == {"1", "32"}
    assert near.embed([["film-1"]]).shape == (1, 16)


@pytest.mark.parametrize("kind", KINDS)
def test_the_code_of_the_card_runs(kind: str, indexed: dict[str, Artefact]) -> None:
    folder = indexed[kind].path
    blocks = (folder / "README.md").read_text().split("```python\n")[1:]
    code = "".join(block.partition("```")[0] for block in blocks)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "film-" in done.stdout.splitlines()[-1]


def test_it_is_withheld_where_exact_search_is_faster(
    sasrec: Artefact, dataset: Artefact, tmp_path: Path
) -> None:
    inputs = {"data": dataset, "model": sasrec}
    with pytest.raises(VerdictError, match=r"is not 1\.1 times as fast as exact search") as caught:
        export(ExportConfig(index="hnsw", top_k=BEST["hnsw"]), inputs, tmp_path / "engine")
    assert "Export without --index" in caught.value.remedy
    assert not (tmp_path / "engine").exists()


@pytest.mark.usefixtures("worth_it")
def test_it_is_withheld_if_it_finds_too_few(
    sasrec: Artefact, dataset: Artefact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "recall", lambda *_: 0.9)
    inputs = {"data": dataset, "model": sasrec}
    with pytest.raises(VerdictError, match=r"finds 90\.0% of the 10 best items"):
        export(ExportConfig(index="faiss", top_k=BEST["faiss"]), inputs, tmp_path / "engine")


def test_an_engine_without_one_says_how_to_get_it(packed: Artefact, model: Artefact) -> None:
    with pytest.raises(UsageError, match="has no index"):
        slmc.load(packed.path, index=True)
    with pytest.raises(UsageError, match="only an engine has an index"):
        slmc.load(model.path, index=True)


def test_a_damaged_index_is_refused(indexed: dict[str, Artefact], tmp_path: Path) -> None:
    from slmc.errors import ArtefactError

    (tmp_path / "index").mkdir()
    (tmp_path / "index/items.faiss").write_bytes(b"not an index")
    (tmp_path / ABOUT).write_text('{"largest_norm": null}')
    with pytest.raises(ArtefactError, match="is not an index"):
        VectorIndex.open(tmp_path)


def test_options_that_need_another_are_refused() -> None:
    with pytest.raises(ValueError, match="index_recall: there is no index"):
        ExportConfig(index_recall=0.9)
    with pytest.raises(ValueError, match="replace: needs a file of items"):
        ExportConfig(replace=True)
