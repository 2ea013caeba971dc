"""Recipes: what they say, and what is filled in."""

from pathlib import Path

import pytest
from recipe_files import FULL, TEACH, TOP, faults, read

from slmc import recipe as recipes
from slmc.config import Protocol, Sampled
from slmc.data.config import TemporalSplit
from slmc.distill.config import DistillConfig, Losses, TeachConfig
from slmc.recipe import load, packaged, resolved_yaml
from slmc.recipe.schema import schema
from slmc.stages import STAGES


@pytest.mark.parametrize("smoke", [False, True])
@pytest.mark.parametrize("name", packaged())
def test_every_packaged_recipe_is_valid(name: str, smoke: bool) -> None:
    assert load(name, smoke=smoke, env={}).name == name


@pytest.mark.parametrize("name", packaged())
def test_every_packaged_recipe_says_how_to_run_it(name: str) -> None:
    text = recipes.text_of(name)
    assert text.startswith("# ")
    assert f"slmc run {name}" in text.partition("version:")[0]


@pytest.mark.parametrize("name", packaged())
def test_the_resolved_recipe_reads_as_the_same_recipe(name: str, file: Path) -> None:
    first = load(name, env={})
    file.write_text(resolved_yaml(first))
    assert load("./r.yaml", env={}) == first


def test_the_paper_recipe_has_the_settings_of_the_paper() -> None:
    paper = load("slmrec-paper", env={})
    teach, distill = paper.step("teach").config, paper.step("distill").config
    assert isinstance(teach, TeachConfig) and isinstance(distill, DistillConfig)
    assert (teach.backbone, teach.layers, teach.tune) == ("meta-llama/Llama-2-7b-hf", 8, "lora")
    assert (teach.lora.rank, teach.targets, paper.data.history) == (16, "last", 30)
    assert (distill.layers, distill.blocks, distill.scale) == (4, 4, "none")
    assert distill.losses == Losses(cosine=1.0, norm=0.1, supervise=1.0)
    assert paper.evaluate.ranking == Sampled(sampled=999)


def test_the_control_of_a_teacher_is_the_same_from_random_weights(file: Path) -> None:
    recipe = read(file, FULL.replace("teach: {", "teach: {control: true, ", 1))
    teach, control = recipe.step("teach"), recipe.step("teach.control")
    assert isinstance(teach.config, TeachConfig) and isinstance(control.config, TeachConfig)
    changed = {"init": "random", "must_beat": None}
    assert control.config == teach.config.model_copy(update=changed)
    assert control.inputs == teach.inputs | {"like": "teach"}
    assert recipe.step("distill").inputs["teacher"] == "teach"
    assert recipe.step("export").inputs["model"] == "distill"


def test_steps_that_are_not_written_come_first_and_controls_come_after(file: Path) -> None:
    steps = {step.id: step.inputs for step in read(file, FULL).steps}
    assert steps == {
        "prepare": {},
        "sasrec": {"data": "prepare"},
        "baselines": {"data": "prepare", "sasrec": "sasrec"},
        "teach": {"data": "prepare", "sasrec": "sasrec", "baselines": "baselines"},
        "distill": {"data": "prepare", "teacher": "teach"},
        "distill.control": {"data": "prepare", "teacher": "teach", "like": "distill"},
        "export": {"data": "prepare", "model": "distill"},
        "bench": {"data": "prepare", "engine": "export", "baseline": "teach"},
    }
    assert list(steps) == list({step.id: 0 for step in read(file, FULL).steps})


def test_sasrec_comes_first_wherever_it_is_written(file: Path) -> None:
    made = read(file, TOP + TEACH + "  - sasrec: {epochs: 3}\n")
    assert [step.id for step in made.steps] == ["prepare", "sasrec", "baselines", "teach"]
    assert made.step("sasrec").config.model_dump()["epochs"] == 3


ENGINE = "  - export: {id: sasrec-engine, model: sasrec}\n"
GATED = "gates:\n  - {metric: ndcg@10, on: %s, baseline: %s, max_drop: 3%%}\n"


@pytest.mark.parametrize(
    ("text", "measured"),
    [
        (TEACH, False),
        (TEACH + "  - bench: {engine: e, baseline: sasrec}\n", False),
        (ENGINE, True),
        (TEACH + ENGINE, True),
        (TEACH + GATED % ("teach", "sasrec"), True),
        (TEACH + GATED % ("sasrec", "teach"), True),
        (ENGINE + GATED % ("sasrec-engine", "source"), True),
    ],
)
def test_sasrec_is_measured_where_something_takes_it(text: str, measured: bool, file: Path) -> None:
    made = read(file, TOP + text.replace("  - bench", "  - export: {id: e}\n  - bench"))
    assert made.is_measured(made.step("sasrec")) == measured


