"""Items that are newer than the model get vectors from their texts; nothing is trained."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import text_encoders
import torch
from safetensors import safe_open

from slmc.artefact import Artefact
from slmc.compress.config import QuantizeConfig
from slmc.compress.quantize.quantize import quantize
from slmc.data.dataset import Dataset
from slmc.distill.config import DistillConfig, TeachConfig
from slmc.distill.distill import distill
from slmc.distill.narrow import follow_texts
from slmc.distill.teach import teach
from slmc.errors import UsageError
from slmc.evaluation.config import EvaluateConfig
from slmc.export.config import ExportConfig
from slmc.export.evaluation import evaluate_engine
from slmc.export.export import export
from slmc.export.fingerprint import fingerprint
from slmc.export.items.new_items import extend
from slmc.export.runtime.engine import Engine
from slmc.export.vocabulary import FILE, Vocabulary
from slmc.model.loading import load_model
from slmc.model.text_map import Projection, TextMap, digest_of_table
from slmc.training.config import SasrecConfig
from slmc.training.pretrain import sasrec

NEW = "item_id,title\nnew-1,red soap\nnew-2,blue nail\nempty,\n"
HISTORIES = [np.array([1, 2, 3]), np.array([4])]
SMALL = {"device": "cpu", "dtype": "fp32", "epochs": 1}
BACKBONE = "random://llama?layers=2&hidden=32&heads=2&kv_heads=2&intermediate=64"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("new")


@pytest.fixture(scope="module")
def data(log_csv: Path, folder: Path) -> Artefact:
    made = text_encoders.titled(log_csv, folder)
    known = pl.read_csv(folder / "items.csv")["item_id"][0]
    (folder / "new.csv").write_text(NEW + f"{known},known already\n")
    return made


@pytest.fixture(scope="module")
def base(data: Artefact, folder: Path) -> Artefact:
    encoder = str(text_encoders.save(folder / "encoder"))
    settings = {"item_embeddings": "hybrid", "encoder": encoder, "dim": 8, **SMALL}
    return sasrec(SasrecConfig.model_validate(settings), {"data": data}, folder / "sasrec")


@pytest.fixture(scope="module")
def teacher(data: Artefact, base: Artefact, folder: Path) -> Artefact:
    config = TeachConfig.model_validate({"backbone": BACKBONE, "must_beat": None, **SMALL})
    return teach(config, {"data": data, "sasrec": base}, folder / "teacher")


@pytest.fixture(scope="module")
def engine(data: Artefact, teacher: Artefact, folder: Path) -> Artefact:
    config = ExportConfig(top_k=5, items=str(folder / "new.csv"))
    return export(config, {"data": data, "model": teacher}, folder / "engine")


def test_they_are_recommended_by_their_texts(
    data: Artefact, teacher: Artefact, engine: Artefact
) -> None:
    known = pl.read_parquet(data.file("items.parquet"))
    vocabulary = Vocabulary.open(engine.path / FILE)
    assert vocabulary.items == [*known["item"], "new-1", "new-2"]
    assert vocabulary.titles[-2:] == ["red soap", "blue nail"]
    scores = Engine.open(engine, scores=True).scores(HISTORIES)
    model = load_model(teacher)
    vectors = TextMap.open(teacher).vectors(["red soap", "blue nail"])
    with torch.inference_mode():
        users = model.user_vectors(torch.tensor([[1, 2, 3], [0, 0, 4]]))
    assert torch.allclose(torch.from_numpy(scores[:, -2:]), users @ vectors.T, atol=1e-4)


@pytest.mark.slow
def test_the_others_rank_as_without_them(
    data: Artefact, teacher: Artefact, engine: Artefact, tmp_path: Path
) -> None:
    plain = export(ExportConfig(top_k=5), {"data": data, "model": teacher}, tmp_path / "plain")
    config, reports = EvaluateConfig(), []
    for name, one in (("with", engine), ("without", plain)):
        reports.append(evaluate_engine(config, {"data": data, "engine": one}, tmp_path / name))
    ranks = [pl.read_parquet(one.file("per_user.parquet"))["rank"] for one in reports]
    assert ranks[0].equals(ranks[1])


@pytest.mark.parametrize(
    ("form", "levels"), [pytest.param("int8", 127, marks=pytest.mark.slow), ("int4", 7)]
)
def test_a_quantized_table_gets_rounded_rows(
    form: str, levels: int, data: Artefact, teacher: Artefact, folder: Path, tmp_path: Path
) -> None:
    config = QuantizeConfig.model_validate(
        {"method": "rtn", "bits": 8, "group_size": 16, "item_table": form, "calibration": 8}
    )
    inputs = {"data": data, "model": teacher}
    made = quantize(config, inputs, tmp_path / "quantized")
    exported = export(
        ExportConfig(top_k=5, items=str(folder / "new.csv")),
        {"data": data, "model": made},
        tmp_path / "engine",
    )
    scores = Engine.open(exported, scores=True).scores(HISTORIES[:1])
    vectors = TextMap.open(made).vectors(["red soap", "blue nail"])
    scale = vectors.abs().amax(dim=1, keepdim=True) / levels
    rounded = (vectors / scale).round() * scale
    with torch.inference_mode():
        users = load_model(made).user_vectors(torch.tensor([[1, 2, 3]]))
    assert torch.allclose(torch.from_numpy(scores[:, -2:]), users @ rounded.T, atol=0.02)


@pytest.fixture(scope="module")
def narrow_student(data: Artefact, teacher: Artefact, folder: Path) -> Artefact:
    """Half the width of its teacher's item table, which is trained along."""
    losses = {"logits": 1.0, "items": 5.0}
    settings = {"layers": 1, "blocks": 1, "losses": losses, "item_dim": 4, **SMALL}
    config = DistillConfig.model_validate(settings)
    return distill(config, {"data": data, "teacher": teacher}, folder / "narrow")


