"""Teaching: trained and frozen weights, an existing teacher, the comparison with baselines."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest
import torch

from slmc.artefact import Artefact, load
from slmc.config import Sampled
from slmc.data.dataset import Dataset
from slmc.distill.config import MustBeat, Prompt, TeachConfig
from slmc.distill.must_beat import check, compare
from slmc.distill.teach import teach
from slmc.errors import UsageError, VerdictError
from slmc.evaluation.baselines import baselines as measure_baselines
from slmc.evaluation.config import BaselinesConfig
from slmc.evaluation.scorers import VectorScorer
from slmc.model.loading import load_model

BACKBONE = "random://llama?layers=3&hidden=32&heads=4&kv_heads=2&intermediate=64"
FAST = {"backbone": BACKBONE, "epochs": 1, "rows": 8, "warmup": 2, "dtype": "fp32"}
Inputs = dict[str, Artefact]


@pytest.fixture
def inputs(dataset: Artefact, sasrec: Artefact, baselines: Artefact) -> Inputs:
    return {"data": dataset, "sasrec": sasrec, "baselines": baselines}


def settings(**other: object) -> TeachConfig:
    return TeachConfig.model_validate(FAST | {"must_beat": None} | other)


def test_the_item_table_stays_as_sasrec_left_it(teacher: Artefact, sasrec: Artefact) -> None:
    frozen, table = load_model(teacher).item_vectors(), load_model(sasrec).item_vectors()
    assert torch.equal(frozen, table)
    assert (frozen[0] == 0).all()


def test_teacher_artefact_tells_what_it_is(teacher: Artefact) -> None:
    artefact = load(teacher.path, kind="model")
    assert set(artefact.manifest.parents) == {"data", "sasrec", "baselines"}
    assert artefact.manifest.metrics["layers"] == 3
    assert set(artefact.manifest.metrics["must_beat"]) == {"popularity", "markov", "sasrec"}
    assert "README.md" in artefact.manifest.files
    epochs = json.loads(artefact.file("metrics.json").read_text())["epochs"]
    assert epochs[-1]["ce"] < epochs[0]["ce"]


def test_lora_leaves_a_plain_model_that_differs(inputs: Inputs, tmp_path: Path) -> None:
    made = teach(settings(tune="lora"), inputs, tmp_path / "lora")
    names = load_model(made).state_dict()
    assert not [n for n in names if "lora" in n or "base_layer" in n]
    other = teach(settings(tune="lora", lr=1e-2), inputs, tmp_path / "other")
    changed = {n for n, t in load_model(other).state_dict().items() if not torch.equal(t, names[n])}
    assert any("down_proj" in n for n in changed)
    assert not [n for n in changed if "q_proj" in n or "norm" in n]


def test_unknown_lora_modules_are_named(inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        teach(settings(tune="lora", lora={"modules": ["nothing"]}), inputs, tmp_path / "t")
    assert caught.value.what.startswith("lora.modules: nothing are not in the backbone")
    assert not (tmp_path / "t").exists()


def test_targets_last_and_trained_items(inputs: Inputs, tmp_path: Path) -> None:
    config = settings(targets="last", item_embeddings="random", freeze_items=False, item_dim=12)
    model = load_model(teach(config, inputs, tmp_path / "t"))
    assert model.config.item_dim == 12


def test_an_existing_teacher_keeps_its_weights(
    teacher: Artefact, inputs: Inputs, tmp_path: Path
) -> None:
    folder = tmp_path / "existing"
    shutil.copytree(teacher.path, folder)
    items = pl.read_parquet(folder / "items.parquet")
    data = Dataset.open(inputs["data"])
    reversed_items = items.with_columns(row=(data.num_items + 1 - pl.col("row")).cast(pl.Int32))
    reversed_items.write_parquet(folder / "items.parquet")
    made = teach(settings(backbone=str(folder), epochs=0), inputs, tmp_path / "t")
    before, after = load_model(teacher), load_model(made)
    assert torch.equal(after.item_vectors()[1:], before.item_vectors()[1:].flip(0))
    kept = "backbone.layers.0.mlp.up_proj.weight"
    assert torch.equal(after.state_dict()[kept], before.state_dict()[kept])


def test_an_existing_teacher_must_know_the_items(
    teacher: Artefact, inputs: Inputs, tmp_path: Path
) -> None:
    folder = tmp_path / "existing"
    shutil.copytree(teacher.path, folder)
    items = pl.read_parquet(folder / "items.parquet")
    items.filter(pl.col("row") > 2).write_parquet(folder / "items.parquet")
    with pytest.raises(UsageError) as caught:
        teach(settings(backbone=str(folder), epochs=0), inputs, tmp_path / "t")
    assert "2 items of the dataset are not in its vocabulary" in caught.value.what


def test_a_plain_llm_needs_training(inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        teach(settings(epochs=0), inputs, tmp_path / "t")
    assert caught.value.what.startswith("epochs: 0 trains nothing")


def test_a_prompt_needs_a_tokenizer(inputs: Inputs, tmp_path: Path) -> None:
    config = settings(targets="last", prompt=Prompt(prefix="Recommend:"))
    with pytest.raises(UsageError) as caught:
        teach(config, inputs, tmp_path / "t")
    assert caught.value.what == "prompt: a random backbone has no tokenizer."


def test_a_teacher_that_is_worse_is_sealed_and_then_refused(
    inputs: Inputs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = settings(lr=1e-9, projection_lr=1e-9, must_beat=MustBeat(otherwise="stop"))
    artefact = teach(config, inputs, tmp_path / "t")
    markov = artefact.manifest.metrics["must_beat"]["markov"]
    assert markov["outcome"] == "worse"
    message = f"the teacher is significantly worse than markov: {markov['sentence']}"
    with pytest.raises(VerdictError) as caught:
        check(config, artefact)
    assert caught.value.what.startswith(f"teach: {message}")
    assert caught.value.exit_code == 1
    caplog.clear()
    check(settings(must_beat=MustBeat()), artefact)
    assert [logged.startswith(message) for logged in caplog.messages] == [True]
    check(settings(), artefact)


def test_must_beat_compares_under_the_protocol_of_the_baselines(
    dataset: Artefact, sasrec: Artefact, tmp_path: Path
) -> None:
    config = BaselinesConfig(ranking=Sampled(sampled=9), exclude_seen=True, seed=3)
    report = measure_baselines(config, {"data": dataset, "sasrec": sasrec}, tmp_path / "baselines")
    scorer = VectorScorer.of(load_model(sasrec))
    comparisons = compare(MustBeat(models=("sasrec",)), scorer, report, Dataset.open(dataset), 17)
    # The model is the baseline itself: the ranks are equal only with the same negatives.
    sasrec_itself = comparisons["sasrec"]
    assert sasrec_itself["protocol"] == "9 sampled negatives, valid"
    assert sasrec_itself["value"] == sasrec_itself["baseline_value"]
    assert sasrec_itself["change"] == 0 and sasrec_itself["outcome"] == "not worse"
