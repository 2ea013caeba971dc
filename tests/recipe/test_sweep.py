"""``seeds`` and ``sweep``: the copies that they make of a recipe's steps."""

import json
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe_files import FULL, GATED, STUDENT, SWEEP, TEACH, TOP, read

from slmc.distill.config import DistillConfig
from slmc.recipe import Recipe, resolved_yaml
from slmc.recipe.faults import Faults
from slmc.recipe.loading import KEYS
from slmc.recipe.schema import schema
from slmc.recipe.steps import Step
from slmc.recipe.sweep import MOST_STEPS, Sweep, read_sweep
from slmc.recipe.text import Document


def inputs(recipe: Recipe) -> dict[str, dict[str, str]]:
    """Id of each step -> its inputs except the dataset."""
    return {
        step.id: {role: taken for role, taken in step.inputs.items() if role != "data"}
        for step in recipe.steps
    }


def seeds(recipe: Recipe) -> dict[str, int]:
    return {step.id: step.config.model_dump()["seed"] for step in recipe.steps}


def students(recipe: Recipe) -> list[DistillConfig]:
    steps: list[Step] = recipe.copies("distill")
    return [step.config for step in steps if isinstance(step.config, DistillConfig)]


def test_the_seeds_of_a_step_repeat_it_and_share_what_is_before(file: Path) -> None:
    recipe = read(file, FULL, "distill.seeds=2")
    assert inputs(recipe) == {
        "prepare": {},
        "sasrec": {},
        "baselines": {"sasrec": "sasrec"},
        "teach": {"sasrec": "sasrec", "baselines": "baselines"},
        "distill@17": {"teacher": "teach"},
        "distill@18": {"teacher": "teach"},
        "distill.control@17": {"teacher": "teach", "like": "distill@17"},
        "distill.control@18": {"teacher": "teach", "like": "distill@18"},
        "export": {"model": "distill@best"},
        "bench": {"engine": "export", "baseline": "teach"},
    }
    assert seeds(recipe) == {
        **dict.fromkeys(seeds(recipe), 17),
        "distill@18": 18,
        "distill.control@18": 18,
    }
    assert recipe.step("distill.control@18").control_of == "distill@18"
    assert recipe.choices["distill@best"].candidates == ("distill@17", "distill@18")
    assert recipe.ranked == {"distill"}


def test_the_seeds_of_a_recipe_repeat_all_training(file: Path) -> None:
    recipe = read(file, "seeds: [3, 9]\n" + TOP + TEACH + STUDENT + "  - export:\n  - bench:\n")
    assert inputs(recipe) == {
        "prepare": {},
        "sasrec@3": {},
        "sasrec@9": {},
        "baselines@3": {"sasrec": "sasrec@3"},
        "baselines@9": {"sasrec": "sasrec@9"},
        "teach@3": {"sasrec": "sasrec@3", "baselines": "baselines@3"},
        "teach@9": {"sasrec": "sasrec@9", "baselines": "baselines@9"},
        "distill@3": {"teacher": "teach@3"},
        "distill@9": {"teacher": "teach@9"},
        "export": {"model": "distill@best"},
        "bench": {"engine": "export", "baseline": "teach@same"},
    }
    # Sampled negatives and the dataset are the same for all seeds.
    same = ("prepare", "baselines@3", "baselines@9", "export", "bench")
    assert {seeds(recipe)[name] for name in same} == {17}
    assert [seeds(recipe)[f"{name}@9"] for name in ("sasrec", "teach", "distill")] == [9, 9, 9]
    # The teacher of the bench is that of the engine's model: it is not ranked to be chosen.
    assert recipe.ranked == {"distill"}


def test_a_count_begins_at_the_seed(file: Path) -> None:
    recipe = read(file, "seed: 5\n" + TOP + TEACH + STUDENT, "distill.seeds=3")
    assert recipe.seeds == (5, 6, 7)
    assert read(file, TOP + TEACH + STUDENT, "distill.seed=40", "distill.seeds=2").seeds == (40, 41)
    assert read(file, TOP + TEACH + STUDENT, "seeds=2", "seed=0").seeds == (0, 1)


