"""Runs with ``seeds`` and ``sweep``: what is shared, what is chosen, what is reported."""

import json
import math
import statistics
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
from running import RECIPE, digests, made, statuses

from slmc import report
from slmc.commands import cli
from slmc.distill.config import Losses
from slmc.errors import BrokenRunError, RecipeError
from slmc.evaluation.bootstrap import mean_over_seeds, paired_over_seeds
from slmc.pipeline import RunResult, plan, run
from slmc.pipeline.points import read_point
from slmc.recipe import load as read
from slmc.report.tables import rows_of, teacher_of

SWEEP = "sweep: {distill.layers: [2, 3]}\n"
SEEDS = "distill.seeds=[17, 18, 19]"
K = 10
CONFIDENCE = 0.975
EMPTY = Losses().model_dump(mode="json")
"""The losses of a control."""
write = report.write
"""The fakes leave the report out; these tests put it back."""


def ranks(split: str, worse: float, **config: Any) -> dict[str, Any]:
    return {"split": split, "worse": worse, "config": config}


def say(*entries: dict[str, Any]) -> None:
    """How the models of the fakes rank."""
    Path("ranks.json").write_text(json.dumps(entries))


def ndcg(result: RunResult, step_id: str) -> list[float]:
    """NDCG@10 of each user, by its definition for a single target."""
    file = result.evaluations[step_id].file("per_user.parquet")
    column = pl.read_parquet(file)["rank_unseen"].to_list()
    return [1 / math.log2(rank + 1) if rank <= K else 0.0 for rank in column]


def test_seeds_share_every_step_before_them(fakes: ModuleType) -> None:
    result = made(SEEDS)
    ran = Counter(fakes.calls())
    # Student and control for each seed; each ranked on test, and the students on validation.
    assert {name: ran[name] for name in ("prepare", "sasrec", "baselines", "teach", "bench")} == {
        name: 1 for name in ("prepare", "sasrec", "baselines", "teach", "bench")
    }
    assert (ran["distill"], ran["export"], ran["evaluate"], ran["evaluate_engine"]) == (6, 1, 10, 1)
    made(SEEDS)
    assert Counter(fakes.calls()) == ran
    # One more seed costs that seed alone, and a run without seeds costs nothing.
    made("distill.seeds=[17, 18, 19, 20]")
    assert Counter(fakes.calls())["distill"] == 8
    before = Counter(fakes.calls())
    alone = made()
    assert Counter(fakes.calls()) - before == Counter()
    assert digests(alone)["distill"] == digests(result)["distill@17"]
    assert digests(alone)["distill.control"] == digests(result)["distill.control@17"]


def test_the_order_the_links_and_the_lock(fakes: ModuleType) -> None:
    result = made("distill.seeds=2", until="distill")
    names = [
        "prepare",
        "sasrec",
        "baselines",
        "teach",
        "evaluate.teach",
        "distill@17",
        "evaluate.distill@17",
        "valid.distill@17",
        "distill@18",
        "evaluate.distill@18",
        "valid.distill@18",
    ]
    assert [step.id for step in result.steps] == names
    links = sorted(path.name for path in Path("runs/x").iterdir() if path.is_symlink())
    assert links == [f"{i:02d}-{name}" for i, name in enumerate(names, start=1)]
    assert list(json.loads(Path("runs/x/recipe.lock").read_text())["steps"]) == names
    assert read("runs/x/recipe.resolved.yaml") == result.recipe
    assert made("distill.seeds=2", until="distill@17").steps[-1].id == "valid.distill@17"
    assert made("distill.seeds=2", until="distill.control").steps[-1].id == (
        "evaluate.distill.control@18"
    )


def test_the_best_is_chosen_on_validation_and_not_on_test(fakes: ModuleType) -> None:
    say(
        ranks("valid", 0.5, layers=3, seed=18),  # the best seed
        ranks("valid", 1.0, layers=3),  # of the best point
        ranks("valid", 0.4, layers=2, seed=17),  # the best of all, of a point that is worse
        ranks("valid", 3.0, layers=2),
        ranks("test", 9.0, layers=3),
        ranks("test", 0.0, layers=2),
    )
    gate = "gates:\n  - {metric: mrr, on: distill@best, min: 0.0}\n"
    gate += "  - {metric: overlap@10, on: export, baseline: source, min: 0.5}\n"
    Path("r.yaml").write_text(SWEEP + RECIPE + gate)
    recipe = read("r.yaml", sets=[SEEDS])
    result = run(recipe)
    parent = result.artefacts()["export"].manifest.parents["model"]
    assert parent == digests(result)["distill@layers=3@18"]
    assert result.chooser.chosen == {"distill@best": "distill@layers=3@18"}
    assert [(one.on, one.seeds, one.chosen) for one in result.verdicts] == [
        ("distill@layers=3", 3, True),
        ("export", 1, False),
    ]
    assert result.verdicts[1].baseline == "distill@layers=3@18"
    assert [(one.step, one.best) for one in result.points] == [
        ("distill@layers=2", False),
        ("distill@layers=3", True),
    ]
    told = json.loads(Path("runs/x/metrics.json").read_text())
    assert told["chosen"] == result.chooser.chosen
    # A plan of the finished run knows the choice too.
    assert {step.status for step in plan(recipe)} == {"hit"}


