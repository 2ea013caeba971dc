"""Folders of runs in ``slmc show`` and ``slmc diff``, and the times that a cache keeps."""

import errno
import json
import os
from pathlib import Path
from types import ModuleType

import pytest
from running import ORDER, made

from slmc import cache
from slmc.commands import cli
from slmc.errors import BrokenRunError, MissingError, UsageError
from slmc.pipeline import store

GATES = "gates:\n  - {metric: ndcg@10, on: distill, baseline: teach, max_drop: 3%}\n"
Captured = pytest.CaptureFixture[str]


def test_a_run_is_shown(fakes: ModuleType, capsys: Captured) -> None:
    made(gates=GATES)
    assert cli.call(["show", "runs/x"]) == 0
    out = capsys.readouterr().out
    for name in ORDER:
        assert name in out
    assert "2.5" in out and "gate ndcg@10 of distill" in out
    assert cli.call(["show", "runs/x", "runs/x/04-teach", "--json"]) == 0
    run, step = json.loads(capsys.readouterr().out)
    assert list(run["steps"]) == ORDER and run["complete"]
    assert run["steps"]["teach"]["digest"] == step["digest"]
    assert run["steps"]["teach"]["link"] == "04-teach"
    assert run["recipe"]["name"] == "x" and run["verdicts"][0]["outcome"] == "regression"


def test_a_run_whose_artefacts_are_gone_is_shown(fakes: ModuleType, capsys: Captured) -> None:
    made()
    cache.root().rename("elsewhere")
    assert cli.call(["show", "runs/x"]) == 0
    assert "distill.control" in capsys.readouterr().out


def test_a_run_that_stopped_says_so(fakes: ModuleType, capsys: Captured) -> None:
    Path("distill.crash").write_text("")
    with pytest.raises(BrokenRunError):
        made()
    assert cli.call(["show", "runs/x"]) == 0
    out = capsys.readouterr().out
    assert "did not finish" in out and "teach" in out and "export" not in out


def test_two_runs_differ_in_what_was_set_and_in_what_came_of_it(
    fakes: ModuleType, capsys: Captured
) -> None:
    made(gates=GATES, run_dir=Path("runs/a"))
    made("distill.lr=1e-3", "data.users=20", gates=GATES, run_dir=Path("runs/b"))
    assert cli.call(["diff", "runs/a", "runs/b", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["distill.lr"] == [2e-4, 1e-3]
    assert found["data.users"] == [None, 20]
    assert not [name for name in found if "key" in name or "digest" in name]
    assert cli.call(["diff", "runs/a", "runs/a"]) == 0
    assert capsys.readouterr().out == "no difference\n"


def test_a_run_and_an_artefact_are_not_compared(fakes: ModuleType, capsys: Captured) -> None:
    made()
    assert cli.call(["diff", "runs/x", "runs/x/04-teach"]) == 2
    assert capsys.readouterr().err == (
        "error: runs/x is the folder of a run, but runs/x/04-teach is not.\n"
        "  Name two runs, or two artefacts, such as steps of a run.\n"
    )


def test_a_run_from_the_cache_keeps_the_times_of_its_steps(fakes: ModuleType) -> None:
    Path("teach.wait").touch()
    first = {step.id: step.seconds for step in made().steps}
    again = made(run_dir=Path("runs/again"))
    assert {step.status for step in again.steps} == {"hit"}
    assert {step.id: step.seconds for step in again.steps} == first
    assert (first["teach"] or 0) >= 0.5


def test_the_time_of_a_step_that_went_on_counts_both_tries(fakes: ModuleType) -> None:
    Path("teach.wait").touch()
    Path("teach.crash").write_text("")
    with pytest.raises(BrokenRunError):
        made()
    Path("teach.crash").unlink()
    (teach,) = (step for step in made().steps if step.id == "teach")
    assert teach.status == "resume" and (teach.seconds or 0) >= 1.0


def test_a_time_that_is_not_known(fakes: ModuleType) -> None:
    (first, *_) = made().steps
    (cache.root() / "times" / first.key.digest).write_text("soon")
    assert store.seconds(first.key.digest) is None
    assert made().steps[0].seconds is None


def test_a_full_disk_in_a_step_is_the_environments(fakes: ModuleType) -> None:
    Path("distill.crash").write_text("full")
    with pytest.raises(MissingError) as caught:
        made()
    assert caught.value.what == "step distill: No space left on device."
    assert caught.value.remedy == (
        f"Free some space, or name a folder on another disk. The cache is {cache.root()} "
        "(SLMC_CACHE). What was computed is kept. Resume with `slmc run r.yaml`."
    )
    left = [path.name for path in cache.objects().rglob("*") if path.name == "payload.bin"]
    assert len(left) == 5


def test_a_folder_of_runs_that_cannot_be_written_is_not_begun(
    fakes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("slmc.pipeline.rundir.write_whole", full)
    with pytest.raises(UsageError, match="cannot be written: No space left on device"):
        made(run_dir=Path("new/runs/x"))
    assert not Path("new").exists()
