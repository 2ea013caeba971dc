"""Teachers whose own item table comes from texts, and students of such teachers."""

import json
import logging
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import text_encoders
import torch
from pydantic import ValidationError

from slmc.artefact import Artefact
from slmc.data.dataset import Dataset
from slmc.distill.config import DistillConfig, TeachConfig
from slmc.distill.distill import distill
from slmc.distill.teach import teach
from slmc.errors import UsageError
from slmc.evaluation.baselines import baselines as measure_baselines
from slmc.evaluation.config import BaselinesConfig
from slmc.export.config import ExportConfig
from slmc.export.export import export
from slmc.export.runtime.engine import Engine
from slmc.model.loading import load_model
from slmc.model.text_encoder import Encoder, text_vectors
from slmc.model.text_items import STD, Whitening
from slmc.model.text_map import FILE, TextMap
from slmc.pipeline.keys import Outside, key_of
from slmc.training.config import SasrecConfig
from slmc.training.pretrain import sasrec

WIDTH = 8
SMALL = {"device": "cpu", "dtype": "fp32", "epochs": 1, "rows": 8, "warmup": 2}
RANDOM = "random://llama?layers=2&hidden=32&heads=4&kv_heads=2&intermediate=64"
Inputs = dict[str, Artefact]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text-teacher")


@pytest.fixture(scope="module")
def llm(folder: Path) -> Path:
    """A backbone with weights and a tokenizer."""
    return text_encoders.save(folder / "llm", "llama", layers=3)


@pytest.fixture(scope="module")
def inputs(log_csv: Path, folder: Path) -> Inputs:
    data = text_encoders.titled(log_csv, folder)
    base = sasrec(SasrecConfig.model_validate(SMALL | {"dim": 12}), {"data": data}, folder / "base")
    report = measure_baselines(
        BaselinesConfig(), {"data": data, "sasrec": base}, folder / "baselines"
    )
    return {"data": data, "sasrec": base, "baselines": report}


@pytest.fixture(scope="module")
def teacher(llm: Path, inputs: Inputs, folder: Path) -> Artefact:
    return teach(settings(llm), inputs, folder / "teacher")


def settings(backbone: object, **other: object) -> TeachConfig:
    texts = {"item_embeddings": "text", "item_dim": WIDTH}
    given = {"backbone": str(backbone), "must_beat": None} | texts | SMALL | other
    return TeachConfig.model_validate(given)


def rows_with_text(data: Artefact) -> list[str]:
    return [text for text in Dataset.texts(data) if text]


@pytest.mark.parametrize("kind", ["text", "hybrid"])
def test_it_begins_with_the_whitened_vectors_of_its_own_backbone(
    kind: str, llm: Path, inputs: Inputs, tmp_path: Path
) -> None:
    asked = settings(
        llm, item_embeddings=kind, encoder_layer=2, lr=1e-9, projection_lr=1e-9, weight_decay=0
    )
    made = teach(asked, inputs, tmp_path / "t")
    vectors = text_vectors(rows_with_text(inputs["data"]), Encoder.of(str(llm), None, 2))
    table = load_model(made).item_vectors()
    assert torch.allclose(table[1:], Whitening.fit(vectors, WIDTH)(vectors) * STD, atol=1e-5)
    assert not table[0].any()


def test_the_adapter_is_trained_with_the_teacher_and_folded(
    teacher: Artefact, inputs: Inputs
) -> None:
    model = load_model(teacher)
    assert type(model.item_embeddings) is torch.nn.Embedding
    assert not [name for name in model.state_dict() if "adapter" in name]
    text_map = TextMap.open(teacher)
    assert text_map.weights["2.weight"].any(), "the last layer of the adapter begins with zeros"
    text_map.check(model.item_vectors(), "teacher")
    vectors = text_map.vectors(rows_with_text(inputs["data"])[:4])
    assert torch.allclose(vectors, model.item_vectors()[1:5], atol=1e-5)


