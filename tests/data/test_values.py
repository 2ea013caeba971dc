"""Ids and times keep their exact value, whatever their type and spelling."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest
from pydantic import ValidationError

from slmc.data.config import Columns, PrepareConfig
from slmc.data.prepare import build
from slmc.data.readers import Log, read, refuse_malformed
from slmc.errors import DataError

BIG = 1_800_000_000_000_000_000
"""Beyond 2^53, where float64 cannot hold every integer."""
SECOND = 1_700_001_000


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the logged messages, without those about the layout of files."""
    return [one for one in caplog.messages if ": read as " not in one]


def csv(rows: Sequence[Sequence[object]], name: str = "log.csv") -> Path:
    lines = [",".join(map(str, row)) for row in rows]
    Path(name).write_text("\n".join(["user_id,item_id,timestamp", *lines]) + "\n")
    return Path(name)


def parquet(columns: Mapping[str, object], name: str = "log.parquet") -> Path:
    pl.DataFrame(
        {"user_id": [1, 1], "item_id": [1, 2], "timestamp": [1, 2]} | columns
    ).write_parquet(name)
    return Path(name)


def items_in_order(log: Log) -> list[str]:
    """Return the items of a log of two users, in the order of the first user."""
    prepared = build(PrepareConfig(source="log.parquet", core=1), log)
    names = ["", *prepared.items["item"]]
    return [names[row] for row in prepared.users["items"][0]]


@pytest.mark.parametrize(
    "ids",
    [
        pl.Series([BIG + 1, BIG + 2], dtype=pl.Decimal(38, 0)),
        pl.Series([BIG + 1, BIG + 2], dtype=pl.Int64),
        pl.Series([BIG + 1, BIG + 2], dtype=pl.UInt64),
        pl.Series([f"{BIG + 1}", f"{BIG + 2}"]),
        pl.Series([Decimal(f"{BIG + 1}.00"), Decimal(f"{BIG + 2}.00")], dtype=pl.Decimal(38, 2)),
    ],
)
def test_big_ids_of_parquet(folder: Path, ids: pl.Series) -> None:
    log = read([parquet({"item_id": ids})])
    assert log.frame["item"].to_list() == [str(BIG + 1), str(BIG + 2)]


def test_big_numbers_of_json(folder: Path) -> None:
    Path("log.jsonl").write_text(
        f'{{"user_id": {2**64}, "item_id": {BIG + 1}.0, "timestamp": {BIG + 1}}}\n'
        f'{{"user_id": 7.0, "item_id": {BIG + 2}, "timestamp": {BIG + 2}.0}}\n'
        f'{{"user_id": 7, "item_id": 1.8e+18, "timestamp": 1.8e18}}\n'
    )
    log = read([Path("log.jsonl")])
    assert log.frame.select("user", "item", "time").rows() == [
        (str(2**64), str(BIG + 1), BIG + 1), ("7", str(BIG + 2), BIG + 2),
    ]  # fmt: skip
    assert log.malformed["reason"].to_list() == [
        "item_id is 1.8E+18: the last digits are lost, since it was stored as a float"
    ]


@pytest.mark.parametrize(
    ("dtype", "value", "shown", "limit"),
    [(pl.Float64, BIG, "1.8e+18", 2**53), (pl.Float32, 20_000_000, "2e+07", 2**24)],
)
def test_floats_that_cannot_be_ids(
    folder: Path, dtype: pl.DataType, value: int, shown: str, limit: int
) -> None:
    path = parquet({"user_id": pl.Series([float(value), None], dtype=dtype)})
    with pytest.raises(DataError) as caught:
        read([path])
    assert caught.value.what == (
        f"Column 'user_id' of log.parquet holds ids as {dtype()!r}, up to {shown}: from {limit} "
        f"on, {dtype()!r} rounds different ids to the same number."
    )
    assert caught.value.remedy == (
        "Export the ids again as integers or texts, from a source that has them exactly; or set "
        "columns.user to another column."
    )


@pytest.mark.parametrize(
    "times",
    [
        [BIG + 2, BIG + 1],
        pl.Series([2**64 - 1, 2**64 - 2], dtype=pl.UInt64),
        pl.Series([10**30 + 1, 10**30], dtype=pl.Decimal(38, 0)),
        pl.Series([1_700_000_000_000_000_001, 1_700_000_000_000_000_000]).cast(pl.Datetime("ns")),
        ["2023-11-14T22:30:00.000000002", "2023-11-14T22:30:00.000000001Z"],
        ["1700001000.123456789012", "1700001000.123456789011"],
        ["9999-12-31T00:00:00.000000001", "9999-12-31"],
        ["1.700001000000000001e18", "1700001000000000000"],
    ],
)
def test_times_are_ordered_by_their_exact_value(folder: Path, times: object) -> None:
    rows = {"user_id": [1, 1, 2, 2], "item_id": [5, 6, 5, 6]}
    column = pl.concat([pl.Series(times)] * 2)  # type: ignore[arg-type]
    log = read([parquet(rows | {"timestamp": column})])
    assert items_in_order(log) == ["6", "5"]
    assert build(PrepareConfig(source="log.parquet", core=1), log).metrics["tied_share"] == 0


