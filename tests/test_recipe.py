"""Recipes: what they say, what is filled in, and every message that a wrong one gives."""

from pathlib import Path

import pytest

from slmc import recipe as recipes
from slmc.data.config import Sampled, TemporalSplit
from slmc.distill.config import DistillConfig, Losses, TeachConfig
from slmc.errors import RecipeError
from slmc.recipe import Recipe, load, packaged, resolved_yaml
from slmc.recipe.schema import schema
from slmc.stages import STAGES

TEACH = "  - teach: {backbone: 'random://llama', layers: 4}\n"
TOP = "version: 1\nname: x\ndata: {source: a.csv}\nsteps:\n"
FULL = (
    TOP
    + TEACH
    + "  - distill: {layers: 2, blocks: 2, control: true}\n  - export:\n  - bench:\n"
    + "gates:\n  - {metric: ndcg@10, baseline: teach, max_drop: 3%}\n"
    + "  - {metric: overlap@10, baseline: source, min: 0.9}\n"
)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path that messages show in the same way everywhere."""
    monkeypatch.chdir(tmp_path)
    return Path("r.yaml")


def read(file: Path, text: str, *sets: str, smoke: bool = False, **env: str) -> Recipe:
    file.write_text(text)
    return load("./r.yaml", sets=sets, smoke=smoke, env=env)


def faults(file: Path, text: str | bytes, *sets: str, **env: str) -> list[str]:
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError) as caught:
        load("./r.yaml", sets=sets, env=env)
    return caught.value.what.splitlines()


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
def test_the_resolved_recipe_reads_as_the_same_recipe(name: str, tmp_path: Path) -> None:
    first = load(name, env={})
    file = tmp_path / "resolved.yaml"
    file.write_text(resolved_yaml(first))
    assert load(file, env={}) == first


def test_the_paper_recipe_has_the_settings_of_the_paper() -> None:
    paper = load("slmrec-paper", env={})
    teach, distill = paper.step("teach").config, paper.step("distill").config
    assert isinstance(teach, TeachConfig) and isinstance(distill, DistillConfig)
    assert (teach.backbone, teach.layers, teach.tune) == ("meta-llama/Llama-2-7b-hf", 8, "lora")
    assert (teach.lora.rank, teach.targets, paper.data.history) == (16, "last", 30)
    assert (distill.layers, distill.blocks, distill.scale) == (4, 4, "none")
    assert distill.losses == Losses(cosine=1.0, norm=0.1, supervise=1.0)
    assert paper.evaluate.ranking == Sampled(sampled=999)


def test_steps_that_are_not_written_come_first_and_controls_come_after(file: Path) -> None:
    steps = {step.id: step.inputs for step in read(file, FULL).steps}
    assert steps == {
        "prepare": {},
        "sasrec": {"data": "prepare"},
        "baselines": {"data": "prepare", "sasrec": "sasrec"},
        "teach": {"data": "prepare", "sasrec": "sasrec", "baselines": "baselines"},
        "distill": {"data": "prepare", "teacher": "teach"},
        "distill.control": {"data": "prepare", "teacher": "teach"},
        "export": {"data": "prepare", "model": "distill"},
        "bench": {"data": "prepare", "engine": "export", "baseline": "teach"},
    }
    assert list(steps) == list({step.id: 0 for step in read(file, FULL).steps})


def test_sasrec_comes_first_wherever_it_is_written(file: Path) -> None:
    made = read(file, TOP + TEACH + "  - sasrec: {epochs: 3}\n")
    assert [step.id for step in made.steps] == ["prepare", "sasrec", "baselines", "teach"]
    assert made.step("sasrec").config.model_dump()["epochs"] == 3


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("distil.layers=2", "distil: there is no step or key 'distil'. Did you mean 'distill'?"),
        ("distill.layrs=2", "distill.layrs: there is no key 'layrs'. Did you mean 'layers'?"),
        (
            "distill.losses.cosin=2",
            "distill.losses.cosin: there is no key 'cosin'. Did you mean 'cosine'?",
        ),
        ("distill=2", "distill: name a setting of the step too, as in distill.seed=3"),
        ("distill.layers", "is not of the form KEY=VALUE, as in distill.layers=2"),
        ("gates.7.min=1", "gates: there is no entry '7'; there are 2, counted from 0"),
        (
            "distill.layers=two",
            "distill.layers: should be a valid integer, "
            'unable to parse string as an integer, not "two"',
        ),
        ("data.users=[1", "data.users: '[1' is not a value that YAML knows"),
    ],
)
def test_messages_of_sets(file: Path, change: str, message: str) -> None:
    assert faults(file, FULL, change) == [f"--set {change}: {message}"]


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("", ["./r.yaml:1: a recipe is a mapping with the keys of `slmc recipe schema`"]),
        ("- 1\n", ["./r.yaml:1: a recipe is a mapping with the keys of `slmc recipe schema`"]),
        ("just words", ["./r.yaml:1: a recipe is a mapping with the keys of `slmc recipe schema`"]),
        (
            "version: 1\nname: [x\n",
            [
                "./r.yaml:3: not YAML: while parsing a flow sequence, "
                "expected ',' or ']', but got '<stream end>'"
            ],
        ),
        (
            "version: 1\n\tname: x\n",
            [
                "./r.yaml:2: not YAML: while scanning for the next token, "
                "found character '\\t' that cannot start any token"
            ],
        ),
        ("a: \x07", ["./r.yaml:1: not YAML: special characters are not allowed"]),
        (
            "a: 1\n---\nb: 1\n",
            [
                "./r.yaml:2: not YAML: expected a single document in the stream, "
                "but found another document"
            ],
        ),
        ("a: &x 1\nb: *x\n", ["./r.yaml:1: not YAML: anchors and aliases are not read"]),
        ("[" * 5000, ["./r.yaml:1: not a recipe: nested too deeply"]),
        (
            "version: 2\nsteeps: []\n",
            ["./r.yaml:1: version: recipe format 2 is not known; this slmc reads format 1"],
        ),
        (
            FULL.replace("name: x", "name: !!python/object:os.system x"),
            [
                "./r.yaml:2: name: should be a valid string, not null",
                "./r.yaml:2: name: the tag !!python/object:os.system is refused: "
                "a recipe is data only",
            ],
        ),
        (
            FULL.replace("name: x\n", "name: x\nname: y\n"),
            ["./r.yaml:3: name: stands twice; first in line 2"],
        ),
        (
            FULL.replace("layers: 2, ", "layers: 2, layers: 3, "),
            ["./r.yaml:6: steps.1.distill.layers: stands twice; first in line 6"],
        ),
        (
            FULL.replace("name: x", "name: x/../y"),
            ["./r.yaml:2: name: String should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]*$'"],
        ),
        (
            "version: 1\nname: x\nsteps:\n  - export:\n",
            [
                "./r.yaml:1: data: must be given",
                "./r.yaml:4: export: needs a model as its model, and no step before it gives one",
            ],
        ),
        (
            TOP.replace("{source: a.csv}", "a.csv") + TEACH,
            ['./r.yaml:3: data: should be a mapping, not "a.csv"'],
        ),
        (
            FULL.replace("steps:", "step:"),
            [
                "./r.yaml:1: steps: must be given",
                "./r.yaml:4: step: there is no key 'step'. Did you mean 'steps'?",
            ],
        ),
    ],
)
def test_messages_of_the_file(file: Path, text: str, messages: list[str]) -> None:
    assert set(messages) <= set(faults(file, text))


@pytest.mark.parametrize(
    ("steps", "messages"),
    [
        (["tech: {}"], ["steps.0: there is no stage 'tech'. Did you mean 'teach'?"]),
        (["evaluate: {}"], ["steps.0: evaluate is no step; it is set by the key 'evaluate'"]),
        (["prepare: {}"], ["steps.0: prepare is no step; it is set by the key 'data'"]),
        (["export"], ["steps.0: a step is one stage with its settings, as in `export: {}`"]),
        (["teach: 8"], ["teach: the settings of a step are a mapping"]),
        (["teach: {}"], ["teach.backbone: must be given"]),
        (
            ["teach: {backbone: x, layers: 0}"],
            ["teach.layers: should be greater than or equal to 1, not 0"],
        ),
        (
            ["teach: {backbone: x, layers: true}"],
            ["teach.layers: should be a number, not a truth value"],
        ),
        (
            ["teach: {backbone: x, tune: laro}"],
            ["""teach.tune: should be 'all' or 'lora', not "laro\""""],
        ),
        (
            ["teach: {backbone: x, must_beat: {modles: []}}"],
            ["teach.must_beat.modles: there is no key 'modles'. Did you mean 'models'?"],
        ),
        (
            ["teach: {backbone: x, item_embeddings: random}"],
            ["teach: item_embeddings: random needs freeze_items: false"],
        ),
        (
            ["teach: {backbone: x, id: 'a b'}"],
            ["teach: id: 'a b' is not a word of letters, digits, - and _"],
        ),
        (
            ["teach: {backbone: x, id: data}"],
            ["teach: id: 'data' means something else in a recipe"],
        ),
        (
            ["teach: {backbone: x}", "teach: {backbone: y}"],
            ["teach: two steps are called 'teach' (the first in line 5); give one an id"],
        ),
        (
            ["teach: {backbone: x}", "distill: {teacher: tech}"],
            ["distill.teacher: there is no step 'tech'. Did you mean 'teach'?"],
        ),
        (
            ["teach: {backbone: x}", "distill: {student: late}", "distill: {id: late}"],
            ["distill.student: 'late' comes after this step"],
        ),
        (
            ["teach: {backbone: x}", "distill: {student: distill}"],
            ["distill.student: a step cannot take what it makes itself"],
        ),
        (
            ["teach: {backbone: x}", "export: {}", "bench: {engine: teach}"],
            ["bench.engine: needs an engine, and 'teach' gives a model"],
        ),
        (
            ["teach: {backbone: x}", "bench: {}"],
            ["bench: needs an engine as its engine, and no step before it gives one"],
        ),
        (
            ["distill: {}"],
            ["distill: needs a model as its teacher, and no step before it gives one"],
        ),
        (
            ["teach: {backbone: x, layers: 2}", "distill: {layers: 4}"],
            ["distill.layers: 4 layers are more than the 2 of 'teach'"],
        ),
        (
            ["teach: {backbone: x}", "distill: {layers: 2}"],
            ["distill: 4 blocks do not fit into 2 layers"],
        ),
    ],
)
def test_messages_of_steps(file: Path, steps: list[str], messages: list[str]) -> None:
    told = faults(file, TOP + "".join(f"  - {step}\n" for step in steps))
    assert [line.partition(": ")[2] for line in told] == messages


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (
            "{metric: ndcg@10, on: exprt, min: 0.1}",
            "gates.0.on: there is no step 'exprt'. Did you mean 'export'?",
        ),
        (
            "{metric: ndcg@10, on: bench, min: 0.1}",
            "gates.0.on: 'bench' gives no model or engine that is measured",
        ),
        (
            "{metric: ndcg@10, on: teach, baseline: source, max_drop: 3%}",
            "gates.0.baseline: 'teach' was not made from one model; name a step",
        ),
        (
            "{metric: ndcg@10, baseline: tech, max_drop: 3%}",
            "gates.0.baseline: there is no step 'tech'. Did you mean 'teach'?",
        ),
        ("{metric: size_mb, maxx: 3}", "gates.0.maxx: there is no key 'maxx'. Did you mean 'max'?"),
        ("ndcg@10", "gates.0: should be a mapping"),
    ],
)
def test_messages_of_gates(file: Path, gate: str, message: str) -> None:
    head = FULL.partition("gates:")[0]
    assert f"./r.yaml:10: {message}" in faults(file, f"{head}gates:\n  - {gate}\n")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            "${LAYERS}",
            "steps.0.teach.layers: the variable LAYERS is not set; "
            "set it, or write ${LAYERS:-default}",
        ),
        ("${LAYERS-3}", "steps.0.teach.layers: '${LAYERS-3}' is not of the form ${NAME:-default}"),
    ],
)
def test_messages_of_variables(file: Path, written: str, message: str) -> None:
    text = TOP + f"  - teach:\n      backbone: x\n      layers: {written}\n"
    assert f"./r.yaml:7: {message}" in faults(file, text)