def test_models_made_from_a_repeated_model_are_repeated(file: Path) -> None:
    more = (
        "  - prune: {ffn: 0.5}\n  - distill: {id: recover, student: prune, layers: 2, blocks: 2}\n"
    )
    recipe = read(file, TOP + TEACH + STUDENT + more + "  - export:\n", "distill.seeds=[17, 20]")
    made = inputs(recipe)
    assert made["prune@20"] == {"model": "distill@20"}
    assert made["recover@20"] == {"teacher": "teach", "student": "prune@20"}
    assert made["export"] == {"model": "recover@best"}
    assert [seeds(recipe)[name] for name in ("prune@20", "recover@20")] == [20, 20]


def test_a_grid_has_a_copy_for_each_combination(file: Path) -> None:
    recipe = read(file, SWEEP + TOP + TEACH + STUDENT + "  - export:\n")
    names = [step.id for step in recipe.copies("distill")]
    assert names == [
        "distill@layers=2,logits=0.5",
        "distill@layers=2,logits=1",
        "distill@layers=3,logits=0.5",
        "distill@layers=3,logits=1",
    ]
    assert [(one.layers, one.losses.logits) for one in students(recipe)] == [
        (2, 0.5),
        (2, 1.0),
        (3, 0.5),
        (3, 1.0),
    ]
    # A swept key changes one setting and keeps those beside it.
    assert {one.losses.cosine for one in students(recipe)} == {1.0}
    assert recipe.choices["distill@best"].candidates == tuple(names)


def test_a_step_has_copies_only_for_the_settings_that_reach_it(file: Path) -> None:
    sweep = "sweep: {teach.layers: [3, 4], distill.layers: [2, 3]}\nseeds: [1, 2]\n"
    recipe = read(file, sweep + TOP + TEACH + STUDENT)
    assert [step.id for step in recipe.copies("sasrec")] == ["sasrec@1", "sasrec@2"]
    assert [step.id for step in recipe.copies("teach")] == [
        "teach@layers=3@1",
        "teach@layers=3@2",
        "teach@layers=4@1",
        "teach@layers=4@2",
    ]
    names = [step.id for step in recipe.copies("distill")]
    assert len(names) == 8 and "distill@teach.layers=3,distill.layers=2@2" in names
    assert inputs(recipe)["distill@teach.layers=4,distill.layers=2@2"] == {
        "teacher": "teach@layers=4@2"
    }


def test_a_list_of_points_is_filled_with_the_recipes_own_values(file: Path) -> None:
    sweep = "sweep:\n  - {distill.layers: 3}\n  - {distill: {lr: 0.01}}\n"
    recipe = read(file, sweep + TOP + TEACH + STUDENT)
    assert [step.id for step in recipe.copies("distill")] == [
        "distill@layers=3,lr=0.0002",
        "distill@layers=2,lr=0.01",
    ]
    assert [(one.layers, one.lr) for one in students(recipe)] == [(3, 2e-4), (2, 1e-2)]


def test_a_required_setting_may_be_swept(file: Path) -> None:
    sweep = "sweep: {teach.backbone: ['random://llama', 'random://qwen2']}\n"
    recipe = read(file, sweep + TOP + "  - teach: {layers: 2}\n")
    # Values that are no short words are numbered.
    assert [step.id for step in recipe.copies("teach")] == [
        "teach@backbone=v1",
        "teach@backbone=v2",
    ]


def test_a_long_name_is_a_number(file: Path) -> None:
    keys = ("dropout", "residual_dropout", "attention_dropout", "projection_lr", "weight_decay")
    sweep = ", ".join(f"distill.{key}: [0.123456789, 0.234567891]" for key in keys)
    recipe = read(file, f"sweep: {{{sweep}}}\n" + TOP + TEACH + STUDENT)
    names = [step.id for step in recipe.copies("distill")]
    assert names == [f"distill@point-{i}" for i in range(1, 33)]


def test_inputs_may_be_swept_and_named(file: Path) -> None:
    steps = TEACH + STUDENT + "  - distill: {id: deep, layers: 3, blocks: 2}\n"
    recipe = read(file, "sweep: {export.model: [distill, deep]}\n" + TOP + steps + "  - export:\n")
    assert inputs(recipe)["export@model=deep"] == {"model": "deep"}
    each = read(
        file, SWEEP + TOP + TEACH + STUDENT + "  - export: {model: distill@each}\n  - bench:\n"
    )
    assert inputs(each)["export@layers=3,logits=1"] == {"model": "distill@layers=3,logits=1"}
    assert inputs(each)["bench@layers=3,logits=1"]["engine"] == "export@layers=3,logits=1"
    one = read(
        file,
        SWEEP + TOP + TEACH + STUDENT + "  - export: {model: 'distill@layers=3,logits=1'}\n",
        "distill.seeds=2",
    )
    assert inputs(one)["export"] == {"model": "distill@layers=3,logits=1@best"}
    assert one.choices["distill@layers=3,logits=1@best"].candidates == (
        "distill@layers=3,logits=1@17",
        "distill@layers=3,logits=1@18",
    )