def test_equal_times_written_in_two_ways_are_equal(folder: Path) -> None:
    texts = [
        SECOND, f"{SECOND}.000", f"{SECOND}e0", "2023-11-14T22:30:00Z", "2023-11-14T22:30",
        "2023-11-14 22:30:00 UTC", "2023-11-14 23:30:00+01:00",
    ]  # fmt: skip
    log = read([csv([("a", "b", text) for text in texts])])
    assert log.frame["time"].to_list() == [SECOND] * len(texts)
    assert log.malformed.is_empty()


@pytest.mark.parametrize(
    "text", ["2023-02-30", "2023-11-14 24:30:00", "1e400", "0x10", "1_000", "1e", ".", "NaT", "-"]
)
def test_texts_that_are_no_times(folder: Path, text: str) -> None:
    log = read([csv([("a", "b", text), ("a", "b", 1)])])
    assert log.frame.height == 1 and log.malformed["fault"].to_list() == ["time"]


def test_floats_too_coarse_for_times_are_warned_of(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read([parquet({"timestamp": pl.Series([1.7e9, 1.7e9], dtype=pl.Float32)})])
    assert messages(caplog) == [
        "timestamp holds Float32 above 16777216, where different times are rounded to the same "
        "number. Export this column as integers"
    ]


@pytest.mark.parametrize(
    "token",
    ["\\N", "NA", "<NA>", "#N/A", "(null)", "NaT", "NaN", "-nan", "None", "NULL", "undefined"],
)
def test_null_tokens_are_missing_ids(folder: Path, token: str) -> None:
    log = read([csv([(token, 1, 1), ("1", token, 1), ("22", 5, 1)])])
    assert log.frame["user"].to_list() == ["22"]
    assert log.malformed.select("line", "fault", "reason").rows() == [
        (2, "user", f"user_id is {token}"), (3, "item", f"item_id is {token}"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("token", "others"), [("NA", ["DE", "FR", "US"]), ("NAN", ["JFK", "LAX", "SFO", "7"])]
)
def test_a_token_among_words_of_its_shape_is_an_id(
    folder: Path, caplog: pytest.LogCaptureFixture, token: str, others: list[str]
) -> None:
    log = read([csv([(1, item, 1) for item in [token, *others]])])
    assert token in log.frame["item"].to_list() and log.malformed.is_empty()
    assert messages(caplog) == [
        f"item_id {token} is read as an id, because most ids of the column look like it "
        f"({', '.join(others[:3])}): leave the field empty where it means a missing value"
    ]


def test_infinite_ids_are_refused(folder: Path) -> None:
    log = read([parquet({"item_id": [float("inf"), 7.0]})])
    assert log.frame["item"].to_list() == ["7"]
    assert log.malformed["reason"].to_list() == ["item_id is inf, which is not an id"]
    with pytest.raises(DataError, match=r"the first: log\.parquet, row 1: item_id is inf"):
        refuse_malformed(log, "1%")


def test_two_spellings_of_an_id_are_warned_of(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = [csv([(7, 1, 1)], "a.csv"), csv([("7.0", 1, 1), ("8.0", 1, 1)], "b.csv")]
    assert read(parts).frame["user"].to_list() == ["7", "7.0", "8.0"]
    assert messages(caplog) == [
        "user_id: 1 id is written in two ways, such as 7 and 7.0; they count as different ids. "
        "Write each id in one way"
    ]


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"user": "x", "item": "x"}, "user and item are the same column, 'x'"),
        ({"user": "timestamp"}, "user and time are the same column, 'timestamp'"),
        ({"item": "timestamp"}, "item and time are the same column, 'timestamp'"),
    ],
)
def test_a_column_has_one_role(columns: dict[str, str], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Columns(**columns)  # type: ignore[arg-type]


def test_a_typed_name_of_recbole_is_the_same_column(folder: Path) -> None:
    Path("log.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n1\t2\t3\n")
    with pytest.raises(DataError, match=r"^columns\.user and columns\.item are the same column"):
        read([Path("log.inter")], columns=Columns(item="user_id:token"))


def test_dates_are_never_rescaled(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    moments = [datetime(2023, 11, 14), datetime(9999, 12, 31)]
    log = read([parquet({"timestamp": moments})])
    assert log.clock is not None and log.clock.unit == "date"
    assert [log.clock.text(time) for time in log.frame["time"]] == ["2023-11-14", "9999-12-31"]
    assert messages(caplog) == [
        "1 row has a time before 1980 or from 2100 on; the first: log.parquet, row 2: 9999-12-31"
    ]
