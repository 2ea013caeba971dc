"""A dataset, models and engines, shared by the tests: 40 users, 30 items, histories of 12."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from sealing import seal_model
from transformers import PreTrainedModel

from slmc.artefact import Artefact, draft
from slmc.data.config import PrepareConfig
from slmc.export.config import ExportConfig
from slmc.export.export import export
from slmc.export.tensorrt import flavours
from slmc.export.tensorrt.flavours import FLAVOURS
from slmc.model import random_models
from slmc.model.recommender import SequentialRecommender
from slmc.model.sasrec import Sasrec, SasrecModelConfig

ITEMS, HISTORY, WIDTH = 30, 12, 16
TWINS = (4, 9)
"""Two rows with the same vector: they always tie."""

RTX = ("tensorrt-rtx-cu13", "tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs")
RTX_VERSION = "1.7.1.116"

Place = Callable[[str], Path]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return lambda name: tmp_path_factory.mktemp(name) / name


@pytest.fixture(scope="session")
def dataset(place: Place) -> Artefact:
    """Histories of 1 to 19 items; item i is ``film-i``, those of even rows have titles."""
    rng = np.random.default_rng(0)
    lengths = [2 + user % 19 for user in range(40)]
    with draft(place("dataset")) as work:
        rows = range(1, ITEMS + 1)
        pl.DataFrame(
            {
                "row": pl.Series(rows, dtype=pl.Int32),
                "item": [f"film-{row}" for row in rows],
                "count": pl.Series([1 + row % 7 for row in rows], dtype=pl.Int32),
                "title": [f"Título {row}" if row % 2 == 0 else None for row in rows],
            }
        ).write_parquet(work.path / "items.parquet")
        (work.path / "sequences").mkdir()
        pl.DataFrame(
            {
                "user": [f"u{user}" for user in range(40)],
                "items": pl.Series(
                    [rng.integers(1, ITEMS + 1, n).tolist() for n in lengths],
                    dtype=pl.List(pl.Int32),
                ),
                "valid_from": pl.Series([max(1, n - 2) for n in lengths], dtype=pl.Int32),
                "test_from": pl.Series([n - 1 for n in lengths], dtype=pl.Int32),
            }
        ).write_parquet(work.path / "sequences/users.parquet")
        preprocessor = {"history": HISTORY, "unknown_ids": "skip"}
        (work.path / "preprocessor.json").write_text(json.dumps(preprocessor))
        return work.seal(
            kind="dataset", stage="prepare", config=PrepareConfig(source="log.csv"), inputs={}
        )


def randomise(model: PreTrainedModel) -> PreTrainedModel:
    """Weights large enough that scores differ between users, and :data:`TWINS`."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3, generator=generator)
        table = model.get_parameter("item_embeddings.weight")
        table[0] = 0
        table[TWINS[1]] = table[TWINS[0]]
    return model.eval()


def llama(**options: Any) -> SequentialRecommender:
    shape = {"num_items": ITEMS, "item_dim": WIDTH, "history": HISTORY}
    decoder = {"max_position_embeddings": 256}
    model = random_models.recommender(decoder=decoder, **shape, **options)
    randomise(model)
    model.prompt.normal_(generator=torch.Generator().manual_seed(2))
    return model


@pytest.fixture(scope="session")
def model(dataset: Artefact, place: Place) -> Artefact:
    return seal_model(llama(), dataset, place("model"))


@pytest.fixture(scope="session")
def prompted(dataset: Artefact, place: Place) -> Artefact:
    return seal_model(llama(prefix_length=2, suffix_length=1), dataset, place("prompted"))


@pytest.fixture(scope="session")
def sasrec(dataset: Artefact, place: Place) -> Artefact:
    shape = SasrecModelConfig(num_items=ITEMS, item_dim=WIDTH, history=HISTORY)
    model = randomise(Sasrec(shape))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # a bias of 0 would hide a missing bias
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return seal_model(model, dataset, place("sasrec"))


@pytest.fixture(scope="session")
def packed(dataset: Artefact, model: Artefact, place: Place) -> Artefact:
    return export(ExportConfig(top_k=10), {"data": dataset, "model": model}, place("packed"))


@pytest.fixture(scope="session")
def padded(dataset: Artefact, prompted: Artefact, place: Place) -> Artefact:
    config = ExportConfig(layout="padded", opset=18, top_k=100)
    return export(config, {"data": dataset, "model": prompted}, place("padded"))


@pytest.fixture(scope="session", autouse=True)
def _traces(traced_once: None) -> None:
    """Trace each model once."""


@pytest.fixture(scope="module")
def rtx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """TensorRT-RTX: as installed, or installed only for these tests."""
    flavours.try_flavour.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        if flavours.try_flavour(FLAVOURS["tensorrt-rtx"]).version is None:
            site = tmp_path_factory.mktemp("rtx")
            packages = [f"{name}=={RTX_VERSION}" for name in RTX]
            command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site]
            done = subprocess.run([*command, *packages], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"pip: {(done.stderr.strip().splitlines() or [''])[-1]}")
            patch.syspath_prepend(str(site))
            patch.setenv("PYTHONPATH", str(site), prepend=":")
            importlib.invalidate_caches()
            flavours.try_flavour.cache_clear()
        yield flavours.module_for_building(FLAVOURS["tensorrt-rtx"])
    flavours.try_flavour.cache_clear()
