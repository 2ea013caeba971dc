"""A run with seeds and a sweep on real stages: what it makes, chooses and reports."""

import json
import statistics
from pathlib import Path

import polars as pl
import pytest

from slmc import pipeline, recipe
from slmc.artefact import Artefact
from slmc.evaluation.metrics import rank_metric
from slmc.pipeline import RunResult
from slmc.report import write

RECIPE = """
version: 1
name: points
data: {{source: {log}, history: 10}}
dtype: fp32
sweep: {{distill.layers: [1, 2]}}
steps:
- sasrec: {{epochs: 4, dim: 16, rows: 16, warmup: 5}}
- teach:
    backbone: "random://llama?layers=2&hidden=32&heads=4&kv_heads=2&intermediate=64"
    epochs: 3
    lr: 3e-3
    rows: 8
    warmup: 5
    must_beat: {{otherwise: warn}}
- distill:
    seeds: [17, 18]
    blocks: 1
    epochs: 1
    lr: 3e-3
    rows: 8
    losses: {{logits: 1.0}}
- export: {{top_k: 20}}
gates:
- {{metric: ndcg@10, on: distill@best, baseline: teach, max_drop: 90%}}
- {{metric: overlap@10, on: export, baseline: source, min: 0.5}}
"""
COPIES = [f"distill@layers={layers}@{seed}" for layers in (1, 2) for seed in (17, 18)]


@pytest.fixture(scope="module")
def repeated(log_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    folder = tmp_path_factory.mktemp("points")
    file = folder / "points.yaml"
    file.write_text(RECIPE.format(log=log_csv))
    return pipeline.run(recipe.load(file), run_dir=folder / "out", report=write)


def mean_ndcg(report: Artefact, cutoff: str) -> float:
    per_user = pl.read_parquet(report.file("per_user.parquet"))
    column = "rank_unseen" if summary(report)["protocol"]["exclude_seen"] else "rank"
    return float(rank_metric(cutoff, per_user[column].to_numpy()).mean())


def summary(report: Artefact) -> dict[str, dict[str, bool]]:
    read: dict[str, dict[str, bool]] = json.loads(report.file("metrics.json").read_bytes())
    return read


def test_each_copy_is_trained_with_its_settings_and_seed(repeated: RunResult) -> None:
    artefacts = repeated.artefacts()
    configs = [artefacts[name].manifest.config for name in COPIES]
    assert [(one["layers"], one["seed"]) for one in configs] == [(1, 17), (1, 18), (2, 17), (2, 18)]
    weights = {artefacts[name].manifest.files["model.safetensors"] for name in COPIES}
    assert len(weights) == len(COPIES)
    teachers = {artefacts[name].manifest.parents["teacher"] for name in COPIES}
    assert teachers == {artefacts["teach"].digest}


def test_the_engine_is_made_from_the_best_on_validation(repeated: RunResult) -> None:
    artefacts = repeated.artefacts()
    on_valid = {name: artefacts[f"valid.{name}"] for name in COPIES}
    assert {summary(one)["protocol"]["split"] for one in on_valid.values()} == {"valid"}
    values = {name: mean_ndcg(report, "ndcg") for name, report in on_valid.items()}
    points = {
        layers: statistics.fmean(v for name, v in values.items() if f"layers={layers}@" in name)
        for layers in (1, 2)
    }
    layers = max(points, key=lambda one: points[one])
    seed = max((17, 18), key=lambda one: values[f"distill@layers={layers}@{one}"])
    best = f"distill@layers={layers}@{seed}"
    assert repeated.chooser.chosen == {"distill@best": best}
    assert artefacts["export"].manifest.parents["model"] == artefacts[best].digest
    assert repeated.verdicts[0].on == f"distill@layers={layers}"
    assert repeated.verdicts[1].baseline == best
    for point in repeated.points:
        (which,) = point.settings.values()
        assert point.best == (which == layers)
        assert point.valid == pytest.approx(points[which], abs=1e-12)


def test_the_points_have_the_means_of_their_evaluations(repeated: RunResult) -> None:
    for point in repeated.points:
        names = [f"{point.step}@{seed}" for seed in point.seeds]
        values = [mean_ndcg(repeated.evaluations[name], "ndcg@10") for name in names]
        assert point.values == pytest.approx(values, abs=1e-12)
        assert point.spread == pytest.approx(statistics.stdev(values), abs=1e-12)
        assert point.interval.low < point.mean < point.interval.high


def test_the_main_table_has_a_row_for_each_point(repeated: RunResult) -> None:
    text = (repeated.run_dir / "summary.md").read_text()
    rows = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")]
    main = rows[: rows.index("| export") + 1]
    assert [row.strip("|\\* ") for row in main[2:]] == [
        "popularity",
        "markov",
        "sasrec",
        "teach",
        "distill@layers=1",
        "distill@layers=2",
        "export",
    ]
    assert "Steps that are repeated have the mean over their seeds" in text
    card = (repeated.run_dir / "model-card.md").read_text()
    assert repeated.chooser.chosen["distill@best"] in card
