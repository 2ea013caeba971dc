"""The stage: what it keeps and says, what it refuses, and that distilling wins back the loss."""

import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from prunable import KINDS, build
from transformers import AutoModel

from slmc.artefact import Artefact, draft, load
from slmc.cli import call
from slmc.compress import prune as module
from slmc.compress.config import PruneConfig
from slmc.compress.prune import best, prune, summary
from slmc.config import Seeded
from slmc.data.dataset import Dataset
from slmc.distill.config import DistillConfig
from slmc.distill.distill import distill
from slmc.errors import MissingError, RecipeError, UsageError
from slmc.model.device import Placement
from slmc.model.loading import load_model
from slmc.model.recommender import RecommenderConfig, SequentialRecommender
from slmc.model.saving import describe, save_model
from slmc.next_item import validation
from slmc.pipeline import preflight
from slmc.recipe import load as read_recipe

CPU = Placement(torch.device("cpu"), torch.float32)
WIDTH = {"heads": 0.5, "ffn": 0.5, "round_to": 8, "calibration": 40}
Inputs = dict[str, Artefact]


@pytest.fixture
def inputs(dataset: Artefact, teacher: Artefact) -> Inputs:
    return {"data": dataset, "model": teacher}


def numbers_of(artefact: Artefact) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(artefact.file("metrics.json").read_text())
    return found


def shape_of(artefact: Artefact) -> tuple[int, int, int, int]:
    config = json.loads(artefact.file("config.json").read_text())["backbone_config"]
    names = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    layers, heads, groups, channels = (config[name] for name in names)
    return layers, heads, groups, channels


def sealed(model: SequentialRecommender, dataset: Artefact, out: Path) -> Artefact:
    with draft(out) as work:
        save_model(model, dataset, work.path)
        return work.seal(
            kind="model",
            stage="teach",
            config=Seeded(),
            inputs={"data": dataset},
            metrics=describe(model, work.path),
        )


def valid_ce(artefact: Artefact, dataset: Artefact) -> float:
    model = load_model(artefact)
    return validation(model, Dataset.open(dataset).targets("valid"), CPU)()


@pytest.mark.parametrize("method", ["magnitude", "activation", "taylor"])
def test_width(method: str, inputs: Inputs, tmp_path: Path) -> None:
    made = prune(PruneConfig.model_validate(WIDTH | {"importance": method}), inputs, tmp_path / "p")
    assert shape_of(made) == (3, 2, 1, 32)
    numbers = numbers_of(made)
    assert numbers["before"] | {"parameters": 0} == {
        "layers": 3,
        "kv_groups": 2,
        "heads": 4,
        "channels": 64,
        "parameters": 0,
    }
    assert numbers["after"]["parameters"] == made.manifest.metrics["parameters"]
    assert numbers["kept_layers"] == [0, 1, 2] and "block_influence" not in numbers
    full, small = load_model(inputs["model"]), AutoModel.from_pretrained(made.path)
    for layer in numbers["layers"]:
        number, channels = layer["layer"], layer["channels"]["kept"]
        (group,) = layer["kv_groups"]["kept"]
        for part in (layer["kv_groups"], layer["channels"]):
            assert part["least_kept"] >= part["most_removed"]
            assert 0.5 <= part["importance_kept"] < 1
        before, after = full.layers[number], small.layers[number]
        gate, o_proj = "mlp.gate_proj.weight", "self_attn.o_proj.weight"
        assert torch.equal(after.get_parameter(gate), before.get_parameter(gate)[channels])
        columns = before.get_parameter(o_proj)[:, 16 * group : 16 * group + 16]
        assert torch.equal(after.get_parameter(o_proj), columns)


