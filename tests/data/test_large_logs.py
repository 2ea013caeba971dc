"""A log of any size gives the same dataset, in memory or on disk, in pieces of any size."""

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from slmc.data import dataset, files, formats, repeats, sorting, spool
from slmc.data.buckets import Buckets
from slmc.data.config import Columns, PrepareConfig
from slmc.data.prepare import Prepared, build, fetch_log
from slmc.data.split import id_keys, tie_keys
from slmc.data.spool import Spool
from slmc.errors import DataError

SECOND = 1_700_001_000
TIMES = st.sampled_from(
    ["", "x", "-", str(SECOND), f"{SECOND}.5", f"{SECOND + 1}", f"{SECOND}000", "2023-11-14",
     "9999999999999999999999"]
)  # fmt: skip
ROW = st.tuples(
    st.sampled_from(["a", "b", "c", "d", "é", "NA", ""]),
    st.sampled_from(["1", "2", "10", "x", "null", "7.0"]),
    st.integers(SECOND, SECOND + 4).map(str) | TIMES,
)
FORMATS = ("csv", "quoted", "jsonl", "parquet")


def cut_small(monkeypatch: pytest.MonkeyPatch, rows: int = 4) -> None:
    """Read, spool and sort a few rows at a time."""
    monkeypatch.setattr(files, "BLOCK_BYTES", 15 * rows)
    monkeypatch.setattr(formats, "PARQUET_ROWS", rows)
    for module in (spool, repeats):
        monkeypatch.setattr(module, "CHUNK_ROWS", rows)
    monkeypatch.setattr(sorting, "BUCKET_ROWS", rows)
    monkeypatch.setattr(dataset, "USERS_AT_ONCE", 2)


def write(rows: list[tuple[str, str, str]], form: str, name: str) -> str:
    file = Path(f"{name}.{'csv' if form == 'quoted' else form}")
    names = ("user_id", "item_id", "timestamp")
    if form == "parquet":
        pl.DataFrame(rows, dict.fromkeys(names, pl.String), orient="row").write_parquet(file)
    elif form == "jsonl":
        objects = (json.dumps(dict(zip(names, row, strict=True))) for row in rows)
        file.write_text("".join(f"{one}\n" for one in objects))
    else:
        row = '"{}","{}",{}\n' if form == "quoted" else "{},{},{}\n"
        file.write_text(",".join(names) + "\n" + "".join(row.format(*one) for one in rows))
    return str(file)


def result_of(config: PrepareConfig) -> tuple[object, ...]:
    """Return everything that prepare makes of a log, or its error."""
    log = None
    try:
        log = fetch_log(config)
        malformed = log.malformed.rows()
        prepared = build(config, log)
    except DataError as error:
        return (error.what, error.remedy, None if log is None else log.malformed.rows())
    return (prepared.items.rows(), prepared.users.rows(), prepared.metrics, malformed)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[*HealthCheck], phases=[Phase.generate]
)
@given(
    rows=st.lists(ROW, min_size=1, max_size=25),
    form=st.sampled_from(FORMATS),
    timed=st.booleans(),
    twice=st.booleans(),
    settings_=st.fixed_dictionaries(
        {
            "core": st.integers(1, 2),
            "repeats": st.sampled_from(["keep", "drop"]),
            "ties": st.sampled_from(["keep", "shuffle"]),
            "users": st.sampled_from([None, 2]),
        }
    ),
)
def test_pieces_of_any_size_give_the_same_dataset(
    folder: Path, rows: list[tuple[str, str, str]], form: str, timed: bool, twice: bool,
    settings_: dict[str, object],
) -> None:  # fmt: skip
    for file in folder.glob("log*"):
        file.unlink()
    write(rows, form, "log-1")
    if twice:
        write(rows, form, "log-2")
    columns = Columns(time="timestamp" if timed else None)
    config = PrepareConfig(source="log*", columns=columns, max_malformed="100%", **settings_)  # type: ignore[arg-type]
    whole = result_of(config)
    with pytest.MonkeyPatch.context() as patch:
        cut_small(patch)
        assert result_of(config) == whole


