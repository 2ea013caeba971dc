"""Gates: the exit code, what a smoke run binds, and what a test set can see."""

import json
from pathlib import Path
from types import ModuleType

import pytest
from running import RECIPE, made

from slmc.errors import RecipeError, UndecidedError
from slmc.pipeline import RunResult, exit_code, run
from slmc.recipe import load as read


@pytest.mark.parametrize(
    ("gate", "code"),
    [
        ("{metric: size_mb, max: 3}", 0),
        ("{metric: size_mb, max: 2}", 1),
        ("{metric: mrr, baseline: source, max_drop: 1%}", 0),
        ("{metric: mrr, baseline: teach, max_drop: 90%}", 0),
        ("{metric: mrr, baseline: teach, max_drop: 0.001}", 1),
        ("{metric: ndcg@10, on: distill, baseline: teach, max_drop: 1%}", 1),
    ],
)
def test_gates_decide_the_exit_code(fakes: ModuleType, gate: str, code: int) -> None:
    result = made(gates=f"gates:\n  - {gate}\n")
    assert len(result.verdicts) == 1
    assert exit_code(result) == code
    told = json.loads(Path("runs/x/metrics.json").read_text())
    assert told["verdicts"][0]["failed"] is bool(code)
    assert told["verdicts"][0]["binding"] is True
    assert told["verdicts"][0]["sentence"] == result.verdicts[0].sentence


def test_a_smoke_run_judges_but_does_not_bind(fakes: ModuleType) -> None:
    gate = "gates:\n  - {metric: mrr, baseline: teach, max_drop: 0.1%}\n"
    Path("r.yaml").write_text(RECIPE + gate)
    result = run(read("r.yaml", smoke=True))
    assert [verdict.failed for verdict in result.verdicts] == [True]
    assert exit_code(result) == 0
    assert result.run_dir == Path("runs/x-smoke")
    assert result.notes == [
        "gate mrr on export: judged, but not binding: the models of a smoke run are nearly random"
    ]


POWER_NOTE = (
    "gate ndcg@10 on distill, max_drop 1%: the smallest drop that 40 users can detect is about "
    "14.3 %; a candidate as good as its baseline would pass with a probability of 0 % (assumed "
    "correlation between the two: 0.9)"
)


def test_a_gate_that_the_test_set_cannot_see_is_told_before_the_long_steps(
    fakes: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    gate = "gates:\n  - {metric: ndcg@10, on: distill, baseline: teach, max_drop: 1%}\n"
    assert made(gates=gate).notes == [POWER_NOTE]
    assert caplog.messages == [POWER_NOTE]
    begun = fakes.calls()
    with pytest.raises(RecipeError) as caught:
        made("power=stop", "seed=3", gates=gate)
    assert caught.value.what == POWER_NOTE
    assert fakes.calls() == [*begun, "prepare", "sasrec", "baselines"]


@pytest.mark.parametrize(
    "gate",
    [
        "{metric: ndcg@10, on: distill, baseline: teach, max_drop: 20%}",
        "{metric: ndcg@10, baseline: source, max_drop: 0.1%}",
        "{metric: size_mb, max: 3}",
    ],
)
def test_a_gate_that_can_be_seen_needs_no_note(fakes: ModuleType, gate: str) -> None:
    assert made("power=stop", gates=f"gates:\n  - {gate}\n").notes == []


def test_nothing_to_rank(fakes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fakes, "USERS", 0)
    with pytest.raises(UndecidedError) as caught:
        made()
    assert caught.value.what == (
        "no user of log.csv has a test target after the split: there is nothing to rank."
    )
    assert fakes.calls() == ["prepare"]


def test_gates_of_which_none_could_be_judged(fakes: ModuleType) -> None:
    Path("r.yaml").write_text(RECIPE + "gates:\n  - {metric: size_mb, max: 3}\n")
    assert exit_code(RunResult(read("r.yaml"), Path())) == 5
