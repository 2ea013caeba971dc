"""``slmc recommend`` of a whole run."""

import json

import pytest

from slmc.commands import cli
from slmc.pipeline import RunResult


def test_the_last_engine_of_a_run_recommends(
    finished: RunResult, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = []
    engine = [step.artefact for step in finished.steps if step.stage == "export"][-1]
    for path in (finished.run_dir, engine.path):
        assert cli.call(["recommend", str(path), "i1", "i2", "-k", "3", "--json", "-q"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert len(answers[0]) == 3 and answers[0] == answers[1]


def test_a_folder_that_is_no_run(finished: RunResult, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["recommend", str(finished.run_dir.parent), "i1"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