def test_nothing_takes_sasrec_without_naming_it(file: Path) -> None:
    (fault,) = faults(file, TOP + "  - export:\n")
    assert fault == "./r.yaml:5: export: needs a model as its model, but no earlier step makes one"


def test_the_control_is_the_same_training_without_the_teacher(file: Path) -> None:
    made = read(file, FULL)
    student, control = made.step("distill").config, made.step("distill.control").config
    assert isinstance(control, DistillConfig) and control.losses.weights() == {}
    assert control.model_copy(update={"losses": Losses(cosine=1, norm=0.1, supervise=1)}) == student


def test_asking_for_a_control_does_not_change_the_student(file: Path) -> None:
    alone = read(file, FULL.replace(", control: true", ""))
    assert alone.step("distill") == read(file, FULL).step("distill")


def test_a_named_student_and_a_second_distillation(file: Path) -> None:
    again = "{id: recover, student: distill, layers: 1, blocks: 1, losses: {cosine: 1}}"
    more = f"  - distill: {{layers: 2, blocks: 2}}\n  - distill: {again}\n"
    made = read(file, TOP + TEACH + more + "  - export: {id: engine}\n")
    assert made.step("recover").inputs == {
        "data": "prepare",
        "teacher": "teach",
        "student": "distill",
    }
    assert made.step("engine").inputs["model"] == "recover"


def test_settings_of_the_recipe_stand_in_for_those_of_its_steps(file: Path) -> None:
    head = "seed: 5\ndevice: cpu\ndtype: fp32\n"
    made = read(file, head + FULL.replace("layers: 4}", "layers: 4, seed: 6}"))
    seeds = {step.id: getattr(step.config, "seed", None) for step in made.steps}
    assert seeds == {**dict.fromkeys(seeds, 5), "teach": 6}
    assert made.evaluate.seed == 5
    assert made.step("distill").config.model_dump()["device"] == "cpu"
    assert made.step("sasrec").config.model_dump()["dtype"] == "fp32"


def test_gates_know_their_step_and_their_baseline(file: Path) -> None:
    drop, overlap = read(file, FULL).gates
    assert (drop.on, drop.baseline) == ("export", "teach")
    assert (overlap.on, overlap.baseline) == ("export", "distill")


def test_words_are_read_as_yaml_1_2(file: Path) -> None:
    text = FULL.replace("metric: ndcg@10,", "metric: ndcg@10, on: distill,")
    made = read(file, text.replace("layers: 4}", "layers: 4, lr: 1e-3}"))
    assert made.gates[0].on == "distill"
    assert made.step("teach").config.model_dump()["lr"] == 1e-3


def test_dates_of_a_temporal_split(file: Path) -> None:
    split = "{source: a.csv, split: {by: time, valid: 2026-09-01, test: 2026-10-01}}"
    made = read(file, FULL.replace("{source: a.csv}", split))
    assert isinstance(made.data.split, TemporalSplit)
    assert made.data.split.test.isoformat() == "2026-10-01"


@pytest.mark.parametrize(
    ("written", "env", "layers"),
    [
        ("${LAYERS:-3}", {}, 3),
        ("${LAYERS:-3}", {"LAYERS": "2"}, 2),
        ("${LAYERS:-3}", {"LAYERS": ""}, 3),
        ("'${LAYERS}'", {"LAYERS": "2"}, 2),
    ],
)
def test_variables(file: Path, written: str, env: dict[str, str], layers: int) -> None:
    text = TOP + f"  - teach:\n      backbone: x\n      layers: {written}\n"
    assert read(file, text, **env).step("teach").config.model_dump()["layers"] == layers


