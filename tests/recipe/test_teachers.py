"""Several teachers in a recipe: ``teachers: [teach, sasrec]``."""

from pathlib import Path

import pytest
from recipe_files import TEACH, TOP, faults, read

from slmc.commands.cli import call
from slmc.recipe import load, resolved_yaml
from slmc.recipe.schema import schema


def recipe(settings: str) -> str:
    body = f"layers: 2, blocks: 2, losses: {{logits: 1.0}}, {settings}"
    return f"{TOP}{TEACH}  - distill: {{{body}}}\n"


def test_the_list_gives_the_roles_in_order(file: Path) -> None:
    steps = read(file, recipe("teachers: [teach, sasrec], control: true")).steps
    known = {step.id: step for step in steps}
    assert known["distill"].inputs == {"data": "prepare", "teacher": "teach", "teacher2": "sasrec"}


def test_a_control_has_the_first_teacher_only(file: Path) -> None:
    """It needs the item table and the LLM, and must not wait for another teacher."""
    control = read(file, recipe("teachers: [teach, sasrec], control: true")).step("distill.control")
    assert control.inputs == {"data": "prepare", "teacher": "teach", "like": "distill"}


def test_a_list_of_one_is_that_teacher(file: Path) -> None:
    assert read(file, recipe("teachers: [teach]")).steps == read(file, recipe("")).steps


def test_the_resolved_recipe_names_the_list(file: Path, tmp_path: Path) -> None:
    first = read(file, recipe("teachers: [teach, sasrec], control: true"))
    text = resolved_yaml(first, tmp_path)
    assert "teachers:" in text and "teacher2" not in text
    file.write_text(text)
    assert load("./r.yaml", env={}).steps == first.steps


def test_set_changes_the_list(file: Path) -> None:
    step = read(file, recipe(""), "distill.teachers=[teach, sasrec]").step("distill")
    assert step.inputs["teacher2"] == "sasrec"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("teachers: teach", "distill.teachers: a list of 1 to 4 steps, such as [teach, sasrec]"),
        ("teachers: []", "distill.teachers: a list of 1 to 4 steps, such as [teach, sasrec]"),
        ("teachers: [teach, teach]", "distill.teachers: 'teach' is in the list twice"),
        (
            "teacher: teach, teachers: [teach, sasrec]",
            "distill.teachers: teacher is set too; the list has all of them",
        ),
        (
            "teachers: [teach, sasrek]",
            "distill.teachers.1: there is no step 'sasrek'. Did you mean 'sasrec'?",
        ),
        (
            "teachers: [teach, baselines]",
            "distill.teachers.1: needs a model, but 'baselines' makes a report",
        ),
    ],
)
def test_faults_name_the_entry(file: Path, settings: str, message: str) -> None:
    assert faults(file, recipe(settings)) == [f"./r.yaml:6: {message}"]


def test_a_role_of_the_list_is_no_key_of_its_own(file: Path) -> None:
    (fault,) = faults(file, recipe("teacher2: sasrec"))
    assert fault.startswith("./r.yaml:6: distill.teacher2: ")


def test_the_schema_has_the_list() -> None:
    keys = schema()["properties"]["steps"]["items"]["properties"]["distill"]["anyOf"][0][
        "properties"
    ]
    assert keys["teachers"]["maxItems"] == 4 and "teacher2" not in keys


def test_the_command_takes_further_teachers(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["distill", "--help"]) == 0
    assert "--teacher2" in capsys.readouterr().out