def test_a_choice_follows_a_cross_entropy_downwards(fakes: ModuleType) -> None:
    say(ranks("valid", 0.0, seed=18), ranks("valid", 5.0))
    result = made_with("select_by: ce\n", "distill.seeds=2")
    assert result.chooser.chosen == {"distill@best": "distill@18"}


def made_with(top: str, *sets: str, gates: str = "", **options: Any) -> RunResult:
    Path("r.yaml").write_text(top + RECIPE + gates)
    return run(read("r.yaml", sets=sets), **options)


def test_equal_copies_are_chosen_in_their_order(fakes: ModuleType) -> None:
    result = made_with(SWEEP, "distill.seeds=2")
    assert result.chooser.chosen == {"distill@best": "distill@layers=2@17"}


def test_the_plan_of_a_new_run_does_not_know_the_choice(fakes: ModuleType) -> None:
    planned = {step.id: step for step in plan(read("r.yaml", sets=["distill.seeds=2"]))}
    assert planned["export"].key is None and planned["export"].status == "run"
    made("distill.seeds=2", until="distill@17")
    planned = {step.id: step for step in plan(read("r.yaml", sets=["distill.seeds=2"]))}
    assert planned["distill@17"].status == "hit" and planned["distill@18"].status == "run"
    assert planned["export"].key is None


def test_a_broken_seed_is_resumed_and_the_others_are_kept(fakes: ModuleType) -> None:
    made("distill.seeds=2", until="distill@17")
    Path("distill.crash").write_text("")
    with pytest.raises(BrokenRunError) as caught:
        made("distill.seeds=2")
    assert caught.value.what.startswith("step distill@18: ")
    Path("distill.crash").unlink()
    status = statuses(made("distill.seeds=2").steps)
    assert (status["distill@17"], status["distill@18"]) == ("hit", "resume")


def test_an_unknown_step_of_until_is_refused(fakes: ModuleType) -> None:
    with pytest.raises(RecipeError) as caught:
        made("distill.seeds=2", until="distill@19")
    assert caught.value.what == (
        "--until distill@19: there is no such step. Did you mean 'distill@18'?"
    )


def test_the_table_has_the_numbers_of_a_plain_computation(fakes: ModuleType) -> None:
    say(
        *(ranks("test", 0.3 * (seed - 16), seed=seed, losses=EMPTY) for seed in (17, 18, 19)),
        ranks("test", 2.5, seed=17),
        ranks("test", 1.5, seed=18),
        ranks("test", 0.5, seed=19),
        ranks("valid", 2.0, seed=17),
        ranks("valid", 1.0),
    )
    result = made_with("", SEEDS)
    (point,) = result.points
    names = ["distill@17", "distill@18", "distill@19"]
    users = [ndcg(result, name) for name in names]
    controls = [ndcg(result, name.replace("distill", "distill.control")) for name in names]
    teacher = ndcg(result, "teach")
    means = [statistics.fmean(values) for values in users]
    assert point.seeds == [17, 18, 19] and point.n == len(teacher)
    assert point.values == pytest.approx(means, abs=1e-12)
    assert point.mean == pytest.approx(statistics.fmean(means), abs=1e-12)
    assert point.spread == pytest.approx(statistics.stdev(means), abs=1e-12)
    assert point.control is not None and point.baseline is not None
    other = statistics.fmean(statistics.fmean(values) for values in controls)
    assert point.control.value == pytest.approx(other, abs=1e-12)
    assert point.control.change.change == pytest.approx(point.mean - other, abs=1e-12)
    assert point.control.step == "distill.control" and point.baseline.step == "teach"
    ratio = point.mean / statistics.fmean(teacher) - 1
    assert point.baseline.relative is not None
    assert point.baseline.relative.change == pytest.approx(ratio, abs=1e-12)
    # The intervals are those for new users and new seeds.
    arrays = [np.array(values) for values in (users, controls, teacher)]
    options: Any = {"seed": 17, "confidence": CONFIDENCE}
    assert point.control.change == paired_over_seeds(arrays[0], arrays[1], **options).absolute
    assert point.baseline.relative == paired_over_seeds(arrays[0], arrays[2], **options).relative
    assert point.interval == mean_over_seeds(arrays[0], **options)