@pytest.mark.slow
def test_a_student_with_a_narrower_table_takes_them_in(
    data: Artefact, teacher: Artefact, narrow_student: Artefact, folder: Path, tmp_path: Path
) -> None:
    config = ExportConfig(top_k=5, items=str(folder / "new.csv"))
    made = export(config, {"data": data, "model": narrow_student}, tmp_path / "engine")
    scores = Engine.open(made, scores=True).scores(HISTORIES)
    text_map, model = TextMap.open(narrow_student), load_model(narrow_student)
    vectors = text_map.vectors(["red soap", "blue nail"])
    assert vectors.shape == (2, 4) and text_map.projection is not None
    with torch.inference_mode():
        users = model.user_vectors(torch.tensor([[1, 2, 3], [0, 0, 4]]))
    assert torch.allclose(torch.from_numpy(scores[:, -2:]), users @ vectors.T, atol=1e-4)
    # The map gives known items nearly the vectors that training gave them.
    before, after = load_model(teacher).item_vectors()[1:], model.item_vectors()[1:]
    error = text_map.projection(before) - after
    assert error.square().sum() < 0.1 * (after - after.mean(dim=0)).square().sum()


def test_items_without_interactions_follow_their_texts(
    data: Artefact, teacher: Artefact, narrow_student: Artefact, tmp_path: Path
) -> None:
    model, counts = load_model(narrow_student), Dataset.open(data).counts.copy()
    counts[[3, 8]] = 0
    before = model.item_vectors().detach().clone()
    follow_texts(teacher, model, counts, tmp_path)
    after = model.item_vectors().detach()
    changed = (before != after).any(dim=1).nonzero().flatten().tolist()
    assert changed == [3, 8] and not after[0].any()
    with safe_open(tmp_path / "text_items.safetensors", framework="pt") as file:
        assert file.metadata()["table"] == digest_of_table(after)
        matrix, offset = (file.get_tensor(f"projection.{name}") for name in ("matrix", "offset"))
    expected = load_model(teacher).item_vectors()[[3, 8]] @ matrix + offset
    assert torch.allclose(after[[3, 8]], expected, atol=1e-6)


