import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from slmc.data.batches import Rows, first_fit_decreasing, pack, pad_left

SEQUENCES = st.lists(
    st.lists(st.integers(1, 9), max_size=14).map(lambda rows: np.array(rows, dtype=np.int32)),
    max_size=12,
)
LENGTHS = st.integers(1, 8)
SEEDS = st.integers(0, 2**31)
BUDGET_S = 0.05
"""Packing 100,000 interactions; it takes a tenth of that on two cores of 2024."""


def segments(rows: Rows) -> list[tuple[int, list[int], list[int], list[int]]]:
    """Return each run of equal segment numbers: (number, items, targets, positions)."""
    runs = []
    for ids, targets, positions, numbers in zip(
        rows.item_ids, rows.targets, rows.positions, rows.segments, strict=True
    ):
        edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1), len(numbers)]
        for start, end in pairwise(edges):
            if numbers[start]:
                part = slice(start, end)
                runs.append(
                    (
                        int(numbers[start]),
                        ids[part].tolist(),
                        targets[part].tolist(),
                        positions[part].tolist(),
                    )
                )
    return runs


@given(SEQUENCES, LENGTHS, SEEDS)
def test_all_has_every_next_item_once_and_padding_only_at_the_end(
    sequences: list[NDArray[np.int32]], length: int, seed: int
) -> None:
    rows = pack(sequences, length, np.random.default_rng(seed))
    pairs = Counter((int(x), int(y)) for s in sequences for x, y in pairwise(s))
    filled = rows.item_ids > 0
    assert (
        Counter(zip(rows.item_ids[filled].tolist(), rows.targets[filled].tolist(), strict=True))
        == pairs
    )
    total = sum(pairs.values())
    assert rows.item_ids.shape == (-(-total // length), length)
    assert filled.reshape(-1)[:total].all()
    for part in (rows.targets, rows.segments):
        assert ((part > 0) == filled).all()


@given(SEQUENCES, LENGTHS, SEEDS)
def test_all_keeps_each_sequence_together_and_restarts_positions(
    sequences: list[NDArray[np.int32]], length: int, seed: int
) -> None:
    rows = pack(sequences, length, np.random.default_rng(seed))
    joined: dict[int, list[int]] = {}
    for row in range(rows.segments.shape[0]):
        numbers = rows.segments[row][rows.segments[row] > 0]
        runs = 1 + np.count_nonzero(np.diff(numbers))
        assert runs == np.unique(numbers).size  # contiguous: a number comes once in a row
    for number, ids, targets, positions in segments(rows):
        assert positions == list(range(len(ids)))
        assert ids[1:] == targets[:-1]
        joined.setdefault(number, []).extend(ids)
    whole = sorted(s[:-1].tolist() for s in sequences if s.size > 1)
    assert sorted(joined.values()) == whole


@given(SEQUENCES, LENGTHS, SEEDS)
def test_last_never_cuts_and_trains_only_the_last_position(
    sequences: list[NDArray[np.int32]], length: int, seed: int
) -> None:
    rows = pack(sequences, length, np.random.default_rng(seed), targets="last")
    expected = sorted((s[:-1][-length:].tolist(), int(s[-1])) for s in sequences if s.size > 1)
    trained = []
    for _, ids, targets, positions in segments(rows):
        assert positions == list(range(len(ids)))
        assert targets[:-1] == [0] * (len(ids) - 1)
        trained.append((ids, targets[-1]))
    assert sorted(trained) == expected


@given(st.lists(st.integers(1, 12), max_size=40), st.integers(12, 20))
def test_first_fit_decreasing_is_the_plain_one(sizes: list[int], capacity: int) -> None:
    rooms: list[int] = []
    for size in sorted(sizes, reverse=True):
        row = next((i for i, room in enumerate(rooms) if room >= size), None)
        if row is None:
            rooms.append(capacity)
            row = len(rooms) - 1
        rooms[row] -= size
    row, offset = first_fit_decreasing(np.array(sizes, dtype=np.int64), capacity)
    used = np.bincount(row, weights=sizes, minlength=len(rooms)) if sizes else np.zeros(0)
    assert sorted(capacity - used) == sorted(rooms)
    for number in range(len(rooms)):
        pieces = sorted((int(offset[i]), sizes[i]) for i in np.flatnonzero(row == number))
        assert [o for o, _ in pieces] == [0, *np.cumsum([s for _, s in pieces])[:-1]]


def test_known_answer() -> None:
    rows = pack([np.array([1, 2, 3, 4, 5], dtype=np.int32)], 3, np.random.default_rng(0))
    assert rows.item_ids.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert rows.targets.tolist() == [[2, 3, 4], [5, 0, 0]]
    assert rows.positions.tolist() == [[0, 1, 2], [0, 0, 0]]
    assert rows.segments.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_the_generator_decides_the_order() -> None:
    sequences = [np.array([n, n + 1], dtype=np.int32) for n in range(1, 40)]
    first, again, other = (
        pack(sequences, 5, np.random.default_rng(seed)).item_ids for seed in (1, 1, 2)
    )
    assert (first == again).all() and (first != other).any()


@pytest.mark.parametrize("targets", ["all", "last"])
def test_packing_is_fast(targets: str) -> None:
    rng = np.random.default_rng(0)
    sequences = [rng.integers(1, 1000, 100).astype(np.int32) for _ in range(1000)]
    pack(sequences[:10], 50, rng)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        pack(sequences, 50, rng, targets=targets)  # type: ignore[arg-type]
        times.append(time.perf_counter() - start)
    assert min(times) < BUDGET_S


def test_pad_left_keeps_the_newest() -> None:
    histories = [np.array(rows, dtype=np.int32) for rows in ([1, 2, 3], [4], [])]
    assert pad_left(histories).tolist() == [[1, 2, 3], [0, 0, 4], [0, 0, 0]]
    assert pad_left(histories, 2).tolist() == [[2, 3], [0, 4], [0, 0]]
    assert pad_left(histories, 5).tolist()[0] == [0, 0, 1, 2, 3]
    assert pad_left([], 2).shape == (0, 2)
