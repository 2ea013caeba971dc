"""Real logs: MovieLens-100K from the package index, Amazon Beauty from ``$SLMC_DATA``."""

import os
import time
from pathlib import Path

import pytest

from slmc.data.config import Columns, PrepareConfig, TemporalSplit, Titles
from slmc.data.dataset import Dataset
from slmc.data.prepare import prepare

HASH = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
MOVIELENS = f"pypi://recbole==1.2.1/recbole/dataset_example/ml-100k/ml-100k.{{}}#sha256={HASH}"
DATA = Path(os.environ.get("SLMC_DATA", "SLMC_DATA is not set"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="SLMC_DATA does not name a folder")
BUDGET_S = 5.0
"""To prepare Beauty; it takes a fifth of a second on two idle cores of 2024."""


@pytest.mark.slow
def test_movielens(tmp_path: Path) -> None:
    titles = Titles(source=MOVIELENS.format("item"), title="movie_title")
    config = PrepareConfig(source=MOVIELENS.format("inter"), titles=titles)
    artefact = prepare(config, {}, tmp_path / "data")
    metrics = artefact.manifest.metrics
    counted = ("rows", "users", "items", "interactions", "test_users", "titles", "duplicates")
    assert [metrics[name] for name in counted] == [100_000, 943, 1349, 99_287, 943, 1349, 0]
    assert metrics["time_span"] == ["1997-09-20", "1998-04-22"]
    assert Dataset.open(artefact).items.row(0) == (1, "50", 572, "Star Wars")


@pytest.mark.slow
@needs_data
def test_beauty(tmp_path: Path) -> None:
    start = time.perf_counter()
    config = PrepareConfig(source=str(DATA / "amazon-beauty.txt.gz"))
    artefact = prepare(config, {}, tmp_path / "data")
    assert time.perf_counter() - start < BUDGET_S
    metrics = artefact.manifest.metrics
    counted = ("users", "items", "interactions", "test_users")
    assert [metrics[name] for name in counted] == [22_363, 12_101, 198_502, 22_363]


@pytest.mark.slow
@needs_data
def test_movielens_small_by_time(tmp_path: Path) -> None:
    folder = DATA / "ml-latest-small"
    config = PrepareConfig(
        source=str(folder / "ratings.csv.gz"),
        columns=Columns(user="userId", item="movieId"),
        titles=Titles(source=str(folder / "movies.csv"), item="movieId"),
        split=TemporalSplit(by="time", valid="2017-01-01", test="2017-06-01"),  # type: ignore[arg-type]
    )
    metrics = prepare(config, {}, tmp_path / "data").manifest.metrics
    assert (metrics["users"], metrics["items"], metrics["titles"]) == (610, 3650, 3650)
    assert (metrics["rows"], metrics["test_users"]) == (100_836, 26)
