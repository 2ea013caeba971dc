"""SASRec whose item vectors come from texts."""

from pathlib import Path

import pytest
import text_encoders
import torch
from pydantic import ValidationError

from slmc.artefact import Artefact
from slmc.data.dataset import Dataset
from slmc.distill.config import TeachConfig
from slmc.distill.teach import teach
from slmc.errors import UsageError
from slmc.model.loading import load_model
from slmc.model.text_encoder import Encoder, text_vectors
from slmc.model.text_items import STD, Whitening
from slmc.model.text_map import FILE, TextMap
from slmc.stages import STAGES
from slmc.training.config import SasrecConfig
from slmc.training.pretrain import sasrec


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_encoders.save(tmp_path_factory.mktemp("encoder") / "bert")


@pytest.fixture(scope="module")
def data(log_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return text_encoders.titled(log_csv, tmp_path_factory.mktemp("titled"))


def config(folder: Path, **settings: object) -> SasrecConfig:
    small = {"dim": 8, "epochs": 2, "device": "cpu", "dtype": "fp32", "seed": 3}
    return SasrecConfig.model_validate(
        {"item_embeddings": "hybrid", "encoder": str(folder), **small, **settings}
    )


@pytest.mark.parametrize("kind", ["text", "hybrid"])
def test_the_model_is_a_plain_sasrec_afterwards(
    kind: str, data: Artefact, encoder: Path, tmp_path: Path
) -> None:
    made = sasrec(config(encoder, item_embeddings=kind), {"data": data}, tmp_path / "out")
    model = load_model(made)
    assert type(model.item_embeddings) is torch.nn.Embedding
    scores = model(torch.tensor([[1, 2, 3]]))
    assert scores.shape == (1, Dataset.open(data).num_items + 1) and scores[0, 1:].isfinite().all()


def test_it_begins_with_the_whitened_texts(data: Artefact, encoder: Path, tmp_path: Path) -> None:
    texts = [text for text in Dataset.texts(data) if text]
    vectors = text_vectors(texts, Encoder.of(str(encoder), None, None))
    start = Whitening.fit(vectors, 8)(vectors) * STD
    asked = config(encoder, epochs=1, lr=1e-9, weight_decay=0)
    table = load_model(sasrec(asked, {"data": data}, tmp_path / "out")).item_vectors()
    assert torch.allclose(table[1:], start, atol=1e-5) and not table[0].any()


def test_the_same_seed_gives_the_same_bits(data: Artefact, encoder: Path, tmp_path: Path) -> None:
    made = [sasrec(config(encoder), {"data": data}, tmp_path / name) for name in ("a", "b")]
    weights = [one.manifest.files["model.safetensors"] for one in made]
    assert weights[0] == weights[1]


def test_a_dataset_without_texts(dataset: Artefact, encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        sasrec(config(encoder), {"data": dataset}, tmp_path / "out")
    assert caught.value.what == f"the dataset {dataset.path} has no texts of items."


def test_an_encoder_and_text_go_together(encoder: Path) -> None:
    for settings, why in (
        ({"encoder": None}, "item_embeddings: hybrid needs an encoder"),
        ({"item_embeddings": "ids"}, "encoder needs item_embeddings: text or hybrid"),
    ):
        with pytest.raises(ValidationError, match=why):
            config(encoder, **settings)


def test_the_files_of_the_encoder_are_part_of_the_key(encoder: Path, tmp_path: Path) -> None:
    from slmc.pipeline.keys import Outside, key_of

    def key(folder: Path) -> str:
        return key_of("sasrec", config(folder), {}, Outside()).digest

    same = text_encoders.save(tmp_path / "same")
    assert key(same) == key(encoder)
    (same / "config.json").write_text((same / "config.json").read_text() + " ")
    assert key(same) != key(encoder) and STAGES["sasrec"].fingerprint


def test_a_new_item_gets_the_vector_that_its_text_would_have_had(
    data: Artefact, encoder: Path, tmp_path: Path
) -> None:
    made = sasrec(config(encoder, item_embeddings="text"), {"data": data}, tmp_path / "out")
    table, texts = load_model(made).item_vectors(), Dataset.texts(data)
    text_map = TextMap.open(made)
    text_map.check(table, "out")
    vectors = text_map.vectors([text for text in texts if text][:5])
    assert torch.allclose(vectors, table[1:6], atol=1e-5)
    with pytest.raises(UsageError, match="was trained further after it came from texts"):
        text_map.check(table + 1e-3, "out")


def test_another_encoder_of_that_name_is_refused(data: Artefact, tmp_path: Path) -> None:
    folder = text_encoders.save(tmp_path / "encoder")
    made = sasrec(config(folder), {"data": data}, tmp_path / "out")
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    with pytest.raises(UsageError, match="its files have changed since the item table was trained"):
        TextMap.open(made).vectors(["soap"])


def test_models_on_the_table_can_take_in_new_items_too(
    data: Artefact, encoder: Path, tmp_path: Path
) -> None:
    base = sasrec(config(encoder), {"data": data}, tmp_path / "sasrec")
    backbone = "random://llama?layers=2&hidden=16&heads=2&kv_heads=2&intermediate=32"
    asked = TeachConfig.model_validate(
        {"backbone": backbone, "epochs": 1, "must_beat": None, "device": "cpu", "dtype": "fp32"}
    )
    made = teach(asked, {"data": data, "sasrec": base}, tmp_path / "teacher")
    assert made.manifest.files[FILE] == base.manifest.files[FILE]
    TextMap.open(made).check(load_model(made).item_vectors(), "teacher")
