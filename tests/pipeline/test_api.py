"""``slmc.run`` and what it returns, with fake stages."""

from pathlib import Path
from types import ModuleType

import pytest
from running import RECIPE

import slmc
from slmc.errors import RecipeError, UsageError


def recipe(*gates: str) -> Path:
    file = Path("r.yaml")
    listed = "".join(f"  - {gate}\n" for gate in gates)
    file.write_text(RECIPE + ("gates:\n" + listed if gates else ""))
    return file


@pytest.mark.parametrize(
    ("gates", "verdict", "passed"),
    [
        ([], "none", True),
        (["{metric: size_mb, max: 3}"], "pass", True),
        (["{metric: size_mb, max: 2}"], "regression", False),
        (["{metric: size_mb, max: 3}", "{metric: size_mb, max: 2}"], "regression", False),
        (["{metric: mrr, baseline: teach, max_drop: 20%}"], "inconclusive", False),
    ],
)
def test_the_verdict_of_a_run(
    gates: list[str], verdict: str, passed: bool, fakes: ModuleType
) -> None:
    run = slmc.run(recipe(*gates))
    assert (run.verdict, run.passed) == (verdict, passed)
    assert [one.on for one in run.verdicts] == ["export"] * len(gates)
    assert repr(run) == f"<Run runs/x: {verdict}, 12 steps>"


def test_a_run_that_ends_early_judges_nothing(fakes: ModuleType) -> None:
    run = slmc.run(recipe("{metric: size_mb, max: 3}"), until="distill")
    assert [*run.steps][-1] == "evaluate.distill"
    assert run.verdict in ("pass", "none")


def test_steps_by_id(fakes: ModuleType) -> None:
    run = slmc.run(recipe())
    assert run.path == Path("runs/x")
    step = run.steps["distill"]
    assert (step.id, step.stage, step.status) == ("distill", "distill", "run")
    assert step.path == step.artefact.path and (step.path / "slmc.json").is_file()
    assert slmc.run(recipe()).steps["distill"].status == "hit"
    assert {*run.evaluations} == {"teach", "distill", "distill.control", "export"}
    assert run.evaluations["export"].n == fakes.USERS


@pytest.mark.parametrize("overrides", [{"distill.layers": 3}, ["distill.layers=3"]])
def test_overrides(overrides: dict[str, object] | list[str], fakes: ModuleType) -> None:
    run = slmc.run(recipe(), overrides, out="elsewhere")
    assert run.path == Path("elsewhere")
    assert run.steps["distill"].artefact.manifest.config["layers"] == 3


def test_wrong_calls(fakes: ModuleType) -> None:
    with pytest.raises(UsageError) as caught:
        slmc.run(recipe(), "distill.layers=3")
    assert str(caught.value) == "overrides: expected a dict or a list, not 'distill.layers=3'."
    with pytest.raises(RecipeError):
        slmc.run(recipe(), {"distil.layers": 3})
    with pytest.raises(RecipeError):
        slmc.run("no-such-recipe")