def test_the_layer_of_the_backbone_is_chosen_and_recorded(teacher: Artefact, llm: Path) -> None:
    numbers = json.loads(teacher.file("metrics.json").read_bytes())["encoder_layer"]
    encoder = TextMap.open(teacher).encoder
    assert (encoder.name, encoder.layer) == (str(llm), numbers["layer"])
    assert set(numbers["values"]) == {"1", "2", "3"} and numbers["depth"] == 3
    assert teacher.manifest.metrics["encoder_layer"] == numbers


def test_the_same_seed_gives_the_same_bits(
    teacher: Artefact, llm: Path, inputs: Inputs, tmp_path: Path
) -> None:
    again = teach(settings(llm), inputs, tmp_path / "again")
    weights = [one.manifest.files["model.safetensors"] for one in (teacher, again)]
    assert weights[0] == weights[1]


def test_a_sentence_encoder_lora_a_prompt_and_random_layers_work_with_it(
    llm: Path, inputs: Inputs, tmp_path: Path
) -> None:
    encoder = text_encoders.save(tmp_path / "bert")
    asked = settings(
        llm,
        item_embeddings="hybrid",
        encoder=str(encoder),
        encoder_layer=None,
        id_dropout=0.2,
        tune="lora",
        targets="last",
        prompt={"prefix": "red soap", "suffix": "a"},
        must_beat={},
    )
    made = teach(asked, inputs, tmp_path / "t")
    model = load_model(made)
    TextMap.open(made).check(model.item_vectors(), "teacher")
    assert not [name for name in model.state_dict() if "lora" in name]
    assert set(made.manifest.metrics["must_beat"]) == {"popularity", "markov", "sasrec"}
    control = teach(settings(llm, init="random"), inputs, tmp_path / "random")
    assert TextMap.open(control).encoder.name == str(llm), "texts keep the LLM's own weights"


@pytest.mark.parametrize(
    "settings_of_student",
    [{}, {"init": "teacher"}, {"tune": "lora", "losses": {"logits": 1.0}}],
    ids=["backbone", "teacher", "lora"],
)
def test_students_keep_the_table_and_its_map(
    settings_of_student: dict[str, object], teacher: Artefact, inputs: Inputs, tmp_path: Path
) -> None:
    asked = DistillConfig.model_validate(SMALL | {"layers": 2, "blocks": 2} | settings_of_student)
    made = distill(asked, {"data": inputs["data"], "teacher": teacher}, tmp_path / "student")
    assert torch.equal(load_model(made).item_vectors(), load_model(teacher).item_vectors())
    assert made.manifest.files[FILE] == teacher.manifest.files[FILE]


def test_students_train_the_table_further_where_it_is_not_frozen(
    llm: Path, inputs: Inputs, tmp_path: Path
) -> None:
    free = teach(settings(llm, freeze_items=False), inputs, tmp_path / "free")
    TextMap.open(free).check(load_model(free).item_vectors(), "free")
    asked = DistillConfig.model_validate(SMALL | {"layers": 1, "blocks": 1, "losses": {}})
    made = distill(asked, {"data": inputs["data"], "teacher": free}, tmp_path / "student")
    with pytest.raises(UsageError, match="was trained further after it came from texts"):
        TextMap.open(made).check(load_model(made).item_vectors(), "student")


@pytest.mark.slow
def test_new_items_get_into_the_engine_of_a_student(
    teacher: Artefact, inputs: Inputs, tmp_path: Path
) -> None:
    new = tmp_path / "new.csv"
    new.write_text("item_id,title\nnew-1,red soap\nnew-2,blue nail\n")
    asked = DistillConfig.model_validate(SMALL | {"layers": 1, "blocks": 1, "losses": {}})
    data = inputs["data"]
    student = distill(asked, {"data": data, "teacher": teacher}, tmp_path / "student")
    config = ExportConfig(top_k=5, items=str(new))
    engine = export(config, {"data": data, "model": student}, tmp_path / "engine")
    scores = Engine.open(engine, scores=True).scores([np.array([1, 2, 3])])
    vectors = TextMap.open(teacher).vectors(["red soap", "blue nail"])
    with torch.inference_mode():
        users = load_model(student).user_vectors(torch.tensor([[1, 2, 3]]))
    assert torch.allclose(torch.from_numpy(scores[:, -2:]), users @ vectors.T, atol=1e-4)