def test_every_form_of_the_report_has_the_table(
    fakes: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "write", write)
    say(
        ranks("test", 2.5, seed=17),
        ranks("test", 1.5, seed=18),
        ranks("test", 0.5),
        ranks("valid", 1.0),
    )
    Path("r.yaml").write_text(SWEEP + RECIPE)
    call = ["run", "r.yaml", "--set", "distill.seeds=2", "--until", "distill.control"]
    assert cli.call([*call, "--json"]) == 0
    points = json.loads(capsys.readouterr().out)["points"]
    assert [one["step"] for one in points] == [
        "distill@layers=2",
        "distill@layers=3",
    ]
    assert points[0]["settings"] == {"distill.layers": 2}
    assert cli.call(call) == 0
    out = capsys.readouterr().err
    assert "each seed" in out and "(best)" in out
    folder = Path("runs/x")
    shown = [f"{value:.4f}" for value in points[0]["values"]]
    spread = f"{points[0]['spread']:.4f}"
    suite = ElementTree.parse(folder / "junit.xml").getroot()[0]
    for text in (
        (folder / "summary.md").read_text(),
        (folder / "report.html").read_text(),
        suite.findtext("system-out") or "",
    ):
        assert ", ".join(shown) in text
        assert spread in text and "17, 18" in text
    told = json.loads((folder / "metrics.json").read_text())
    assert told["points"] == points
    assert [asdict(read_point(one)) for one in points] == points


GATE = "gates:\n  - {metric: ndcg@10, on: distill, baseline: %s, max_drop: %s}\n"


@pytest.mark.parametrize(
    ("baseline", "budget", "outcome"),
    [("teach", "90%", "pass"), ("teach", "0.001", "regression"), ("distill.control", "1%", "pass")],
)
def test_a_gate_is_judged_over_the_seeds(
    fakes: ModuleType, baseline: str, budget: str, outcome: str
) -> None:
    (verdict,) = made(SEEDS, gates=GATE % (baseline, budget)).verdicts
    assert (verdict.outcome, verdict.on, verdict.seeds) == (outcome, "distill", 3)
    assert verdict.baseline == baseline
    assert "mean over 3 seeds, users and seeds resampled, one-sided 95 % bounds" in verdict.sentence


def test_seeds_that_differ_widen_the_interval_of_a_gate(fakes: ModuleType) -> None:
    gate = GATE % ("teach", "40%")
    assert made(SEEDS, gates=gate).verdicts[0].outcome == "pass"
    say(ranks("test", 0.0, seed=17), ranks("test", 0.5, seed=18), ranks("test", 2.5, seed=19))
    (verdict,) = made_again(gate).verdicts
    assert verdict.outcome == "inconclusive" and verdict.needed_users is None
    assert verdict.sentence.endswith("max_drop 40%; more seeds or more users may decide it")


def made_again(gate: str) -> RunResult:
    """The same run in an empty cache."""
    import os

    os.environ["SLMC_CACHE"] += "-2"
    return made(SEEDS, gates=gate)


def test_sizes_and_bounds_over_seeds(fakes: ModuleType) -> None:
    say(ranks("test", 0.0, seed=17), ranks("test", 0.5, seed=18), ranks("test", 2.5, seed=19))
    gates = "gates:\n  - {metric: size_mb, on: distill, max: 3}\n"
    gates += "  - {metric: ndcg@10, on: distill, min: 0.05}\n"
    gates += "  - {metric: ndcg@10, on: distill@18, min: 0.05}\n"
    gates += "  - {metric: overlap@10, on: distill, baseline: teach, min: 0.9}\n"
    size, bound, single, overlap = made(SEEDS, gates=gates).verdicts
    assert size.sentence == (
        "size_mb of distill: 2.5 MB (files needed for serving, largest of 3 seeds): pass, max 3.0"
    )
    assert (bound.outcome, bound.seeds) == ("pass", 3)
    assert (single.on, single.seeds) == ("distill@18", 1)
    assert bound.low is not None and single.low is not None
    assert bound.low < single.low
    assert (overlap.value, overlap.low, overlap.baseline) == (1.0, 1.0, "teach")


