import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from slmc.artefact import Artefact, draft
from slmc.errors import UsageError
from slmc.evaluation.config import EvaluateConfig
from slmc.evaluation.evaluate import evaluate
from slmc.export.config import ExportConfig, ParityConfig
from slmc.export.evaluation import evaluate_engine
from slmc.export.export import export

Place = Callable[[str], Path]


ROUNDING = 1e-4
"""Scores of random weights have a spread near 10, float32 leaves 1e-5 of it."""


def test_an_engine_ranks_as_its_model(
    dataset: Artefact, model: Artefact, packed: Artefact, place: Place
) -> None:
    config = EvaluateConfig(batch=7)
    of_engine = evaluate_engine(config, {"data": dataset, "engine": packed}, place("engine"))
    of_model = evaluate(config, {"data": dataset, "model": model}, place("model-report"))
    ours, theirs = (
        pl.read_parquet(report.path / "per_user.parquet") for report in (of_engine, of_model)
    )
    assert ours.schema == theirs.schema
    for column in ("user", "target", "rank", "rank_unseen", "top_items"):
        assert ours[column].equals(theirs[column]), column
    assert np.abs(ours["ce"].to_numpy() - theirs["ce"].to_numpy()).max() < ROUNDING
    summary = json.loads((of_engine.path / "metrics.json").read_text())
    assert summary == of_engine.manifest.metrics
    assert summary["n"] == 40
    assert of_engine.manifest.kind == "report"
    assert of_engine.manifest.stage == "evaluate_engine"


@pytest.mark.slow
def test_an_engine_with_rescoring_ranks_by_its_second_scores(
    dataset: Artefact, model: Artefact, place: Place
) -> None:
    settings = ExportConfig(table="int4+rescore", top_k=5, parity=ParityConfig(histories=8))
    engine = export(settings, {"data": dataset, "model": model}, place("engine"))
    config = EvaluateConfig()
    of_engine = evaluate_engine(config, {"data": dataset, "engine": engine}, place("report"))
    of_model = evaluate(config, {"data": dataset, "model": model}, place("model-report"))
    ours, theirs = (
        pl.read_parquet(report.path / "per_user.parquet") for report in (of_engine, of_model)
    )
    best = theirs["rank"] <= 5
    assert ours.filter(best)["rank"].equals(theirs.filter(best)["rank"])
    assert 0 < best.sum() < (ours["rank"] > 5).sum() == (~best).sum()
    tops = (report["top_items"].list.head(5) for report in (ours, theirs))
    assert next(tops).equals(next(tops))


def test_another_catalogue_is_refused(dataset: Artefact, packed: Artefact, tmp_path: Path) -> None:
    with draft(tmp_path / "other") as work:
        pl.DataFrame({"item": ["a", "b"]}).write_parquet(work.path / "items.parquet")
        other = work.seal(kind="dataset", stage="prepare", config=ExportConfig(), inputs={})
    with pytest.raises(UsageError) as caught:
        evaluate_engine(EvaluateConfig(), {"data": other, "engine": packed}, tmp_path / "report")
    assert str(caught.value) == (
        f"{packed.path} and {other.path} do not have the same items in the same rows."
    )
