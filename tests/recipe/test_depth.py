"""A depth step in a recipe: what reads its report, what its key depends on, what is refused."""

from pathlib import Path

import pytest
from recipe_files import TEACH, TOP, faults, read

from slmc.distill.config import DistillConfig
from slmc.distill.depth_config import DepthConfig
from slmc.pipeline.keys import Outside, key_of
from slmc.recipe import resolved_yaml

FROM = "distill: {layers: {from: depth}}"
ANOTHER = "teach: {id: other, backbone: 'random://llama', layers: 2}"
SASREC = "'sasrec' is a SASRec, but depth needs a recommender on an LLM. Export it directly."
BEFORE = "Put a step `- depth: {}` before this one."
WHOLE = "a student that is the model of another step keeps its layers. Leave one of them out."


def recipe(*steps: str) -> str:
    return TOP + TEACH + "".join(f"  - {step}\n" for step in steps)


def test_the_report_is_an_input_of_the_student_and_of_its_control(file: Path) -> None:
    text = recipe("depth: {}", "distill: {layers: {from: depth}, control: true}")
    loaded = read(file, text)
    assert loaded.step("depth").inputs == {"data": "prepare", "teacher": "teach"}
    expected = {"data": "prepare", "teacher": "teach", "depth": "depth"}
    assert loaded.step("distill").inputs == expected
    assert loaded.step("distill.control").inputs == expected | {"like": "distill"}
    config = loaded.step("distill").config
    assert isinstance(config, DistillConfig) and not isinstance(config.layers, int)


def test_from_names_a_step(file: Path) -> None:
    steps = ["depth: {id: coarse, max_drop: 5%}", "depth: {}"]
    loaded = read(file, recipe(*steps, "distill: {layers: {from: coarse}}"))
    assert loaded.step("distill").inputs["depth"] == "coarse"
    same = read(file, recipe(*steps, "distill: {layers: {from: depth}, depth: coarse}"))
    assert same.step("distill") == loaded.step("distill")


def test_what_does_not_read_a_report_does_not_depend_on_it(file: Path) -> None:
    loaded = read(file, recipe("depth: {}", "distill: {}", "distill: {id: b, select: interval}"))
    assert all("depth" not in loaded.step(name).inputs for name in ("distill", "b"))


def test_influence_is_read_from_a_report_of_the_same_teacher(file: Path) -> None:
    by_influence = "distill: {id: i, select: influence, layers: 2, blocks: 2}"
    steps = ["depth: {}", ANOTHER, "depth: {id: second, teacher: other}"]
    assert read(file, recipe(*steps, by_influence)).step("i").inputs["depth"] == "second"
    of_first = by_influence.replace("{", "{teacher: teach, ", 1)
    assert read(file, recipe(*steps, of_first)).step("i").inputs["depth"] == "depth"
    assert "depth" not in read(file, recipe(by_influence)).step("i").inputs


def test_the_key_of_the_student_depends_on_the_report(file: Path) -> None:
    config = read(file, recipe("depth: {}", FROM)).step("distill").config
    inputs = {"data": "a", "teacher": "b"}
    keys = [
        key_of("distill", config, inputs | depth, Outside()).digest
        for depth in ({"depth": "c"}, {"depth": "d"}, {})
    ]
    assert len(set(keys)) == 3


def test_the_resolved_recipe_reads_as_the_same(file: Path) -> None:
    loaded = read(file, recipe("depth: {max_drop: hr@5=2%}", FROM))
    again = read(file, resolved_yaml(loaded, file.parent.resolve()))
    assert again.steps == loaded.steps
    config = again.step("depth").config
    assert isinstance(config, DepthConfig) and (config.metric, config.max_drop) == ("hr@5", "2%")


def test_set_reaches_both_forms(file: Path) -> None:
    text = recipe("depth: {}", "distill: {layers: 2, blocks: 2}")
    loaded = read(file, text, "distill.layers={from: depth}")
    assert loaded.step("distill").inputs["depth"] == "depth"
    assert read(file, recipe("depth: {}", FROM), "distill.layers=4").step("distill").inputs == {
        "data": "prepare",
        "teacher": "teach",
    }