def test_everything_that_is_wrong_is_told_at_once_by_line(file: Path) -> None:
    text = """version: 1
name: x
sed: 3
data:
  source: a.csv
  core: none
evaluate: {metrics: [ndgc@10], ranking: fll}
steps:
  - teach:
      backbone: x
      layer: 8
  - distil: {}
  - export: {model: nothing}
"""
    assert faults(file, text, "data.usres=3") == [
        "--set data.usres=3: data.usres: there is no key 'usres'. Did you mean 'users'?",
        "./r.yaml:3: sed: there is no key 'sed'. Did you mean 'seed'?",
        "./r.yaml:6: data.core: should be a valid integer, unable to parse string as an integer, "
        'not "none"',
        """./r.yaml:7: evaluate.ranking: should be 'full', not "fll", or should be a mapping, """
        """not "fll\"""",
        "./r.yaml:11: teach.layer: there is no key 'layer'. Did you mean 'layers'?",
        "./r.yaml:12: steps.1: there is no stage 'distil'. Did you mean 'distill'?",
        "./r.yaml:13: export.model: there is no step 'nothing'. Known: sasrec, teach.",
    ]


def test_the_remedy_names_the_check(file: Path) -> None:
    file.write_text("a: 1\n")
    with pytest.raises(RecipeError) as caught:
        load("./r.yaml")
    assert caught.value.remedy == (
        "Mend the recipe, then check it with `slmc recipe check ./r.yaml`."
    )
    assert caught.value.exit_code == 2


def test_a_name_that_is_not_packaged() -> None:
    with pytest.raises(RecipeError) as caught:
        load("quikstart")
    assert caught.value.what == (
        "there is no packaged recipe 'quikstart'. Did you mean 'quickstart'?"
    )


def test_files_that_cannot_be_read(file: Path) -> None:
    assert faults(file, b"\xff\xfe\x00") == ["./r.yaml is not a recipe: it is not UTF-8 text."]
    Path("folder.yaml").mkdir()
    for path, why in (("none", "No such file or directory"), ("folder", "Is a directory")):
        with pytest.raises(RecipeError) as caught:
            load(f"{path}.yaml")
        assert caught.value.what == f"{path}.yaml cannot be read: {why}."


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


def test_a_step_by_id(file: Path) -> None:
    with pytest.raises(RecipeError, match=r"no step 'exprt'\. Did you mean 'export'\?"):
        read(file, FULL).step("exprt")


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
