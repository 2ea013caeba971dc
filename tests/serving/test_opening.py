"""From a path to a model or an engine, and how it ranks."""

import json
from pathlib import Path

import pytest

import slmc
from slmc.artefact import Artefact
from slmc.errors import ArtefactError, UsageError


@pytest.fixture
def run(model: Artefact, engine: Artefact, catalogue: Artefact, tmp_path: Path) -> Path:
    """The folder of a run: dataset, model, engine."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.lock").write_text(json.dumps({"command": "slmc run x", "steps": {}}))
    for number, (step, one) in enumerate(
        {"prepare": catalogue, "teach": model, "export": engine}.items(), start=1
    ):
        (folder / f"{number:02}-{step}").symlink_to(one.path)
    return folder


def test_a_run_opens_its_last_engine_else_its_last_model(run: Path, model: Artefact) -> None:
    engine = slmc.load(run)
    assert isinstance(engine, slmc.Engine)
    assert repr(engine) == f"<Engine of 40 items: {run / '03-export'}>"
    assert isinstance(slmc.load(str(run / "02-teach")), slmc.Recommender)
    (run / "03-export").unlink()
    assert isinstance(slmc.load(run), slmc.Recommender)
    assert isinstance(slmc.load(model), slmc.Recommender)
    (run / "02-teach").unlink()
    with pytest.raises(ArtefactError) as caught:
        slmc.load(run)
    assert str(caught.value) == f"the run {run} has no model and no engine."


def test_a_link_that_leads_nowhere(run: Path, tmp_path: Path) -> None:
    (run / "03-export").unlink()
    (run / "03-export").symlink_to(tmp_path / "gone")
    for path in (run, run / "03-export"):
        with pytest.raises(ArtefactError) as caught:
            slmc.load(path)
        assert str(caught.value) == (
            f"{run / '03-export'} links to {tmp_path / 'gone'}, which no longer exists."
        )
        assert "slmc run x --until export" in caught.value.remedy


def test_paths_without_a_recommender(catalogue: Artefact, tmp_path: Path) -> None:
    for path, what in {
        catalogue.path: f"{catalogue.path} is a dataset (stage prepare): it recommends nothing.",
        tmp_path: f"{tmp_path} is not an artefact: it has no slmc.json.",
        tmp_path / "no": f"{tmp_path / 'no'} does not exist.",
    }.items():
        with pytest.raises(ArtefactError) as caught:
            slmc.load(path)
        assert str(caught.value) == what
    for wrong in (None, 7, "", " "):
        with pytest.raises(UsageError) as refused:
            slmc.load(wrong)  # type: ignore[arg-type]
        assert str(refused.value).startswith("path: expected the folder of a model, an engine")
    with pytest.raises(UsageError):
        slmc.load(catalogue, threads=0)


def test_sessions_of_an_engine(engine: Artefact) -> None:
    several, one = slmc.load(engine, threads=3), slmc.load(engine)
    assert several.ranker.workers == 3 and one.ranker.workers == 1
    assert several.recommend([101, 102]).ids == one.recommend([101, 102]).ids


def test_how_a_model_and_its_engine_rank(
    model: Artefact, engine: Artefact, catalogue: Artefact
) -> None:
    by_model = slmc.evaluate(slmc.load(model), catalogue, metrics=["ndcg@10", "mrr"])
    by_engine = slmc.evaluate(engine.path, catalogue.path, metrics=["ndcg@10", "mrr"])
    assert {*by_model} == {"ndcg@10", "mrr"} and by_model.n == 30
    assert dict(by_engine) == pytest.approx(dict(by_model), abs=1e-6)
    assert by_model.per_user.height == 30
    assert repr(by_model).startswith("<Evaluation n = 30: ")
    with pytest.raises(UsageError) as caught:
        slmc.evaluate(model)
    assert str(caught.value) == (
        f"the dataset that {model.path} was made from is not in the cache."
    )
    with pytest.raises(UsageError) as caught:
        slmc.evaluate(model, catalogue, metric="mrr")
    assert str(caught.value) == "evaluate: metric: Extra inputs are not permitted."
    with pytest.raises(ArtefactError):
        slmc.evaluate(catalogue, catalogue)