def test_the_best_teacher_has_students_of_its_own_seed(file: Path) -> None:
    sweep = "seeds: 2\nsweep: {teach.layers: [3, 4]}\n"
    student = "  - distill: {layers: 2, blocks: 2, teacher: teach@best}\n"
    recipe = read(file, sweep + TOP + TEACH + student)
    assert [step.id for step in recipe.copies("distill")] == ["distill@17", "distill@18"]
    assert inputs(recipe)["distill@18"] == {"teacher": "teach@best@18"}
    candidates = recipe.choices["teach@best@18"].candidates
    assert candidates == ("teach@layers=3@18", "teach@layers=4@18")


@pytest.mark.parametrize(
    "top",
    [
        "",
        SWEEP,
        "seeds: 2\n",
        "seeds: [4, 2]\n" + SWEEP,
        "sweep: [{distill.layers: 3}, {distill.lr: 0.01, teach.layers: 3}]\n",
        "sweep: {distill.teachers: [[teach, sasrec], [teach]], distill.losses.logits: [1]}\n",
        "sweep: {distill: {losses: [{logits: 1.0}, {cosine: 2.0}], lr: [1e-3, 2e-3]}}\n",
    ],
)
@pytest.mark.parametrize("own", [(), ("distill.seeds=[5, 6]",)])
def test_the_resolved_recipe_has_the_same_copies(
    top: str, own: tuple[str, ...], file: Path
) -> None:
    if "seeds" in top and own:
        pytest.skip("seeds are set in one place")
    gates = "" if "sweep" in top else "gates:\n  - {metric: mrr, on: distill, min: 0.1}\n"
    first = read(file, top + TOP + TEACH + STUDENT + "  - export:\n" + gates, *own)
    assert read(file, resolved_yaml(first, file.parent)) == first


def test_a_recipe_without_them_is_as_before(file: Path) -> None:
    recipe = read(file, FULL)
    assert (recipe.written, recipe.choices, recipe.ranked) == ((), {}, frozenset())
    assert all(step.copy is None for step in recipe.steps)


def test_a_smoke_run_repeats_small_steps(file: Path) -> None:
    recipe = read(file, SWEEP + FULL.split("gates:")[0], "distill.seeds=2", smoke=True)
    assert {one.layers for one in students(recipe)} == {2}
    assert {one.epochs for one in students(recipe)} == {1}
    assert len(students(recipe)) == 8


@pytest.mark.parametrize(
    ("sweep", "gated", "points", "gate"),
    [
        ("{distill.layers: [2, 3], distill.losses.logits: [0.5, 1]}", "layers=3,logits=1",
         [{"layers": 2, "losses.logits": 0.5}, {"layers": 2, "losses.logits": 1.0}],
         "layers=2,logits=1"),
        ("{distill.layers: [1, 2, 3]}", "layers=3", [{"layers": 1}, {"layers": 2}], "layers=2"),
        ("{distill.epochs: [3, 5]}", "epochs=5", [{"epochs": 1}], "epochs=1"),
        ("{distill.teacher: [teach, other]}", "teacher=other",
         [{"teacher": "teach"}, {"teacher": "other"}], "teacher=other"),
    ],
)  # fmt: skip
def test_the_resolved_recipe_of_a_smoke_run_has_small_points(
    sweep: str, gated: str, points: list[dict[str, object]], gate: str, file: Path
) -> None:
    """Also in the names of points; those that are the same when small are one."""
    other = TEACH.replace("{", "{id: other, ", 1)
    student = "  - distill: {layers: 1, blocks: 1, losses: {cosine: 1}, seeds: 2}\n"
    export = f"  - export: {{model: 'distill@{gated}'}}\n"
    text = f"sweep: {sweep}\n" + TOP + TEACH + other + student + export
    text += f"gates:\n  - {{metric: mrr, on: 'distill@{gated}', min: 0.1}}\n"
    first = read(file, text, smoke=True)
    assert first.gates[0].on == f"distill@{gated}"  # the run keeps the names
    again = read(file, resolved_yaml(first, file.parent))
    expected = [{f"distill.{key}": value for key, value in one.items()} for one in points]
    assert [point.settings for point in again.sweep.points] == expected
    assert again.gates[0].on == f"distill@{gate}"
    small = {step.config.model_dump_json() for step in first.copies("distill")}
    assert {step.config.model_dump_json() for step in again.copies("distill")} == small
    assert read(file, resolved_yaml(again, file.parent)) == again


