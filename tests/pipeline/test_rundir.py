"""The folder of a run: links, lock and what is left alone."""

import json
from pathlib import Path
from types import ModuleType

import pytest
from running import ORDER, digests, made

from slmc.artefact import load
from slmc.errors import UsageError
from slmc.pipeline import plan
from slmc.recipe import load as read


def test_the_folder_of_a_run(fakes: ModuleType) -> None:
    result = made()
    folder = Path("runs/x")
    links = {path.name: path.resolve() for path in folder.iterdir() if path.is_symlink()}
    assert links == {
        f"{i:02d}-{step.id}": step.artefact.path for i, step in enumerate(result.steps, start=1)
    }
    assert load(folder / "04-teach").digest == digests(result)["teach"]
    again = read(folder / "recipe.resolved.yaml")
    assert again == result.recipe
    lock = json.loads((folder / "recipe.lock").read_text())
    assert lock["recipe"] == "x"
    assert lock["sources"] == {"prepare": {"log": "a,b,1"}}
    assert set(lock["versions"]) == {"pydantic", "slmc"}
    assert {name: step["key"] for name, step in lock["steps"].items()} == {
        step.id: step.key.digest for step in result.steps
    }
    for step in result.steps:
        assert step.artefact.manifest.versions == lock["steps"][step.id]["parts"]["versions"]
    assert lock["steps"]["distill"]["parts"]["inputs"]["teacher"] == digests(result)["teach"]


def test_links_of_an_earlier_run_go(fakes: ModuleType) -> None:
    made()
    result = made("distill.control=false")
    names = sorted(path.name for path in Path("runs/x").iterdir() if path.is_symlink())
    assert names == [f"{i:02d}-{step.id}" for i, step in enumerate(result.steps, start=1)]


def test_a_folder_of_something_else_is_left_alone(fakes: ModuleType) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").touch()
    with pytest.raises(UsageError) as caught:
        made(run_dir=Path("mine"))
    assert caught.value.what == "mine exists and was not made by slmc; it was not changed."
    with pytest.raises(UsageError) as caught:
        made(run_dir=Path("log.csv"))
    assert caught.value.what == "log.csv cannot be written: File exists."
    assert fakes.calls() == []


@pytest.mark.parametrize("text", ["", "[]", '{"steps": 3}', '{"steps": {"teach": 3}}', "\x00"])
def test_a_lock_that_cannot_be_read_is_written_anew(fakes: ModuleType, text: str) -> None:
    made()
    Path("runs/x/recipe.lock").write_text(text)
    assert not any(step.changed for step in plan(read("r.yaml")))
    made()
    assert len(json.loads(Path("runs/x/recipe.lock").read_text())["steps"]) == len(ORDER)
