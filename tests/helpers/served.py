"""A small catalogue with whole numbers as ids, a model and two engines on it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from sealing import seal_model

from slmc.artefact import Artefact, draft
from slmc.config import Seeded
from slmc.export.config import ExportConfig
from slmc.export.export import export
from slmc.model.sasrec import Sasrec, SasrecModelConfig

ITEMS, HISTORY = 40, 6
Place = Callable[[str], Path]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return lambda name: tmp_path_factory.mktemp(name) / name


@pytest.fixture(scope="session")
def catalogue(place: Place) -> Artefact:
    """Item of row r is ``100 + r``; row 3 is the most popular one, then the smallest rows."""
    rng = np.random.default_rng(0)
    with draft(place("dataset")) as work:
        rows = range(1, ITEMS + 1)
        pl.DataFrame(
            {
                "row": pl.Series(rows, dtype=pl.Int32),
                "item": [str(100 + row) for row in rows],
                "count": pl.Series([9 if row == 3 else 5 for row in rows], dtype=pl.Int32),
                "title": [f"Title {row}" if row % 2 == 0 else None for row in rows],
            }
        ).write_parquet(work.path / "items.parquet")
        (work.path / "sequences").mkdir()
        lists = [rng.integers(1, ITEMS + 1, 3 + user % 9).tolist() for user in range(30)]
        pl.DataFrame(
            {
                "user": [f"u{user}" for user in range(30)],
                "items": pl.Series(lists, dtype=pl.List(pl.Int32)),
                "valid_from": pl.Series([len(one) - 2 for one in lists], dtype=pl.Int32),
                "test_from": pl.Series([len(one) - 1 for one in lists], dtype=pl.Int32),
            }
        ).write_parquet(work.path / "sequences/users.parquet")
        preprocessor = {"history": HISTORY, "unknown_ids": "skip"}
        (work.path / "preprocessor.json").write_text(json.dumps(preprocessor))
        return work.seal(
            kind="dataset",
            stage="prepare",
            config=Seeded(),
            inputs={},
            metrics={"valid_repeats": 0.2},
        )


@pytest.fixture(scope="session")
def model(catalogue: Artefact, place: Place) -> Artefact:
    shape = SasrecModelConfig(num_items=ITEMS, item_dim=16, history=HISTORY)
    model = Sasrec(shape).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3, generator=generator)
    return seal_model(model, catalogue, place("model"))


@pytest.fixture(scope="session")
def engine(catalogue: Artefact, model: Artefact, place: Place, traced_once: None) -> Artefact:
    """It returns 12 of the 40 items."""
    inputs = {"data": catalogue, "model": model}
    return export(ExportConfig(top_k=12), inputs, place("engine"))