def test_paths_of_a_sweep_start_at_the_file(tmp_path: Path, file: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "models" / name).mkdir(parents=True)
    (tmp_path / "recipes").mkdir()
    inner = tmp_path / "recipes/r.yaml"
    sweep = "sweep: {teach.backbone: [../models/a, ../models/b]}\n"
    inner.write_text(sweep + TOP + "  - teach:\n")
    from slmc.recipe import load

    recipe = load("recipes/r.yaml", env={})
    backbones = [step.config.model_dump()["backbone"] for step in recipe.copies("teach")]
    assert [Path(one).resolve() for one in backbones] == [
        tmp_path / "models/a",
        tmp_path / "models/b",
    ]
    assert [step.id for step in recipe.copies("teach")] == [
        "teach@backbone=v1",
        "teach@backbone=v2",
    ]
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy/r.yaml").write_text(resolved_yaml(recipe, Path("copy")))
    assert load("copy/r.yaml", env={}) == recipe


@given(
    st.dictionaries(
        st.sampled_from(["distill.layers", "distill.lr", "teach.lr", "teach.layers"]),
        st.lists(st.integers(1, 99), min_size=1, max_size=4, unique=True),
        min_size=1,
    )
)
def test_a_grid_is_the_product_of_its_lists(grid: dict[str, list[int]]) -> None:
    document = Document({"sweep": grid, "steps": [{"teach": {}}, {"distill": {}}]})
    faults = Faults()
    document.places[()] = None  # type: ignore[assignment]
    if len(list(product(*grid.values()))) > MOST_STEPS:
        return
    points = read_sweep(document, faults, KEYS)
    assert not faults
    assert [point.settings for point in points] == [
        dict(zip(grid, values, strict=True)) for values in product(*grid.values())
    ]
    names = [Sweep(tuple(points)).name(point.settings) for point in points]
    assert len(set(names)) == len(points)
    for point in points:
        for key, path in point.paths.items():
            assert document.value_at(path) == point.settings[key]


@pytest.mark.parametrize(
    ("on", "rest"),
    [
        ("distill@best", "max_drop: 1%, baseline: teach"),
        ("distill@layers=2,logits=1", "max_drop: 1%, baseline: distill.control"),
        ("distill@layers=2,logits=1@18", "max_drop: 1%, baseline: distill@best"),
        ("export", "max_drop: 1%, baseline: distill"),
    ],
)
def test_a_gate_may_name_a_point(on: str, rest: str, file: Path) -> None:
    steps = TEACH + "  - distill: {layers: 2, blocks: 2, control: true, seeds: 2}\n  - export:\n"
    (gate,) = read(file, SWEEP + TOP + steps + GATED % (f"'{on}'", rest)).gates
    assert gate.on == on


def test_the_source_of_a_chosen_engine_is_known_in_the_run(file: Path) -> None:
    gate = "gates:\n  - {metric: overlap@10, on: export, baseline: source, min: 0.9}\n"
    text = TOP + TEACH + STUDENT + "  - export:\n" + gate
    assert read(file, text).gates[0].baseline == "distill"
    recipe = read(file, text, "distill.seeds=2")
    assert recipe.gates[0].baseline == "source"
    assert recipe.is_of_same_model(recipe.gates[0])


def test_the_schema_has_both_keys() -> None:
    text = json.dumps(schema())
    assert {"seeds", "sweep", "select_by"} <= schema()["properties"].keys()
    bodies = schema()["properties"]["steps"]["items"]["properties"]
    has = {name for name, body in bodies.items() if '"seeds"' in json.dumps(body)}
    assert has == {"sasrec", "teach", "distill", "prune", "quantize"}
    assert '"#/$defs/Repeated"' not in text
