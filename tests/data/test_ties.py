"""Interactions of one user at the same time: shuffled, counted, and tested against item ids."""

import itertools
import math
import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from slmc.data.check import check, tie_lines
from slmc.data.clock import Clock
from slmc.data.config import Columns, PrepareConfig, TemporalSplit
from slmc.data.dataset import Dataset
from slmc.data.prepare import prepare
from slmc.data.ties import Ascents, Resolution, Runs, id_ranks

DAY = 86400


def write(rows: list[tuple[str, str, object]], name: str = "log.csv") -> str:
    lines = [f"{user},{item},{time}\n" for user, item, time in rows]
    Path(name).write_text("user_id,item_id,timestamp\n" + "".join(lines))
    return name


def baskets(sort: bool, seed: int = 0) -> list[tuple[str, str, object]]:
    """Twenty users with six baskets of four items, a day each; the items of a basket in a row."""
    rng = random.Random(seed)
    rows: list[tuple[str, str, object]] = []
    for user, basket in itertools.product(range(20), range(6)):
        items = rng.sample(range(200), 4)
        for item in sorted(items) if sort else items:
            rows.append((f"u{user}", f"i{item}", 1_400_000_000 // DAY * DAY + basket * DAY))
    return rows


def histories(data: Dataset) -> list[list[str]]:
    names = ["", *data.items["item"]]
    return [[names[row] for row in rows] for rows in data.sequences["items"]]


def ascents(run: list[int], ids: list[int]) -> Ascents:
    runs = np.array(run)
    return Ascents.of(Runs.of(np.append(False, runs[1:] == runs[:-1])), np.array(ids))


def test_runs() -> None:
    before = np.array([False, False, True, True, False, False, True])
    runs = Runs.of(before)
    assert runs.rows.tolist() == [1, 2, 3, 5, 6]
    assert runs.run.tolist() == [1, 1, 1, 2, 2]
    assert runs.later_of_equals(np.array([7, 8, 7, 7, 7])).tolist() == [2, 4]
    assert Runs.of(np.zeros(0, dtype=np.bool_)).rows.size == 0


@pytest.mark.parametrize("size", [2, 3, 5])
def test_ascents_of_all_orders_have_the_mean_and_the_variance_of_the_test(size: int) -> None:
    counts = [ascents([0] * size, [*order]) for order in itertools.permutations(range(size))]
    ascending = [one.ascending for one in counts]
    assert {one.pairs for one in counts} == {size - 1}
    assert np.mean(ascending) == pytest.approx((size - 1) / 2)
    assert [one.twelfths / 12 for one in counts] == pytest.approx([np.var(ascending)] * len(counts))


def test_ascents_of_several_runs_and_repeated_items() -> None:
    # 3 1 3 5 has the pairs 3 1 and 1 5, since the second 3 does not count; 4 4 has none.
    counted = ascents([0, 0, 0, 0, 1, 1, 2, 2], [3, 1, 3, 5, 4, 4, 1, 2])
    assert (counted.pairs, counted.ascending) == (3, 2)
    assert counted.twelfths == 4 + 3
    z = 0.5 / math.sqrt(7 / 12)
    assert counted.p_value == pytest.approx(math.erfc(z / math.sqrt(2)))
    both = counted + counted
    assert (both.pairs, both.ascending, both.share) == (6, 4, 4 / 6)
    assert Ascents().p_value is None and Ascents().share is None


@pytest.mark.parametrize(
    ("ids", "ranks"),
    [
        (["10", "2", "7"], [2, 0, 1]),  # sorted as text; 2 < 7 < 10
        (["i10", "i2", "i7"], [2, 0, 1]),
        (["a10", "b2"], [0, 1]),
        (["B00A", "B00B"], [0, 1]),
        (["10", "2", "x"], [0, 1, 2]),
        (["1" * 30, "2" * 30], [0, 1]),
        ([], []),
    ],
)
def test_the_order_of_a_catalogue(ids: list[str], ranks: list[int]) -> None:
    assert id_ranks(pl.Series(ids, dtype=pl.String)).tolist() == ranks


@pytest.mark.parametrize(
    ("clock", "times", "name"),
    [
        (Clock("s", 0), [DAY + 5, 5, 3 * DAY + 5], "day"),
        (Clock("s", 0), [3600, 7200, DAY], "hour"),
        (Clock("s", 0), [60, 3600], "minute"),
        (Clock("s", 0), [1, 3], "second"),
        (Clock("ms", 0), [1000, 3000], "second"),
        (Clock("ms", 0), [1001, 3000], "millisecond"),
        (Clock("date", 6), [1_000_001, 2], "microsecond"),
        (Clock("date", 9), [1, 2], None),
        (Clock("date", 9), [10**20 * DAY, 0], "day"),
        (Clock(None, 0), [DAY, 2 * DAY], None),
        (Clock("s", 0), [], None),
    ],
)
def test_the_resolution_of_times(clock: Clock, times: list[int], name: str | None) -> None:
    found = Resolution(clock)
    for time in times:
        found.add(pl.Series([time], dtype=pl.Int128))
    assert found.name == name


def test_a_log_in_the_order_of_ids_is_found_out(folder: Path) -> None:
    metrics = check(PrepareConfig(source=write(baskets(sort=True)), core=1)).metrics
    assert metrics["order_of_ids"] == {"pairs": 360, "ascending": 1.0, "p_value": 0.0} | {
        "p_value": metrics["order_of_ids"]["p_value"]
    }
    assert metrics["time_resolution"] == "day"
    assert (metrics["tied_before"], metrics["test_users_tied"]) == (0.75, 20)
    first = (
        "75.0 % of the interactions, and 20 of 20 test targets (100.0 %), have the same day as the "
        "user's interaction before"
    )
    # z = 180 / sqrt(120 * 5 / 12)
    second = (
        "in the log, 100.0 % of neighbours of the same time have ascending item ids, 50 % by "
        "chance (360 pairs, p = {}): their order follows the ids; it is {}"
    )
    p = f"{math.erfc(180 / math.sqrt(50) / math.sqrt(2)):.2g}"
    done = {"shuffle": "shuffled by the seed (ties: shuffle)", "keep": "kept (ties: keep)"}
    assert tie_lines(metrics, "shuffle") == [first, second.format(p, done["shuffle"])]
    assert tie_lines(metrics, "keep") == [first, second.format(p, done["keep"])]


def test_a_log_in_random_order_is_not(folder: Path) -> None:
    metrics = check(PrepareConfig(source=write(baskets(sort=False)), core=1)).metrics
    assert 0.4 < metrics["order_of_ids"]["ascending"] < 0.6
    assert metrics["order_of_ids"]["p_value"] > 0.01
    assert "is random, as far as ids show" in tie_lines(metrics, "shuffle")[1]


def test_without_times_only_the_order_of_ids_is_known(folder: Path) -> None:
    def lines(sort: bool) -> list[str]:
        source, columns = write(baskets(sort)), Columns(time=None)
        metrics = check(PrepareConfig(source=source, core=1, columns=columns)).metrics
        assert metrics["tied_before"] is metrics["test_users_tied"] is None
        return tie_lines(metrics, "shuffle")

    unknown = "without times, it is not known which interactions are ties"
    assert lines(sort=False) == [unknown]
    (line,) = lines(sort=True)
    assert line.startswith(f"{unknown}; ") and " of neighbours have ascending item ids" in line
    assert line.endswith("A log with times can shuffle its ties (data.ties)")


def test_ties_can_be_kept_in_the_order_of_the_log(folder: Path) -> None:
    source = write([(u, i, t) for t in (2, 1) for i in "zxy" for u in "ab"])
    config = PrepareConfig(source=source, core=1, ties="keep")
    data = Dataset.open(prepare(config, {}, folder / "kept"))
    assert histories(data) == [[*"zxyzxy"]] * 2
    config = PrepareConfig(source=source, core=1)
    shuffled = histories(Dataset.open(prepare(config, {}, folder / "shuffled")))
    assert shuffled != [[*"zxyzxy"]] * 2
    assert all(sorted(one[:3]) == sorted(one[3:]) == [*"xyz"] for one in shuffled)


def test_targets_know_whether_they_are_tied(folder: Path) -> None:
    rows = [
        ("a", "x", 1),
        ("a", "y", 1),
        ("a", "z", 2),
        ("b", "x", 1),
        ("b", "y", 2),
        ("b", "z", 2),
    ]
    data = Dataset.open(prepare(PrepareConfig(source=write(rows), core=1), {}, folder / "data"))
    valid, test = (data.targets(split).same_time for split in ("valid", "test"))  # type: ignore[arg-type]
    assert valid is not None and valid.tolist() == [True, False]
    assert test is not None and test.tolist() == [False, True]
    columns = Columns(time=None)
    config = PrepareConfig(source="log.csv", core=1, columns=columns)
    untimed = Dataset.open(prepare(config, {}, folder / "untimed"))
    assert untimed.targets("test").same_time is None
    older = Dataset(data.items, data.sequences.drop("valid_tied", "test_tied"), 50)
    assert older.targets("test").same_time is None


def test_no_target_of_a_temporal_split_is_tied(folder: Path) -> None:
    source = write(baskets(sort=True))
    split = TemporalSplit(by="time", valid="2014-05-15", test="2014-05-17")  # type: ignore[arg-type]
    artefact = prepare(PrepareConfig(source=source, core=1, split=split), {}, folder / "data")
    same = Dataset.open(artefact).targets("test").same_time
    assert same is not None and same.size == 20 and not same.any()
    assert artefact.manifest.metrics["test_users_tied"] == 0