@pytest.mark.parametrize(
    ("steps", "line", "message"),
    [
        ([FROM], 6, "distill.layers.from: there is no step 'depth'. " + BEFORE),
        ([FROM, "depth: {}"], 6, "distill.layers.from: 'depth' comes after this step. " + BEFORE),
        (
            ["depth: {}", "distill: {layers: {from: dpth}}"],
            7,
            "distill.layers.from: there is no step 'dpth'. Did you mean 'depth'? " + BEFORE,
        ),
        (
            ["distill: {depth: x, select: influence}"],
            6,
            "distill.depth: there is no step 'x'. " + BEFORE,
        ),
        (
            ["depth: {}", "distill: {layers: {from: baselines}}"],
            7,
            "distill.layers.from: needs a report of depth, but 'baselines' makes a report of "
            "baselines. " + BEFORE,
        ),
        (
            ["depth: {}", ANOTHER, FROM],
            8,
            "distill.layers: 'depth' measures 'teach', but the teacher is 'other'.",
        ),
        (
            ["depth: {}", "distill: {depth: depth}"],
            7,
            "distill.depth: is not used. Set layers: {from: depth} or select: influence, or leave "
            "it out.",
        ),
        (
            ["depth: {}", "distill: {layers: {form: depth}}"],
            7,
            "distill.layers.from: is required",
        ),
        (["depth: {teacher: sasrec}"], 6, f"depth.teacher: {SASREC}"),
        (
            ["depth: {depths: [2, 4]}"],
            6,
            "depth.depths: 4 is not less than the 4 layers of 'teach'",
        ),
        (["depth: {max_drop: some}"], 6, "depth.max_drop: 'some' is neither a number nor a "),
        (
            ["depth: {}", "distill: {id: a}", "distill: {student: a, layers: {from: depth}}"],
            8,
            f"distill.layers: {WHOLE}",
        ),
        (
            ["distill: {id: a}", "distill: {student: a, select: first}"],
            7,
            f"distill.select: {WHOLE}",
        ),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(
    file: Path, steps: list[str], line: int, message: str
) -> None:
    listed = faults(file, recipe(*steps))
    assert any(one.startswith(f"./r.yaml:{line}: {message}") for one in listed), listed


def test_a_depth_step_without_a_teacher(file: Path) -> None:
    assert faults(file, TOP + "  - depth: {}\n") == [
        "./r.yaml:5: depth: needs a model as its teacher, but no earlier step makes one"
    ]


def test_a_smoke_run_keeps_the_budget_out_of_the_way(file: Path) -> None:
    steps = ["depth: {depths: [3]}", "depth: {id: ce, max_drop: ce=0.1}", FROM]
    loaded = read(file, recipe(*steps), smoke=True)
    config = loaded.step("depth").config
    assert isinstance(config, DepthConfig)
    assert (config.max_drop, config.depths, config.users) == ("100%", (2,), 96)
    of_ce = loaded.step("ce").config
    assert isinstance(of_ce, DepthConfig) and of_ce.max_drop == 100.0
    assert loaded.step("distill").inputs["depth"] == "depth"


def test_a_smoke_run_keeps_the_heads_of_a_student_from_depth(file: Path) -> None:
    """The depth is 2 of 3 layers, so that prune can end the student after its first block."""
    student = "distill: {teacher: first, layers: {from: depth}, keep_heads: true}"
    loaded = read(
        file,
        recipe(
            "distill: {id: first}", "depth: {teacher: first}", student, "prune: {exit_block: 2}"
        ),
        smoke=True,
    )
    teacher, first, depth, last, prune = (
        loaded.step(name).config.model_dump()
        for name in ("teach", "first", "depth", "distill", "prune")
    )
    assert teacher["backbone"].startswith("random://llama?layers=3&")
    assert (teacher["layers"], first["layers"], first["blocks"], depth["depths"]) == (3, 3, 2, (2,))
    assert (last["keep_heads"], last["losses"]["supervise"], last["blocks"]) == (True, 1.0, 2)
    assert prune["exit_block"] == 1


def test_a_smoke_run_without_a_depth_of_two_layers_has_no_heads(file: Path) -> None:
    steps = [ANOTHER, "depth: {teacher: other}", "distill: {teacher: other, layers: {from: depth}}"]
    loaded = read(file, recipe(*steps), smoke=True)
    assert loaded.step("depth").config.model_dump()["depths"] == (1,)
    assert loaded.step("distill").config.model_dump()["losses"]["supervise"] is None
