import logging
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from slmc.artefact import Artefact
from slmc.data.calibration import histories
from slmc.data.dataset import Dataset
from slmc.errors import UndecidedError


def dataset_of(sequences: list[list[int]], *, held_out: int = 2, history: int = 4) -> Dataset:
    """Return a dataset in which the last ``held_out`` items of each user are targets."""
    cuts = [max(len(rows) - held_out, 0) for rows in sequences]
    trained = [row for rows, cut in zip(sequences, cuts, strict=True) for row in rows[:cut]]
    most = max(row for rows in sequences for row in rows)
    counts = np.bincount(trained, minlength=most + 1)[1:]
    items = pl.DataFrame({"row": np.arange(1, most + 1), "count": counts.astype(np.int32)})
    table = pl.DataFrame(
        {
            "user": [f"u{i}" for i in range(len(sequences))],
            "items": pl.Series(sequences, dtype=pl.List(pl.Int32)),
            "valid_from": cuts,
            "test_from": [cut + 1 for cut in cuts],
        }
    )
    return Dataset(items=items, sequences=table, history=history)


def test_targets_of_validation_and_test_are_never_in_it() -> None:
    # The items 90 and 91 are only targets.
    data = dataset_of([[1, 2, 3, 4, 5, 6, 90, 91] for _ in range(8)])
    drawn = histories(data, count=8, seed=0)
    assert [rows.tolist() for rows in drawn] == [[3, 4, 5, 6]] * 8


def test_the_seed_decides(dataset: Artefact) -> None:
    data = Dataset.open(dataset)
    one, same, other = (
        [rows.tolist() for rows in histories(data, count=10, seed=seed)] for seed in (1, 1, 2)
    )
    assert one == same != other


def test_strata_cover_all_lengths_and_popularities() -> None:
    rng = np.random.default_rng(0)
    popular, rare = np.arange(1, 5), np.arange(5, 205)
    sequences = []
    for user in range(80):
        length = 2 if user < 40 else 8
        pool = popular if user % 2 else rare
        sequences.append([*rng.choice(pool, length).tolist(), 1, 1])
    drawn = histories(dataset_of(sequences, history=10), count=8, seed=3)
    kinds = [(rows.size, bool((rows <= 4).all())) for rows in drawn]
    assert sorted(kinds) == sorted([(n, p) for n in (2, 8) for p in (True, False)] * 2)


def test_too_few_histories_are_all_used_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    data = dataset_of([[1, 2, 3, 4], [2, 3, 4, 1]])
    with caplog.at_level(logging.WARNING, logger="slmc.compress"):
        drawn = histories(data, count=5, seed=0)
    assert sorted(rows.tolist() for rows in drawn) == [[1, 2], [2, 3]]
    assert caplog.messages == ["calibration: 5 histories requested, but there are 2"]


def test_none_is_undecided(tmp_path: Path) -> None:
    with pytest.raises(UndecidedError) as caught:
        histories(dataset_of([[1, 2], [2, 1]]), count=5, seed=0)
    assert caught.value.what == "calibration: no user has a training history."