def test_a_table_that_was_trained_before_is_refused(
    data: Artefact, base: Artefact, folder: Path, tmp_path: Path
) -> None:
    free = TeachConfig.model_validate(
        {"backbone": BACKBONE, "must_beat": None, "freeze_items": False, **SMALL}
    )
    trained = teach(free, {"data": data, "sasrec": base}, tmp_path / "teacher")
    settings = {"layers": 1, "blocks": 1, "losses": {"logits": 1.0}, "item_dim": 4, **SMALL}
    inputs = {"data": data, "teacher": trained}
    student = distill(DistillConfig.model_validate(settings), inputs, tmp_path / "student")
    config = ExportConfig(items=str(folder / "new.csv"))
    with pytest.raises(UsageError) as caught:
        export(config, {"data": data, "model": student}, tmp_path / "engine")
    assert "was trained further after it came from texts" in caught.value.what


def test_a_projection_is_the_affine_map_between_two_tables() -> None:
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(40, 8, generator=generator)
    matrix, offset = torch.randn(8, 3, generator=generator), torch.tensor([1.0, -2.0, 0.5])
    weights = torch.rand(40, generator=generator)
    exact, explained = Projection.fit(before, before @ matrix + offset, weights / weights.sum())
    assert torch.allclose(exact.matrix, matrix, atol=1e-5)
    assert torch.allclose(exact.offset, offset, atol=1e-5) and explained > 1 - 1e-9
    second = Projection(torch.randn(3, 2, generator=generator), torch.tensor([0.1, 0.2]))
    both = second.after(exact)
    assert torch.allclose(both(before), second(exact(before)), atol=1e-5)
    assert second.after(None) is second


def test_what_is_left_out_is_counted(
    data: Artefact, base: Artefact, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "slmc.export")
    config = ExportConfig(top_k=5, items=str(folder / "new.csv"))
    added = extend(load_model(base), base, data, config)
    assert (added.added, added.replaced) == (2, 0)
    assert (
        f"{folder / 'new.csv'}: 2 items with a text; skipped: 1 that the model already has, "
        "1 without a text"
    ) in caplog.messages


def test_a_table_of_ids_takes_in_nothing(data: Artefact, folder: Path, tmp_path: Path) -> None:
    plain = sasrec(SasrecConfig.model_validate(SMALL), {"data": data}, tmp_path / "sasrec")
    config = ExportConfig(items=str(folder / "new.csv"))
    with pytest.raises(UsageError) as caught:
        export(config, {"data": data, "model": plain}, tmp_path / "engine")
    assert caught.value.what == f"the item table of {plain.path} did not come from texts."
    assert not (tmp_path / "engine").exists()


def test_a_file_without_new_items(data: Artefact, base: Artefact, tmp_path: Path) -> None:
    known = pl.read_parquet(data.file("items.parquet"))["item"][0]
    file = tmp_path / "none.csv"
    file.write_text(f"item_id,title\n{known},red\nempty,\n")
    with pytest.raises(UsageError) as caught:
        export(ExportConfig(items=str(file)), {"data": data, "model": base}, tmp_path / "engine")
    assert caught.value.what == f"{file} has no new item with a text."


def test_the_content_of_the_file_is_part_of_the_key(tmp_path: Path) -> None:
    file = tmp_path / "new.csv"
    file.write_text(NEW)
    before = fingerprint(ExportConfig(items=str(file)))
    file.write_text(NEW + "new-3,film\n")
    assert fingerprint(ExportConfig(items=str(file))) != before
    assert fingerprint(ExportConfig()) == {}
