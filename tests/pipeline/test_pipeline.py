"""Keys, cache and order, on stages that need no torch."""

import json
from pathlib import Path
from types import ModuleType

import pytest
from running import ORDER, RECIPE, digests, made, statuses

from slmc.artefact import load
from slmc.distill.config import DistillConfig
from slmc.errors import ArtefactError, RecipeError
from slmc.pipeline import PlannedStep, StepResult, exit_code, plan, run, run_stage, store
from slmc.pipeline.keys import Outside, key_of
from slmc.recipe import load as read


def test_the_order_and_the_result(fakes: ModuleType) -> None:
    seen: list[PlannedStep | StepResult] = []
    result = made(on_step=seen.append)
    assert [step.id for step in result.steps] == ORDER
    assert set(statuses(result.steps).values()) == {"run"}
    assert set(result.evaluations) == {"teach", "distill", "distill.control", "export"}
    assert result.artefacts()["export"].manifest.kind == "engine"
    assert [(type(step), step.id) for step in seen] == [
        (kind, name) for name in ORDER for kind in (PlannedStep, StepResult)
    ]
    assert all(step.key.digest == step.artefact.manifest.key for step in result.steps)
    assert exit_code(result) == 0


def test_a_second_run_is_answered_from_the_cache(fakes: ModuleType) -> None:
    first = made()
    begun = fakes.calls()
    second = made()
    assert fakes.calls() == begun
    assert set(statuses(second.steps).values()) == {"hit"}
    assert digests(second) == digests(first)


def test_two_empty_caches_give_the_same_digests(
    fakes: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = made()
    monkeypatch.setenv("SLMC_CACHE", str(tmp_path / "other"))
    assert digests(made()) == digests(first)


@pytest.mark.parametrize(
    ("change", "part", "run_again"),
    [
        ("distill.lr=0.5", "config.lr", ORDER[5:]),
        ("teach.layers=3", "config.layers", ORDER[3:]),
        ("seed=3", "config.seed", ORDER),
        ("bench.rounds=4", "config.rounds", ["bench"]),
        ("evaluate.batch=9", None, [n for n in ORDER if n.startswith("evaluate.")]),
        ("evaluate.exclude_seen=true", "config.exclude_seen", ORDER[1:]),
        ("dtype=bf16", None, ORDER[1:]),
        ("device=cpu", None, []),
        ("teach.checkpoint_s=5", None, []),
    ],
)
def test_what_a_change_runs_again(
    fakes: ModuleType, change: str, part: str | None, run_again: list[str]
) -> None:
    made()
    planned = plan(read("r.yaml", sets=[change]))
    changed = [step.id for step in planned if step.status != "hit"]
    # A step after one that has to run cannot be known to be a hit yet.
    assert changed[:1] == run_again[:1]
    if part is not None:
        assert planned[ORDER.index(run_again[0])].changed == [part]
    again = [step.id for step in made(change).steps if step.status == "run"]
    assert set(again) <= set(run_again) and again[:1] == run_again[:1]


def test_a_change_of_the_log_or_of_a_library_changes_the_key(
    fakes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    made()
    Path("log.csv").write_text("other")
    first = plan(read("r.yaml"))
    assert first[0].changed == ["fingerprint.log"]
    assert first[1] == PlannedStep("sasrec", "sasrec", None, "run", ["inputs.data"])
    Path("log.csv").write_text("a,b,1")
    monkeypatch.setattr("slmc.pipeline.keys.versions", lambda stage: {"slmc": "9"})
    assert plan(read("r.yaml"))[0].changed == ["versions.pydantic", "versions.slmc"]


def test_a_plan_runs_nothing_and_writes_nothing(fakes: ModuleType, tmp_path: Path) -> None:
    planned = plan(read("r.yaml"))
    assert [step.id for step in planned] == ORDER
    assert set(statuses(planned).values()) == {"run"}
    assert not any(step.changed for step in planned)
    assert fakes.calls() == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "r.yaml"]


def test_until(fakes: ModuleType) -> None:
    gate = "gates:\n  - {metric: size_mb, max: 1}\n"
    result = made(until="distill", gates=gate)
    assert [step.id for step in result.steps] == ORDER[:7]
    assert exit_code(result) == 0
    assert result.notes == ["gate size_mb on export: not judged; steps that did not run: export"]
    assert statuses(made(gates=gate).steps)["distill"] == "hit"
    with pytest.raises(RecipeError) as caught:
        made(until="exprt")
    assert caught.value.what == "--until exprt: there is no such step. Did you mean 'export'?"


def test_one_stage_alone_has_the_key_that_a_recipe_gives_it(fakes: ModuleType) -> None:
    result = made()
    artefacts = result.artefacts()
    inputs = {"data": artefacts["prepare"], "teacher": artefacts["teach"]}
    config = result.recipe.step("distill").config
    begun = fakes.calls()
    alone = run_stage("distill", config, inputs, out=Path("student"))
    assert fakes.calls() == begun
    assert alone.digest == artefacts["distill"].digest
    assert load(Path("student"), kind="model").digest == alone.digest
    with pytest.raises(ArtefactError) as caught:
        run_stage("distill", config, inputs, out=Path("student"))
    assert caught.value.what == "student exists already; it was not changed."
    assert run_stage("distill", config, inputs, out=Path("student"), force=True) == alone
    Path("mine").mkdir()
    with pytest.raises(ArtefactError, match="was not made by slmc"):
        run_stage("distill", config, inputs, out=Path("mine"), force=True)


def test_an_artefact_is_found_by_its_digest(fakes: ModuleType) -> None:
    teacher = made(until="teach").artefacts()["teach"]
    found = store.find(teacher.digest)
    assert found is not None and found.path == teacher.path
    assert store.find("0" * 64) is None
    assert store.find("../objects") is None


def test_keys_name_what_differs() -> None:
    config, outside = DistillConfig(dtype="fp32"), Outside()
    key = key_of("distill", config, {"teacher": "a", "data": "b"}, outside)
    other = key_of("distill", config.model_copy(update={"lr": 1.0}), {"data": "b"}, outside)
    assert key.changed(other.parts) == ["config.lr", "inputs.teacher"]
    assert key.changed(json.loads(json.dumps(key.parts))) == []
    assert store.look(key.digest) is None


def test_sasrec_is_made_an_engine_measured_and_gated(fakes: ModuleType) -> None:
    engine = RECIPE + "  - export: {id: sasrec-engine, model: sasrec}\n"
    gates = [
        "{metric: ndcg@10, on: sasrec-engine, baseline: source, max_drop: 1%}",
        "{metric: ndcg@10, on: sasrec-engine, baseline: teach, max_drop: 1%}",
        "{metric: ndcg@10, on: sasrec, baseline: sasrec-engine, max_drop: 1%}",
    ]
    Path("r.yaml").write_text(engine + "gates:\n" + "".join(f"  - {gate}\n" for gate in gates))
    result = run(read("r.yaml"))
    assert [step.id for step in result.steps][:3] == ["prepare", "sasrec", "evaluate.sasrec"]
    parents = result.artefacts()["sasrec-engine"].manifest.parents
    assert parents["model"] == result.artefacts()["sasrec"].digest
    assert [(one.on, one.baseline, one.outcome) for one in result.verdicts] == [
        ("sasrec-engine", "sasrec", "pass"),
        ("sasrec-engine", "teach", "regression"),
        ("sasrec", "sasrec-engine", "pass"),
    ]