def plainly(
    rows: list[tuple[str, str, int]], core: int, seed: int
) -> tuple[list[tuple[str, int]], dict[str, list[str]]]:
    """Prepare a log with plain Python: items with their counts, and the items of each user."""
    while True:
        users, items = Counter(row[0] for row in rows), Counter(row[1] for row in rows)
        stays = [row for row in rows if users[row[0]] >= core and items[row[1]] >= core]
        if len(stays) == len(rows):
            break
        rows = stays

    def key(row: tuple[str, str, int]) -> tuple[int, int]:
        user, item = (id_keys([name], seed) for name in row[:2])
        return row[2], int(tie_keys(user, item, np.array([float(row[2])]))[0])

    histories = {
        user: [row[1] for row in sorted((r for r in rows if r[0] == user), key=key)]
        for user in sorted({row[0] for row in rows})
    }
    counts = Counter({item: 0 for items in histories.values() for item in items})
    for history in histories.values():
        counts.update(history[: max(len(history) - 2, 1)])
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])), histories


@pytest.mark.parametrize("small", [False, True])
def test_a_plain_preparation_gives_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch, small: bool
) -> None:
    rng = random.Random(5)
    rows = [(f"u{rng.randrange(40)}", f"i{int(rng.paretovariate(0.8)) % 60}", rng.randrange(30))
            for _ in range(900)]  # fmt: skip
    write([(u, i, str(t)) for u, i, t in rows], "csv", "log")
    if small:
        cut_small(monkeypatch, 100)
    config = PrepareConfig(source="log.csv", core=4)
    prepared: Prepared = build(config, fetch_log(config))
    items, histories = plainly(rows, 4, config.seed)
    assert prepared.items.select("item", "count").rows() == items
    names = ["", *prepared.items["item"]]
    found = {
        user: [names[row] for row in rows]
        for user, rows in prepared.users.select("user", "items").rows()
    }
    assert found == histories and 10 < len(histories) <= 40


def test_a_spool_gives_back_its_rows() -> None:
    frames = [
        pl.DataFrame(
            {
                "a": pl.Series([*range(start, start + 3)], dtype=pl.UInt32),
                "b": [None, start, -start],
            }
        )
        for start in range(0, 30, 3)
    ]
    frames[4] = frames[4].with_columns(pl.col("b").cast(pl.Int128) * 10**30)
    whole = pl.concat(frames, how="vertical_relaxed")
    for memory in (0, 4, 10, None):
        rows = Spool(memory)
        for frame in frames:
            rows.append(frame)
        assert rows.height == 30 and rows.frame().equals(whole)
        assert rows.rows(7, 22).equals(whole[7:22])
        assert rows.rows(29, 99).equals(whole[29:])
        rows.append(frames[0])  # also after reading
        assert rows.frame().equals(pl.concat([whole, frames[0]], how="vertical_relaxed"))
        rows.close()
        assert rows.height == 0


@pytest.mark.parametrize("memory", [0, 4, 29, 30])
def test_buckets_give_back_their_rows(tmp_path: Path, memory: int) -> None:
    buckets = Buckets(5, lambda rows: rows["a"].to_numpy() % 5 // 3, memory=memory, folder=tmp_path)
    assert [*buckets.tables()] == []
    frames = [pl.DataFrame({"a": range(start, start + 6)}) for start in range(0, 30, 6)]
    for frame in frames:
        buckets.append(frame)
    assert buckets.height == 30
    tables = [table["a"].to_list() for table in buckets.tables()]
    first, second = ([n for n in range(30) if n % 5 // 3 == number] for number in (0, 1))
    assert tables == ([[*range(30)]] if memory == 30 else [first, second])
    assert [*buckets.tables()] == [] and buckets.height == 0
    assert [*tmp_path.iterdir()] == []


def test_the_disk_is_used_only_by_large_logs_and_is_left_empty(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [(f"u{n % 9}", f"i{n % 7}", str(n)) for n in range(200)]
    config = PrepareConfig(source=write(rows, "csv", "log"))
    build(config, fetch_log(config))
    assert not (cache / "scratch").exists()
    cut_small(monkeypatch, 50)
    build(config, fetch_log(config))
    assert [*(cache / "scratch").iterdir()] == []