def test_gates_of_a_run_that_ends_early_name_what_is_missing(fakes: ModuleType) -> None:
    gates = "gates:\n  - {metric: ndcg@10, on: distill@best, baseline: teach, max_drop: 1%}\n"
    result = made_with(SWEEP, "distill.seeds=2", gates=gates, until="distill@layers=2")
    assert result.notes[-1] == (
        "gate ndcg@10 on distill@best: not judged; steps that did not run: distill@best"
    )
    assert [point.step for point in result.points] == ["distill@layers=2"]


def test_all_training_is_repeated_by_the_seeds_of_a_recipe(fakes: ModuleType) -> None:
    gates = GATE % ("teach", "90%")
    result = made_with("seeds: [1, 2]\n", gates=gates)
    ran = Counter(fakes.calls())
    assert [ran[name] for name in ("prepare", "sasrec", "baselines", "teach")] == [1, 2, 2, 2]
    assert [point.step for point in result.points] == ["sasrec", "teach", "distill"]
    _, teach, distill = result.points
    assert teach.baseline is not None and teach.baseline.step == "sasrec"
    assert distill.baseline is not None and distill.baseline.step == "teach"
    # The bench compares the engine with the teacher of its own seed.
    bench = result.artefacts()["bench"].manifest.parents
    assert bench["baseline"] == digests(result)["teach@1"]
    assert result.verdicts[0].baseline == "teach"


def test_a_sweep_of_sasrec_has_a_row_for_each_point(fakes: ModuleType) -> None:
    result = made_with("sweep: {sasrec.dim: [32, 64]}\n", until="distill")
    assert [point.step for point in result.points] == [
        "sasrec@dim=32",
        "sasrec@dim=64",
        "teach@dim=32",
        "teach@dim=64",
        "distill@dim=32",
        "distill@dim=64",
    ]
    teach = result.points[3]
    assert teach.seeds == [] and teach.spread is None
    assert teach.baseline is not None and teach.baseline.step == "sasrec@dim=64"
    rows = rows_of(result, metric="ndcg@10", teacher=teacher_of(result), timed={})
    assert [row.step for row in rows][:4] == [
        "popularity",
        "markov",
        "sasrec@dim=32",
        "sasrec@dim=64",
    ]


def test_a_swept_export_is_measured_at_each_point(fakes: ModuleType) -> None:
    gates = "gates:\n  - {metric: overlap@10, on: export@best, baseline: source, min: 0.5}\n"
    result = made_with("sweep: {export.top_k: [20, 50]}\n", "distill.seeds=2", gates=gates)
    engines = [name for name in result.artefacts() if name.startswith("export")]
    assert engines == ["export@top_k=20", "export@top_k=50"]
    assert [name for name in result.artefacts() if name.startswith("bench")] == [
        "bench@top_k=20",
        "bench@top_k=50",
    ]
    (verdict,) = result.verdicts
    assert (verdict.on, verdict.baseline) == ("export@top_k=20", "distill@17")


def test_a_gate_against_the_model_of_an_engine_is_one_of_the_same_model(fakes: ModuleType) -> None:
    gates = "gates:\n  - {metric: ndcg@10, on: export, baseline: distill, max_drop: 1%}\n"
    result = made("distill.seeds=2", gates=gates)
    assert result.recipe.is_of_same_model(result.recipe.gates[0])
    assert result.verdicts[0].baseline == "distill@17"
    assert result.notes == []


def test_runs_with_seeds_are_shown_and_compared(
    fakes: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    made("distill.seeds=[17, 18]", run_dir=Path("runs/a"))
    made("distill.seeds=[17, 19]", run_dir=Path("runs/b"))
    assert cli.call(["show", "runs/a"]) == 0
    out = capsys.readouterr().out
    assert "distill@18" in out and "distill@best is distill@17" in out
    assert "each seed" in out
    assert cli.call(["diff", "runs/a", "runs/b", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["distill.seeds"] == [[17, 18], [17, 19]]
    assert found["size_mb.distill@18"] == [2.5, None]


def test_a_smoke_run_with_seeds(fakes: ModuleType) -> None:
    Path("r.yaml").write_text(SWEEP + RECIPE)
    result = run(read("r.yaml", sets=["distill.seeds=2"], smoke=True))
    assert [point.step for point in result.points] == [
        "distill@layers=2",
        "distill@layers=3",
    ]
