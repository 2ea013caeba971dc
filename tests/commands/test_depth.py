"""``slmc depth``: what it prints, its exit codes, and a student made from its report."""

import json
from pathlib import Path

import pytest

from slmc import artefact
from slmc.artefact import Artefact
from slmc.commands import cli
from slmc.recipe import load

QUICK = ["--histories", "20", "--dtype", "fp32"]
Captured = pytest.CaptureFixture[str]


def slmc(*arguments: object) -> int:
    return cli.call([str(argument) for argument in arguments])


@pytest.fixture
def inputs(teacher: Artefact, dataset: Artefact) -> list[object]:
    return [teacher.path, "--data", dataset.path, *QUICK]


def test_the_path_is_the_result_and_the_table_goes_aside(
    inputs: list[object], tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "depth"
    assert slmc("depth", *inputs, "--max-drop", "100%", "-o", out) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    assert "influence by layer: 0 " in printed.err and "1 of 3 layers (" in printed.err
    names = set(artefact.load(out).manifest.files)
    assert names == {"depth.svg", "metrics.json", "per_user.parquet"}


def test_json_has_every_number(inputs: list[object], capsys: Captured) -> None:
    budget = ["--max-drop", "hr@5=100%", "--ways", "first,interval", "--depths", "2"]
    assert slmc("depth", *inputs, *budget, "--json", "-q") == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["kind"], printed["stage"]) == ("report", "depth")
    numbers = printed["metrics"]
    assert numbers["metric"] == "hr@5" and set(numbers["ways"]) == {"first", "interval"}
    assert len(numbers["redundancy"]["cka"]) == 4 and numbers["choice"]["depth"] == 2


def test_a_budget_that_no_depth_meets_is_exit_1(inputs: list[object], capsys: Captured) -> None:
    assert slmc("depth", *inputs, "--max-drop", "0%", "-q") == 1
    printed = capsys.readouterr()
    assert Path(printed.out.strip(), "slmc.json").is_file()  # the report is there all the same
    error = printed.err.splitlines()[-2:]
    assert error[0].startswith(
        "error: depth: no depth below 3 layers is within 0% of ndcg@10; the nearest is "
    )
    assert error[1].startswith(
        "  Allow a larger --max-drop, or fit students with --train. 80 users"
    )


def test_what_has_no_layers_of_an_llm_is_refused(
    dataset: Artefact, sasrec: Artefact, baselines: Artefact, capsys: Captured
) -> None:
    assert slmc("depth", sasrec.path, "--data", dataset.path) == 2
    assert "is a Sasrec, not a recommender on an LLM." in capsys.readouterr().err
    assert slmc("depth", baselines.path, "--data", dataset.path) == 2
    assert "is a report (stage baselines), not a model." in capsys.readouterr().err


def test_an_engine_is_refused(
    teacher: Artefact, dataset: Artefact, tmp_path: Path, capsys: Captured
) -> None:
    with artefact.draft(tmp_path / "engine") as work:
        (work.path / "model.onnx").write_text("x")
        from slmc.config import Seeded

        engine = work.seal(kind="engine", stage="export", config=Seeded(), inputs={})
    assert slmc("depth", engine.path, "--data", dataset.path) == 2
    assert capsys.readouterr().err == (
        f"error: {engine.path} is an engine (stage export), not a model.\n"
        f"  Name a model; `slmc show {engine.path}` shows what this one is.\n"
    )


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--max-drop", "ce=1%"], "max_drop: 1% of ce would pass models that rank far worse"),
        (["--depths", "3"], "depths: 3 is not less than the 3 layers of the model."),
        (["--ways", "last"], "--ways: should be 'first', 'influence', 'angular' or 'interval'"),
    ],
)
def test_a_wrong_option(
    inputs: list[object], option: list[str], message: str, capsys: Captured
) -> None:
    assert slmc("depth", *inputs, *option) == 2
    assert message in capsys.readouterr().err


def test_a_student_takes_its_layers_from_the_report(
    log_csv: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLMC_CACHE", str(tmp_path / "cache"))

    def path_of(*arguments: object) -> str:
        assert slmc(*arguments, "-q") == 0
        return capsys.readouterr().out.strip()

    data = path_of("data", "prepare", log_csv, "--history", "10")
    backbone = "random://llama?layers=2&hidden=16&heads=2&kv_heads=2&intermediate=32"
    quick = ["--epochs", "1", "--dtype", "fp32"]
    teacher = path_of("teach", "--data", data, "--backbone", backbone, *quick)
    report = path_of("depth", teacher, "--max-drop", "100%", *QUICK)
    student = [
        "distill", teacher, "--layers.from", "depth", "--losses.supervise", "null", *quick
    ]  # fmt: skip
    assert slmc(*student, "-q") == 2
    assert "layers: {from: depth} needs the report of a depth step" in capsys.readouterr().err
    saved = tmp_path / "saved.yaml"
    made = path_of(*student, "--depth", report, "--save-recipe", saved)
    assert artefact.load(Path(made)).manifest.metrics["layers"] == 1
    assert load(str(saved)).step("distill").inputs["depth"] == "depth"
    assert slmc("run", saved, "--plan", "--json", "--runs", tmp_path) == 0
    plan = {step["id"]: step["status"] for step in json.loads(capsys.readouterr().out)}
    assert plan["depth"] == plan["distill"] == "hit"
