"""Runs that end before their last step, because a check of a step itself says no."""

import json
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
from running import RECIPE, digests, made, statuses

import slmc.report
from slmc.artefact import load
from slmc.errors import VerdictError
from slmc.pipeline import plan, run, run_stage
from slmc.recipe import load as read

WRITE = slmc.report.write
STOP = "teach.must_beat={otherwise: stop}"
WORSE = "the teacher is significantly worse than markov: mrr 0.1, not 0.2"
GATE = "gates:\n  - {metric: ndcg@10, on: distill, baseline: teach, max_drop: 1%}\n"


@pytest.fixture
def reports(fakes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The fakes, and the real report."""
    monkeypatch.setattr(slmc.report, "write", WRITE)
    return fakes


def refused() -> VerdictError:
    Path("teach.worse").touch()
    with pytest.raises(VerdictError) as caught:
        made(STOP, gates=GATE)
    return caught.value


def test_a_refused_teacher_ends_the_run_and_is_found_again(
    fakes: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    error = refused()
    assert (error.what, error.exit_code) == (f"teach: {WORSE}.", 1)
    assert error.remedy == (
        "Train it longer or at another learning rate, give it more layers, or set "
        "must_beat.otherwise: warn, which reuses this teacher from the cache."
    )
    assert statuses(plan(read("r.yaml", sets=[STOP])))["teach"] == "hit"
    begun = fakes.calls()
    assert str(refused()) == str(error)
    assert fakes.calls() == begun  # a hit is refused like what has just been made
    caplog.clear()
    going_on = made()  # otherwise: warn is the default
    assert statuses(going_on.steps)["teach"] == "hit"
    assert fakes.calls()[len(begun)] == "evaluate"
    assert going_on.ended is None and WORSE in caplog.messages


@pytest.mark.parametrize("ends", ["teach", "export"])
def test_a_run_that_ends_early_still_writes_its_report(
    reports: ModuleType, ends: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "slmc.pipeline")
    if ends == "teach":
        why = refused().what
    else:
        Path("export.crash").write_text("verdict")
        with pytest.raises(VerdictError) as caught:
            made(gates=GATE)
        why = caught.value.what
    folder = Path("runs/x")
    told = json.loads((folder / "metrics.json").read_text())
    assert told["ended"] == {"step": ends, "why": why}
    assert bool(told["verdicts"]) is (ends == "export")
    cases = {
        case.get("classname"): case
        for case in ElementTree.parse(folder / "junit.xml").iter("testcase")
    }
    failure = cases[f"steps.{ends}"].find("failure")
    assert failure is not None and failure.text == why
    sentence = f"The run ended at step {ends}. {why}"
    assert sentence in (folder / "report.html").read_text()
    assert (folder / "summary.md").read_text().startswith("## x: failed\n")
    written = [message for message in caplog.messages if message.startswith("wrote ")]
    for name in ("report.html", "summary.md", "junit.xml"):
        assert f"wrote {folder / name}" in written


def test_a_whole_run_has_not_ended_early(reports: ModuleType) -> None:
    result = made(until="distill")
    told = json.loads(Path("runs/x/metrics.json").read_text())
    assert result.ended is None and told["ended"] is None
    assert "The run ended" not in Path("runs/x/report.html").read_text()


def test_a_single_stage_keeps_what_it_refuses(fakes: ModuleType, tmp_path: Path) -> None:
    Path("teach.worse").touch()
    Path("r.yaml").write_text(RECIPE)
    result = run(read("r.yaml"), until="teach")
    inputs = {role: result.artefacts()[role] for role in ("sasrec", "baselines")}
    inputs["data"] = result.artefacts()["prepare"]
    config = read("r.yaml", sets=[STOP]).step("teach").config
    begun = fakes.calls()
    with pytest.raises(VerdictError, match="significantly worse than markov"):
        run_stage("teach", config, inputs, out=tmp_path / "teacher")
    assert fakes.calls() == begun
    assert load(tmp_path / "teacher").digest == digests(result)["teach"]