def test_what_a_variable_holds_is_no_structure(file: Path) -> None:
    text = TOP + "  - teach:\n      backbone: ${B}\n"
    made = read(file, text, B="{a: 1}\n  - export:")
    assert made.step("teach").config.model_dump()["backbone"] == "{a: 1}\n  - export:"
    assert [step.id for step in made.steps][-1] == "teach"


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("distill.layers=3", lambda r: r.step("distill").config.layers == 3),
        ("data.users=100", lambda r: r.data.users == 100),
        ("prepare.users=100", lambda r: r.data.users == 100),
        ("seed=3", lambda r: r.seed == r.step("sasrec").config.seed == 3),
        ("sasrec.epochs=2", lambda r: r.step("sasrec").config.epochs == 2),
        ("gates.0.max_drop=5%", lambda r: r.gates[0].max_drop == "5%"),
        ("evaluate.ranking.sampled=9", lambda r: r.evaluate.ranking == Sampled(sampled=9)),
        ("bench.batch=[1, 2]", lambda r: r.step("bench").config.batch == (1, 2)),
        ("teach.lora.rank=8", lambda r: r.step("teach").config.lora.rank == 8),
        ("teach.must_beat=null", lambda r: r.step("teach").config.must_beat is None),
        ("distill.control=false", lambda r: "distill.control" not in [s.id for s in r.steps]),
        (
            "distill.losses.norm=0.5",
            lambda r: r.step("distill").config.losses == Losses(cosine=1, norm=0.5, supervise=1),
        ),
    ],
)
def test_sets(file: Path, change: str, value: object) -> None:
    assert callable(value) and value(read(file, FULL, change))
    assert not value(read(file, FULL))


def test_smoke_shrinks_everything_and_binds_only_what_holds_of_random_weights(file: Path) -> None:
    text = FULL + "  - {metric: size_mb, max: 64}\n"
    made = read(file, text, "teach.targets=last", "teach.prompt.prefix=hello you", smoke=True)
    teach, distill = made.step("teach").config, made.step("distill").config
    assert isinstance(teach, TeachConfig) and isinstance(distill, DistillConfig)
    assert teach.backbone.startswith("random://llama?layers=2&hidden=64")
    assert (teach.layers, teach.epochs, teach.prompt) == (2, 1, None)
    assert teach.must_beat is not None and teach.must_beat.otherwise == "warn"
    assert (distill.layers, distill.epochs) == (2, 1)
    assert (made.data.users, made.data.history) == (96, 20)
    assert made.step("prepare").config == made.data
    assert [made.is_binding(gate) for gate in made.gates] == [False, True, True]
    assert all(read(file, text).is_binding(gate) for gate in read(file, text).gates)


@pytest.mark.parametrize(("smoke", "sampled"), [(False, 99), (True, 50)])
def test_all_steps_share_one_protocol(file: Path, smoke: bool, sampled: int) -> None:
    steps = FULL.replace(
        "  - export:", "  - prune: {layers: 1}\n  - quantize: {bits: 8}\n  - export:"
    )
    text = steps + "evaluate: {ranking: {sampled: 99}, exclude_seen: true}\n"
    made = read(file, text, smoke=smoke)
    shared = [step for step in made.steps if isinstance(step.config, Protocol)]
    assert {step.stage for step in shared} == {
        "sasrec",
        "baselines",
        "teach",
        "distill",
        "prune",
        "quantize",
    }
    for config in (made.evaluate, *(step.config for step in shared)):
        assert isinstance(config, Protocol)
        assert (config.ranking, config.exclude_seen) == (Sampled(sampled=sampled), True)


def test_smoke_makes_nothing_larger(file: Path) -> None:
    made = read(
        file,
        FULL,
        "data.users=10",
        "distill.layers=1",
        "distill.blocks=1",
        "distill.losses={cosine: 1}",
        smoke=True,
    )
    assert made.data.users == 10
    assert made.step("distill").config.model_dump()["layers"] == 1


def test_the_command_that_runs_it(file: Path) -> None:
    made = read(file, FULL, "data.source=my log.csv", smoke=True)
    assert made.command == "slmc run ./r.yaml --set 'data.source=my log.csv' --smoke"


def test_the_schema_knows_every_key_of_every_stage() -> None:
    made = schema()
    steps = made["properties"]["steps"]["items"]["properties"]
    assert set(steps) == set(STAGES) - {"prepare", "evaluate", "evaluate_engine"}
    assert {"backbone", "id", "sasrec"} <= set(steps["teach"]["properties"])
    assert steps["export"]["anyOf"][1] == {"type": "null"}
    assert made["properties"]["data"]["$ref"] == "#/$defs/PrepareConfig"
    assert "description" in made["$defs"]["PrepareConfig"]["properties"]["core"]


def test_no_setting_of_a_stage_is_called_like_a_role() -> None:
    for name, stage in STAGES.items():
        assert not {"id", *stage.takes} & set(stage.config.model_fields), name