def test_a_random_table_beside_a_sasrec_of_texts_has_no_map(
    llm: Path, inputs: Inputs, tmp_path: Path
) -> None:
    asked = SMALL | {"dim": WIDTH, "item_embeddings": "text", "encoder": str(llm)}
    base = sasrec(SasrecConfig.model_validate(asked), {"data": inputs["data"]}, tmp_path / "base")
    random = settings(RANDOM, item_embeddings="random", freeze_items=False)
    made = teach(random, inputs | {"sasrec": base}, tmp_path / "random")
    assert FILE in base.manifest.files and FILE not in made.manifest.files


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (
            {"backbone": RANDOM},
            "item_embeddings: text needs an encoder here, because a random backbone has no "
            "tokenizer",
        ),
        ({"id_dropout": 0.1}, "id_dropout needs item_embeddings: hybrid"),
        ({"encoder_revision": "main"}, "encoder_revision needs an encoder"),
        (
            {"item_embeddings": "sasrec", "encoder": "some/encoder"},
            "encoder needs item_embeddings: text or hybrid",
        ),
    ],
)
def test_settings_that_cannot_work_together(llm: Path, other: dict[str, object], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        settings(**({"backbone": llm} | other))


def test_a_recommender_keeps_its_own_table(
    teacher: Artefact, inputs: Inputs, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        teach(settings(teacher.path, epochs=0), inputs, tmp_path / "t")
    assert caught.value.what == (
        f"item_embeddings: text cannot be used with the backbone {teacher.path}: it is a "
        "recommender, which keeps its own item table."
    )


def test_data_without_texts(llm: Path, dataset: Artefact, inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        teach(settings(llm), inputs | {"data": dataset}, tmp_path / "t")
    assert caught.value.what == f"the dataset {dataset.path} has no texts of items."
    assert not (tmp_path / "t").exists()


def test_the_key_of_a_teacher_without_texts_is_the_one_of_earlier_versions() -> None:
    def config_of(**other: object) -> dict[str, object]:
        given = {"backbone": RANDOM, "dtype": "fp32"} | other
        parts = key_of("teach", TeachConfig.model_validate(given), {}, Outside()).parts
        assert list(parts["fingerprint"]) == ["backbone"]
        kept: dict[str, object] = parts["config"]
        return kept

    assert not {"encoder", "encoder_revision", "encoder_layer", "id_dropout"} & set(config_of())
    assert config_of(encoder_layer=3)["encoder_layer"] == 3
    assert config_of(encoder_layer=None)["encoder_layer"] is None


def test_encoder_and_its_layer_are_part_of_the_key(llm: Path, tmp_path: Path) -> None:
    encoder = text_encoders.save(tmp_path / "bert")

    def key(**other: object) -> str:
        return key_of("teach", settings(llm, **other), {}, Outside()).digest

    own, other = key(), key(encoder=str(encoder))
    assert len({own, other, key(encoder_layer=1), key(item_embeddings="hybrid")}) == 4
    hybrid = key(item_embeddings="hybrid", id_dropout=0.1)
    assert hybrid not in {own, key(item_embeddings="hybrid")}
    (encoder / "config.json").write_text((encoder / "config.json").read_text() + " ")
    assert key(encoder=str(encoder)) != other


def test_the_choice_is_logged(
    llm: Path, inputs: Inputs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    teach(settings(llm), inputs, tmp_path / "t")
    assert [m for m in caplog.messages if m.startswith(f"encoder {llm}: layer ")]
    assert pl.read_parquet(inputs["data"].file("texts.parquet")).height == 30
