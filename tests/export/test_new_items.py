"""Items that are newer than the model get vectors from their texts; nothing is trained."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import text_encoders
import torch

from slmc.artefact import Artefact
from slmc.compress.config import QuantizeConfig
from slmc.compress.quantize.quantize import quantize
from slmc.data.config import ItemTable, PrepareConfig
from slmc.data.prepare import prepare
from slmc.distill.config import TeachConfig
from slmc.distill.teach import teach
from slmc.errors import UsageError
from slmc.evaluation.config import EvaluateConfig
from slmc.export.config import ExportConfig
from slmc.export.evaluation import evaluate_engine
from slmc.export.export import export
from slmc.export.fingerprint import fingerprint
from slmc.export.runtime.engine import Engine
from slmc.export.vocabulary import FILE, Vocabulary
from slmc.model.loading import load_model
from slmc.model.text_map import TextMap
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
    items = pl.read_csv(log_csv, infer_schema=False)["item_id"].unique().sort()
    words = text_encoders.WORDS
    titles = [f"{words[n % 7]} {words[n // 7 % 7]} {words[n % 5 + 7]}" for n in range(len(items))]
    pl.DataFrame({"item_id": items, "title": titles}).write_csv(folder / "items.csv")
    (folder / "new.csv").write_text(NEW + f"{items[0]},known already\n")
    table = ItemTable(source=str(folder / "items.csv"))
    return prepare(PrepareConfig(source=str(log_csv), core=1, items=table), {}, folder / "data")


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


def test_the_others_rank_as_without_them(
    data: Artefact, teacher: Artefact, engine: Artefact, tmp_path: Path
) -> None:
    plain = export(ExportConfig(top_k=5), {"data": data, "model": teacher}, tmp_path / "plain")
    config, reports = EvaluateConfig(), []
    for name, one in (("with", engine), ("without", plain)):
        reports.append(evaluate_engine(config, {"data": data, "engine": one}, tmp_path / name))
    ranks = [pl.read_parquet(one.file("per_user.parquet"))["rank"] for one in reports]
    assert ranks[0].equals(ranks[1])


@pytest.mark.parametrize(("form", "levels"), [("int8", 127), ("int4", 7)])
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


def test_what_is_left_out_is_counted(
    data: Artefact, base: Artefact, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "slmc.export")
    config = ExportConfig(top_k=5, items=str(folder / "new.csv"))
    export(config, {"data": data, "model": base}, tmp_path / "engine")
    assert (
        f"{folder / 'new.csv'}: 2 new items; skipped: 1 that the model already has, 1 without a "
        "text"
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
