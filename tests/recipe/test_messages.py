"""Every message that a wrong recipe gives."""

from pathlib import Path

import pytest
from recipe_files import FULL, TEACH, TOP, faults, read

from slmc.errors import RecipeError
from slmc.recipe import load


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("distil.layers=2", "distil: there is no step or key 'distil'. Did you mean 'distill'?"),
        ("distill.layrs=2", "distill.layrs: there is no key 'layrs'. Did you mean 'layers'?"),
        (
            "distill.losses.cosin=2",
            "distill.losses.cosin: there is no key 'cosin'. Did you mean 'cosine'?",
        ),
        ("distill=2", "distill: add a setting of the step, such as distill.seed=3"),
        ("distill.layers", "expected KEY=VALUE, such as distill.layers=2"),
        ("gates.7.min=1", "gates: there is no entry '7'; the list has 2, counted from 0"),
        (
            "distill.layers=two",
            "distill.layers: should be a valid integer, "
            'unable to parse string as an integer, not "two"',
        ),
        ("data.users=[1", "data.users: '[1' is not valid YAML"),
    ],
)
def test_messages_of_sets(file: Path, change: str, message: str) -> None:
    assert faults(file, FULL, change) == [f"--set {change}: {message}"]


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("", ["./r.yaml:1: a recipe is a mapping; `slmc recipe schema` lists its keys"]),
        ("- 1\n", ["./r.yaml:1: a recipe is a mapping; `slmc recipe schema` lists its keys"]),
        ("just words", ["./r.yaml:1: a recipe is a mapping; `slmc recipe schema` lists its keys"]),
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
        ("a: &x 1\nb: *x\n", ["./r.yaml:1: not YAML: anchors and aliases are not allowed"]),
        ("[" * 5000, ["./r.yaml:1: not a recipe: nested too deeply"]),
        (
            "version: 2\nsteeps: []\n",
            ["./r.yaml:1: version: unknown recipe format 2; this slmc reads format 1"],
        ),
        (
            FULL.replace("name: x", "name: !!python/object:os.system x"),
            [
                "./r.yaml:2: name: should be a valid string, not null",
                "./r.yaml:2: name: the tag !!python/object:os.system is not allowed in a recipe",
            ],
        ),
        (
            FULL.replace("name: x\n", "name: x\nname: y\n"),
            ["./r.yaml:3: name: is repeated; first in line 2"],
        ),
        (
            FULL.replace("layers: 2, ", "layers: 2, layers: 3, "),
            ["./r.yaml:6: steps.1.distill.layers: is repeated; first in line 6"],
        ),
        (
            FULL.replace("name: x", "name: x/../y"),
            ["./r.yaml:2: name: String should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]*$'"],
        ),
        (
            "version: 1\nname: x\nsteps:\n  - export:\n",
            [
                "./r.yaml:1: data: is required",
                "./r.yaml:4: export: needs a model as its model, but no earlier step makes one",
            ],
        ),
        (
            TOP.replace("{source: a.csv}", "a.csv") + TEACH,
            ['./r.yaml:3: data: should be a mapping, not "a.csv"'],
        ),
        (
            FULL.replace("steps:", "step:"),
            [
                "./r.yaml:1: steps: is required",
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
        (
            ["evaluate: {}"],
            ["steps.0: evaluate cannot be a step; configure it with the key 'evaluate'"],
        ),
        (["prepare: {}"], ["steps.0: prepare cannot be a step; configure it with the key 'data'"]),
        (["export"], ["steps.0: a step is one stage with its settings, such as `export: {}`"]),
        (["teach: 8"], ["teach: the settings of a step are a mapping"]),
        (["teach: {}"], ["teach.backbone: is required"]),
        (
            ["teach: {backbone: x, layers: 0}"],
            ["teach.layers: should be greater than or equal to 1, not 0"],
        ),
        (
            ["teach: {backbone: x, layers: true}"],
            ["teach.layers: should be a number, not true or false"],
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
            ["teach: id: 'a b' may only have letters, digits, - and _, and starts with a letter"],
        ),
        (
            ["teach: {backbone: x, id: data}"],
            ["teach: id: 'data' is a key of recipes; choose another id"],
        ),
        (
            ["teach: {backbone: x}", "teach: {backbone: y}"],
            [
                "teach: two steps have the id 'teach' (the first in line 5); "
                "set `id` for one of them"
            ],
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
            ["distill.student: a step cannot be its own input"],
        ),
        (
            ["teach: {backbone: x}", "export: {}", "bench: {engine: teach}"],
            ["bench.engine: needs an engine, but 'teach' makes a model"],
        ),
        (
            ["teach: {backbone: x}", "bench: {}"],
            ["bench: needs an engine as its engine, but no earlier step makes one"],
        ),
        (
            ["distill: {}"],
            ["distill: needs a model as its teacher, but no earlier step makes one"],
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
            "gates.0.on: 'bench' makes no model or engine, so it cannot be judged",
        ),
        (
            "{metric: ndcg@10, on: teach, baseline: source, max_drop: 3%}",
            "gates.0.baseline: 'teach' has no source model; name a step",
        ),
        (
            "{metric: ndcg@10, baseline: tech, max_drop: 3%}",
            "gates.0.baseline: there is no step 'tech'. Did you mean 'teach'?",
        ),
        ("{metric: size_mb, maxx: 3}", "gates.0.maxx: there is no key 'maxx'. Did you mean 'max'?"),
        ("ndcg@10", "gates.0: should be a mapping"),
        (
            "{metric: ce, baseline: teach, max_drop: 3%}\n  - {metric: hr@10, min: 0.1}",
            "gates.0: 3% of ce would pass models that rank far worse; give a budget in nats, "
            "such as 0.02",
        ),
    ],
)
def test_messages_of_gates(file: Path, gate: str, message: str) -> None:
    head = FULL.partition("gates:")[0]
    assert f"./r.yaml:10: {message}" in faults(file, f"{head}gates:\n  - {gate}\n")


def test_cross_entropy_is_never_the_only_gate(file: Path) -> None:
    head = FULL.partition("gates:")[0] + "gates:\n"
    ce = "  - {metric: ce, baseline: teach, max_drop: 0.02}\n  - {metric: size_mb, max: 64}\n"
    assert faults(file, head + ce) == [
        "./r.yaml:9: gates: a gate on ce alone can pass a model that ranks worse; add one on "
        "ndcg@K, hr@K, mrr or overlap@K"
    ]
    read(file, head + ce + "  - {metric: overlap@10, baseline: source, min: 0.9}\n")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            "${LAYERS}",
            "steps.0.teach.layers: the variable LAYERS is not set; "
            "set it, or write ${LAYERS:-default}",
        ),
        (
            "${LAYERS-3}",
            "steps.0.teach.layers: '${LAYERS-3}' does not have the form ${NAME:-default}",
        ),
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
        "Fix the recipe, then check it with `slmc recipe check ./r.yaml`."
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


def test_a_step_by_id(file: Path) -> None:
    with pytest.raises(RecipeError, match=r"no step 'exprt'\. Did you mean 'export'\?"):
        read(file, FULL).step("exprt")
