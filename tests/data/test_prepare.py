import json
import logging
import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from slmc.artefact import load
from slmc.data.config import Columns, PrepareConfig, TemporalSplit, Titles
from slmc.data.dataset import Dataset, Targets
from slmc.data.prepare import prepare

SMALL = """user_id,item_id,timestamp
b,x,1
b,y,2
b,z,3
a,y,5
a,x,4
a,y,4.5
c,y,1
c,y,1
"""


def write(rows: list[tuple[object, ...]], name: str = "log.csv") -> str:
    lines = [",".join(map(str, row)) for row in rows]
    Path(name).write_text("\n".join(["user_id,item_id,timestamp", *lines]) + "\n")
    return name


def random_rows(seed: int = 0, users: int = 60, items: int = 25) -> list[tuple[object, ...]]:
    """Twelve interactions per user, three at each time stamp."""
    rng = random.Random(seed)
    return [(f"u{u}", f"i{rng.randrange(items)}", t // 3) for u in range(users) for t in range(12)]


def histories(dataset: Dataset) -> dict[str, list[str]]:
    """Return the original ids of each user, in the order of the dataset."""
    names = ["", *dataset.items["item"]]
    rows = dataset.sequences.select("user", "items").rows()
    return {user: [names[row] for row in items] for user, items in rows}


def test_known_answer(folder: Path) -> None:
    Path("log.csv").write_text(SMALL)
    Path("titles.csv").write_text('item_id,title\nx,"The ""X"""\nq,Q\n')
    config = PrepareConfig(
        source="log.csv", core=1, history=2, titles=Titles(source="titles.csv"), terms="Cite us."
    )
    artefact = prepare(config, {}, folder / "data")
    dataset = Dataset.open(load(artefact.path, kind="dataset"))
    # Training parts: a: x, b: x, c: y. x counts 2, y 1, z only tests.
    assert dataset.items.rows() == [(1, "x", 2, 'The "X"'), (2, "y", 1, None), (3, "z", 0, None)]
    assert dataset.sequences.rows() == [
        ("a", [1, 2, 2], 1, 2, False, False), ("b", [1, 2, 3], 1, 2, False, False),
        ("c", [2, 2], 1, 1, None, True),
    ]  # fmt: skip
    assert (dataset.history, dataset.num_items) == (2, 3)
    assert dataset.counts.tolist() == [0, 2, 1, 0]
    assert [part.tolist() for part in dataset.train_sequences()] == [[1], [1], [2]]
    assert (artefact.path / "TERMS.txt").read_text() == "Cite us.\n"
    metrics = artefact.manifest.metrics
    assert metrics == json.loads((artefact.path / "metrics.json").read_text())
    counted = (
        "users",
        "items",
        "interactions",
        "valid_users",
        "test_users",
        "titles",
        "duplicates",
    )
    assert [metrics[name] for name in counted] == [3, 3, 8, 2, 3, 1, 1]
    assert (metrics["tied_share"], metrics["test_users_tied"]) == (2 / 8, 1)
    assert metrics["time_span"] == ["1", "5"] and metrics["malformed"] == {"rows": 0}
    assert metrics["train_interactions"] == 3


def test_targets(folder: Path) -> None:
    Path("log.csv").write_text(SMALL + "d,x,1\n")
    config = PrepareConfig(source="log.csv", core=1, history=1)
    dataset = Dataset.open(prepare(config, {}, folder / "data"))
    test = dataset.targets("test")
    assert test.users == ["a", "b", "c"]  # d has one interaction: no target
    assert test.targets.tolist() == [2, 3, 2]
    assert [rows.tolist() for rows in test.histories] == [[2], [2], [2]]
    assert [rows.tolist() for rows in test.seen] == [[1, 2], [1, 2], [2]]
    valid = dataset.targets("valid")
    assert valid.users == ["a", "b"] and valid.targets.tolist() == [2, 2]
    assert [rows.tolist() for rows in valid.seen] == [[1], [1]]


def test_a_temporal_split(folder: Path) -> None:
    days = ["2026-08-01", "2026-09-10", "2026-09-11", "2026-10-01", "2026-10-02"]
    rows = [(u, f"i{n}", day) for u in "ab" for n, day in enumerate(days)]
    source = write([*rows, ("c", "i0", "2026-10-05"), ("d", "i0", "2026-08-01")])
    split = TemporalSplit(by="time", valid="2026-09-01", test="2026-10-01")  # type: ignore[arg-type]
    artefact = prepare(PrepareConfig(source=source, core=1, split=split), {}, folder / "data")
    dataset = Dataset.open(artefact)
    assert dataset.sequences.select("user", "valid_from", "test_from").rows() == [
        ("a", 1, 3), ("b", 1, 3), ("c", 0, 0), ("d", 1, 1),
    ]  # fmt: skip
    assert dataset.targets("test").users == dataset.targets("valid").users == ["a", "b"]
    assert len(dataset.train_sequences()) == 3
    assert dataset.items["count"].to_list() == [3, 0, 0, 0, 0]
    assert artefact.manifest.metrics["time_span"] == ["2026-08-01", "2026-10-05"]


@pytest.mark.parametrize("factor", [1, 1000, 1_000_000, 1_000_000_000])
def test_a_temporal_split_reads_any_unit(folder: Path, factor: int) -> None:
    day = 1_790_812_800  # 2026-10-01T00:00Z
    source = write([(u, n, (day + 86400 * (n - 2)) * factor) for u in "ab" for n in range(4)])
    split = TemporalSplit(by="time", valid="2026-09-30", test="2026-10-01")  # type: ignore[arg-type]
    artefact = prepare(PrepareConfig(source=source, core=1, split=split), {}, folder / "data")
    assert Dataset.open(artefact).sequences["test_from"].to_list() == [2, 2]


def test_the_same_log_gives_the_same_bits_in_any_order(folder: Path) -> None:
    rows = random_rows()
    digests = []
    for name, seed in (("one", 1), ("two", 2), ("two-again", 2)):
        Path(name).mkdir()
        random.Random(seed).shuffle(rows)
        write(rows, f"{name}/log.csv")
        artefact = prepare(PrepareConfig(source=f"{name}/log.csv"), {}, folder / "out" / name)
        digests.append({n: h for n, h in artefact.manifest.files.items() if n.endswith("parquet")})
    assert digests[0] == digests[1] == digests[2]
    again = prepare(PrepareConfig(source="one/log.csv"), {}, folder / "out" / "again")
    assert again.digest == load(folder / "out" / "one").digest


def test_the_seed_orders_ties_and_nothing_else(folder: Path) -> None:
    source = write(random_rows())
    one, other = (
        histories(Dataset.open(prepare(PrepareConfig(source=source, seed=s), {}, folder / str(s))))
        for s in (1, 2)
    )
    assert one != other
    for user, items in one.items():
        for start in range(0, len(items), 3):
            assert sorted(items[start : start + 3]) == sorted(other[user][start : start + 3])


def test_without_a_time_column_rows_keep_their_order(folder: Path) -> None:
    rows = [(u, i, 9 - t) for t, i in enumerate("qrst") for u in "ab"]
    config = PrepareConfig(source=write(rows), core=1, columns=Columns(time=None))
    artefact = prepare(config, {}, folder / "data")
    assert histories(Dataset.open(artefact)) == {"a": list("qrst"), "b": list("qrst")}
    assert artefact.manifest.metrics["time_span"] is None


def test_a_sample_is_drawn_after_the_core_and_shrinks_the_vocabulary(folder: Path) -> None:
    source = write([*random_rows(), *[(f"v{n}", f"only{n}", 1) for n in range(3)]])
    whole = Dataset.open(prepare(PrepareConfig(source=source), {}, folder / "whole"))
    few = Dataset.open(prepare(PrepareConfig(source=source, users=2), {}, folder / "few"))
    more = Dataset.open(prepare(PrepareConfig(source=source, users=4), {}, folder / "more"))
    other = Dataset.open(prepare(PrepareConfig(source=source, users=4, seed=1), {}, folder / "o"))
    chosen = histories(few)
    assert len(chosen) == 2 and chosen.items() <= histories(more).items()
    assert histories(more).items() <= histories(whole).items()
    assert set(few.items["item"]) == {item for items in chosen.values() for item in items}
    assert set(histories(other)) != set(histories(more))
    assert prepare(PrepareConfig(source=source, users=999), {}, folder / "all").manifest.metrics[
        "users"
    ] == len(histories(whole))


def test_malformed_rows_within_the_budget_are_skipped_and_counted(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write([*random_rows(), ("", "i1", 1), ("u1", "i1", "x"), ("u1", "i1", "x")])
    artefact = prepare(PrepareConfig(source=source), {}, folder / "data")
    assert artefact.manifest.metrics["malformed"] == {"rows": 3, "time": 2, "user": 1}
    assert artefact.manifest.metrics["rows"] == 723
    assert "log.csv, line 722: user_id is empty; skipped" in caplog.messages


def test_the_terms_and_the_ties_are_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "slmc.data"):
        config = PrepareConfig(source=write(random_rows()), terms="Research only.\nCite us.")
        prepare(config, {}, folder / "data")
    assert caplog.messages[0] == "Terms of use of log.csv: Research only. Cite us."
    assert caplog.messages[2] == (
        "Times (timestamp) are numbers without a unit, which only order the rows"
    )
    assert caplog.messages[1] == "log.csv: read as CSV, separated by commas"
    assert caplog.messages[4:] == [
        "720 of 720 interactions (100 %) share a time stamp with another of the same user; "
        "they are sorted by a seeded hash",
        "60 users, 25 items, 720 interactions; 60 test users",
    ]


def test_rows_are_int32_and_every_id_finds_its_way_back(folder: Path) -> None:
    rows = random_rows()
    dataset = Dataset.open(prepare(PrepareConfig(source=write(rows)), {}, folder / "data"))
    assert dataset.items.schema["row"] == dataset.items.schema["count"] == pl.Int32
    assert dataset.sequences.schema["items"] == pl.List(pl.Int32)
    assert all(part.dtype == np.int32 for part in dataset.train_sequences())
    kept = {(u, i) for u, items in histories(dataset).items() for i in items}
    assert kept == {(u, i) for u, i, _ in rows}
    counts = dataset.items["count"].to_list()
    assert counts == sorted(counts, reverse=True)


def test_targets_are_sampled_by_the_seed_and_stay_in_order() -> None:
    def targets(users: int) -> Targets:
        rows = [np.array([user], dtype=np.int32) for user in range(users)]
        return Targets([str(user) for user in range(users)], rows, np.arange(users), rows)

    few = targets(50)
    assert few.sample(50, 3) is few
    some = targets(150).sample(50, 3)
    assert len(set(some.users)) == 50 == (np.diff(some.targets) > 0).sum() + 1
    assert [int(user) for user in some.users] == some.targets.tolist()
    assert [int(rows[0]) for rows in some.histories] == some.targets.tolist()
    again, other = targets(150).sample(50, 3), targets(150).sample(50, 4)
    assert some.users == again.users != other.users
