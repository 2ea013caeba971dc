"""The catalogue, the model and the engine of :mod:`served`, and calls of ``score``."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from score_inputs import HISTORIES
from served import catalogue, engine, model, place

from slmc.artefact import Artefact
from slmc.scoring.score import score
from slmc.scoring.settings import Settings
from slmc.serving.opening import load

__all__ = ["catalogue", "engine", "model", "place"]
Run = Callable[..., pl.DataFrame]


@pytest.fixture
def run(engine: Artefact, tmp_path: Path) -> Run:
    def scored(name: str, output: str = "top.parquet", **options: Any) -> pl.DataFrame:
        settings = Settings(str(tmp_path / name), str(tmp_path / output), force=True, **options)
        score(engine, replace(settings, threads=2))
        return pl.read_parquet(tmp_path / output)

    return scored


@pytest.fixture
def expected(engine: Artefact) -> dict[str, list[int]]:
    """User -> the five best items, as one history after the other gives them."""
    served = load(engine)
    lists = {user: served.recommend(ids, 5, False).ids for user, ids in HISTORIES.items()}
    return {user: [int(id) for id in ids] for user, ids in lists.items()}