@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", ["magnitude", "activation", "taylor", "influence", "search"])
def test_every_method_on_every_decoder(
    by: str, kind: str, kv_heads: int, dataset: Artefact, tmp_path: Path
) -> None:
    given = sealed(build(kind, kv_heads=kv_heads), dataset, tmp_path / "given")
    depth = {"layers": 1, "depth_by": by, "calibration": 8}
    settings = depth if by in ("influence", "search") else WIDTH | {"importance": by}
    inputs = {"data": dataset, "model": given}
    made = prune(PruneConfig.model_validate(settings), inputs, tmp_path / "made")
    after = (1, 4, kv_heads, 48) if "layers" in settings else (2, 2, kv_heads // 2, 24)
    assert shape_of(made) == after
    assert load(made.path).manifest.metrics["layers"] == after[0]


def test_depth_and_width_are_told(inputs: Inputs, tmp_path: Path) -> None:
    config = PruneConfig(layers=2, depth_by="search", ffn=0.25, round_to=1, calibration=40)
    made = prune(config, inputs, tmp_path / "p")
    numbers = numbers_of(made)
    assert shape_of(made) == (2, 4, 2, 16)
    assert len(numbers["block_influence"]) == 3
    (gone,) = numbers["search"]
    assert sorted([*numbers["kept_layers"], gone["removed"]]) == [0, 1, 2]
    assert [one["layer"] for one in numbers["layers"]] == numbers["kept_layers"]
    assert all(set(one) == {"layer", "channels"} for one in numbers["layers"])
    assert made.manifest.versions.keys() >= {"torch", "torch-pruning"}
    card = made.file("README.md").read_text()
    assert "2 of 3 layers, 4 of 4 attention heads and 16 of 64 MLP channels" in card


def test_influence_keeps_the_layers_that_turn_most(inputs: Inputs, tmp_path: Path) -> None:
    made = prune(PruneConfig(layers=1, calibration=40), inputs, tmp_path / "p")
    numbers = numbers_of(made)
    influence = numbers["block_influence"]
    assert numbers["kept_layers"] == [influence.index(max(influence))]
    full, small = load_model(inputs["model"]).state_dict(), load_model(made).state_dict()
    (stays,) = numbers["kept_layers"]
    for name, tensor in small.items():
        assert torch.equal(tensor, full[name.replace("layers.0.", f"layers.{stays}.")])


def test_the_same_call_gives_the_same_artefact(inputs: Inputs, tmp_path: Path) -> None:
    config = PruneConfig.model_validate(WIDTH | {"layers": 2})
    made = [prune(config, inputs, tmp_path / name) for name in ("a", "b")]
    assert made[0].digest == made[1].digest


@pytest.mark.parametrize("rate", [1e-12, 3e-3])
def test_recovery_is_a_student_that_starts_from_it(
    rate: float, inputs: Inputs, dataset: Artefact, teacher: Artefact, tmp_path: Path
) -> None:
    pruned = prune(PruneConfig.model_validate(WIDTH | {"layers": 2}), inputs, tmp_path / "p")
    settings = {"blocks": 2, "epochs": 2, "rows": 8, "warmup": 2, "dtype": "fp32"}
    rates = {"lr": rate, "projection_lr": rate, "weight_decay": 0}
    config = DistillConfig.model_validate(settings | rates | {"losses": {"logits": 1.0}})
    chain = {"data": dataset, "teacher": teacher, "student": pruned}
    recovered = distill(config, chain, tmp_path / "r")
    assert shape_of(recovered) == shape_of(pruned) == (2, 2, 1, 32)
    if rate == 1e-12:
        before, after = load_model(pruned).state_dict(), load_model(recovered).state_dict()
        assert all(torch.allclose(before[n], after[n], atol=1e-6) for n in before)
    else:
        assert valid_ce(recovered, dataset) < valid_ce(pruned, dataset) - 0.01


def test_as_a_command(
    student: Artefact,
    dataset: Artefact,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, options = tmp_path / "p", ["--heads", "0.5", "--ffn", "0.5", "--round-to", "8"]
    code = call(["prune", str(student.path), "--data", str(dataset.path), "-o", str(out), *options])
    assert code == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert shape_of(load(out)) == (2, 2, 1, 32)
    assert call(["prune", str(student.path), "--data", str(dataset.path)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "say what is kept: at least one of layers, heads and ffn" in said


# What is asked and cannot be had, or brings nothing.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": 3}, "prune: layers: 3 keeps all layers; nothing is saved by it"),
        ({"heads": 0.8}, "prune: heads: 0.8 keeps all 2 kv groups; nothing is saved by it"),
        (
            {"ffn": 0.75},
            "prune: ffn: 0.75 keeps all 64 channels, rounded to a multiple of 64; "
            "nothing is saved by it",
        ),
    ],
)
def test_what_saves_nothing_is_said(
    settings: dict[str, Any],
    message: str,
    inputs: Inputs,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = prune(PruneConfig.model_validate({"calibration": 8} | settings), inputs, tmp_path / "p")
    assert message in caplog.messages
    assert shape_of(made) == shape_of(inputs["model"])


@pytest.mark.parametrize(
    ("share", "round_to", "kept"),
    [
        (0.75, 64, 64),
        (0.1, 64, 64),
        (0.75, 32, 64),
        (0.7, 32, 32),
        (0.3, 1, 19),
        (1.0, 48, 64),
        (0.8, 48, 48),
    ],
)
def test_channels_are_rounded(
    share: float, round_to: int, kept: int, inputs: Inputs, tmp_path: Path
) -> None:
    model = load_model(inputs["model"])
    assert isinstance(model.config, RecommenderConfig)
    config = PruneConfig(ffn=share, round_to=round_to)
    assert module.wanted(config, model.config).channels == kept


def test_a_number_of_heads_that_a_config_does_not_take(caplog: pytest.LogCaptureFixture) -> None:
    config = PruneConfig(heads=0.67)
    assert module.wanted(config, build("llama", kv_heads=4).config).heads == 4
    assert caplog.messages == [
        "prune: 4 kv groups are kept instead of 3: a config of llama takes no such number of "
        "heads at a hidden size of 32",
        "prune: heads: 0.67 keeps all 4 kv groups; nothing is saved by it",
    ]
    caplog.clear()
    assert module.wanted(config, build("qwen3", kv_heads=4).config).heads == 3
    assert caplog.messages == []


def test_a_model_that_is_mostly_items(
    dataset: Artefact, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = build("llama")
    before = 10 * sum(p.numel() for p in model.parameters())
    model.item_embeddings = torch.nn.Embedding(before // 16, 16)
    module._say_what_is_saved(model, before + 100)
    (said,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert re.fullmatch(
        r"prune: the model is only -?\d\.\d % smaller: \d+ % of its weights are the item table, "
        r"which pruning leaves as it is; quantize it instead",
        said,
    )


@pytest.mark.parametrize(
    ("settings", "message", "remedy"),
    [
        (
            {"layers": 4},
            "layers: 4 are to be kept, but the model has 3.",
            "Ask for at most 3.",
        ),
        ({"heads": 0.2}, "heads: 0.2 of 2 kv groups is none.", "Ask for at least 0.5."),
        ({"ffn": 0.001}, "ffn: 0.001 of 64 channels is none.", "Ask for at least 0.016."),
    ],
)
def test_nothing_would_be_left(
    settings: dict[str, Any], message: str, remedy: str, inputs: Inputs, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        prune(PruneConfig.model_validate(settings), inputs, tmp_path / "p")
    assert (caught.value.what, caught.value.remedy) == (message, remedy)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "settings", [{}, {"layers": 0}, {"heads": 0}, {"heads": 1.5}, {"ffn": -0.1}, {"round_to": 64}]
)
def test_settings_that_make_no_sense(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"greater than|less than|say what is kept"):
        PruneConfig.model_validate(settings)


def test_sasrec_is_refused(inputs: Inputs, sasrec: Artefact, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        prune(PruneConfig(heads=0.5), inputs | {"model": sasrec}, tmp_path / "p")
    assert caught.value.what == f"{sasrec.path} is a Sasrec, not a recommender on an LLM."
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_model_is_refused(inputs: Inputs, dataset: Artefact, tmp_path: Path) -> None:
    given = tmp_path / "given"
    with draft(given) as work:
        save_model(build("llama"), dataset, work.path)
        file = work.path / "config.json"
        stored = json.loads(file.read_text())
        stored["quantization_config"] = {"quant_method": "compressed-tensors"}
        file.write_text(json.dumps(stored))
        quantized = work.seal(kind="model", stage="quantize", config=Seeded(), inputs={})
    with pytest.raises(UsageError) as caught:
        prune(PruneConfig(heads=0.5), inputs | {"model": quantized}, tmp_path / "p")
    assert caught.value.what == (
        f"{given} is quantized: its weights are codes, which cannot be cut."
    )
    assert caught.value.remedy == ("Prune before quantizing: name the model that it was made from.")
    assert list(tmp_path.iterdir()) == [given]


def test_weights_that_are_no_numbers(inputs: Inputs, dataset: Artefact, tmp_path: Path) -> None:
    model = build("llama")
    with torch.no_grad():
        model.layers[1].get_parameter("mlp.up_proj.weight")[3, 4] = float("nan")
    given = sealed(model, dataset, tmp_path / "given")
    with pytest.raises(UsageError) as caught:
        prune(PruneConfig(heads=0.5), inputs | {"model": given}, tmp_path / "p")
    assert caught.value.what == (
        f"{given.path / 'model.safetensors'}: backbone.layers.1.mlp.up_proj.weight holds numbers "
        "that are not finite."
    )
    assert list(tmp_path.iterdir()) == [given.path]


def test_another_decoder_is_refused_before_anything_is_measured(
    inputs: Inputs, dataset: Artefact, tmp_path: Path
) -> None:
    given = sealed(build("olmo2"), dataset, tmp_path / "given")
    with pytest.raises(UsageError) as caught:
        prune(PruneConfig(heads=0.5), inputs | {"model": given}, tmp_path / "p")
    assert "the attention of olmo2 is of a form" in caught.value.what
    assert list(tmp_path.iterdir()) == [given.path]


def test_another_catalogue(inputs: Inputs, tmp_path: Path, dataset: Artefact) -> None:
    model = build("llama")
    model.config.num_items = 29
    model.item_embeddings = torch.nn.Embedding(30, 16)
    given = sealed(model, dataset, tmp_path / "given")
    with pytest.raises(UsageError) as caught:
        prune(PruneConfig(heads=0.5), inputs | {"model": given}, tmp_path / "p")
    assert caught.value.what == "the model ranks 29 items, the dataset has 30."


def test_fewer_histories_than_asked_for(
    inputs: Inputs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prune(PruneConfig(heads=0.5, calibration=1000), inputs, tmp_path / "p")
    assert "calibration: 1000 histories are asked for, there are 80" in caplog.messages


def test_without_the_extra(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(MissingError) as caught:
        prune(PruneConfig(heads=0.5), inputs, tmp_path / "p")
    assert caught.value.what.startswith("torch_pruning cannot be imported (")
    assert caught.value.remedy == "Install it with `pip install 'slmc[prune]'`."
    assert list(tmp_path.iterdir()) == []


def test_best_and_summary() -> None:
    scores = torch.tensor([1.0, 3.0, 3.0, 0.5], dtype=torch.float64)
    assert best(scores, 1) == (1,) and best(scores, 3) == (0, 1, 2)
    assert summary(scores, (1, 2)) == {
        "kept": [1, 2],
        "importance_kept": 0.8,
        "least_kept": 3.0,
        "most_removed": 1.0,
    }
    assert summary(torch.zeros(2), (0, 1))["importance_kept"] == 1.0


# In a recipe.

RECIPE = """\
version: 1
name: x
data: {source: a.csv}
steps:
  - teach: {backbone: 'random://llama', layers: 8}
  - distill: {layers: 4, blocks: 4}
  - prune: {layers: 3, heads: 0.67, ffn: 0.75}
  - distill: {id: recover, student: prune, blocks: 3, epochs: 1}
  - export:
"""


def test_a_recipe_that_prunes_and_recovers(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE)
    for smoke in (False, True):
        recipe = read_recipe(str(file), smoke=smoke)
        steps = {step.id: step for step in recipe.steps}
        assert steps["prune"].inputs == {"data": "prepare", "model": "distill"}
        recover = {"data": "prepare", "teacher": "teach", "student": "prune"}
        assert steps["recover"].inputs == recover
        assert steps["export"].inputs["model"] == "recover"
    small = steps["prune"].config
    assert isinstance(small, PruneConfig)
    assert (small.layers, small.heads, small.round_to, small.calibration) == (2, 0.67, 16, 96)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("layers: 3,", "layers: 5,", "7: prune.layers: 5 layers are more than the 4 of 'distill'"),
        (
            "blocks: 3",
            "blocks: 4",
            "8: recover.blocks: 4 blocks are more than the 3 layers of 'prune'",
        ),
        ("ffn: 0.75", "ffn: 1.75", "7: prune.ffn: should be less than or equal to 1, not 1.75"),
    ],
)
def test_messages_of_a_recipe(old: str, new: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE.replace(old, new))
    with pytest.raises(RecipeError) as caught:
        read_recipe(str(file))
    assert caught.value.what == f"{file}:{message}"


def test_the_missing_extra_is_named_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE)
    there = preflight.find_spec
    monkeypatch.setattr(
        preflight, "find_spec", lambda name: None if name == "torch_pruning" else there(name)
    )
    with pytest.raises(MissingError) as caught:
        preflight.check_extras(read_recipe(str(file)).steps)
    assert caught.value.what == "prune: torch_pruning not installed."
    assert caught.value.remedy == "Install with `pip install 'slmc[prune]'`."
    assert caught.value.exit_code == 4
