"""The unit of numeric times, decided by most rows and logged; other times are malformed."""

import logging
from pathlib import Path

import pytest

from slmc.data.config import Columns, PrepareConfig, TemporalSplit
from slmc.data.dataset import Dataset
from slmc.data.prepare import prepare
from slmc.data.readers import Log, read, refuse_malformed
from slmc.errors import DataError

SECOND = 1_700_001_000


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the logged messages, without those about the layout of files."""
    return [one for one in caplog.messages if ": read as " not in one]


def read_times(times: list[object], unit: str = "auto", name: str = "log.csv") -> Log:
    rows = [f"u{place % 2},i{place},{time}\n" for place, time in enumerate(times)]
    Path(name).write_text("user_id,item_id,timestamp\n" + "".join(rows))
    return read([Path(name)], columns=Columns(time_unit=unit))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("factor", "unit", "name"),
    [(1, "s", "seconds"), (10**3, "ms", "milliseconds"), (10**6, "us", "microseconds"),
     (10**9, "ns", "nanoseconds")],
)  # fmt: skip
def test_the_size_shows_the_unit(
    folder: Path, caplog: pytest.LogCaptureFixture, factor: int, unit: str, name: str
) -> None:
    with caplog.at_level(logging.INFO, "slmc.data"):
        log = read_times([SECOND * factor, (SECOND + 86400) * factor])
    assert log.clock is not None and log.clock.unit == unit
    assert [log.clock.text(time) for time in log.frame["time"]] == ["2023-11-14", "2023-11-15"]
    assert messages(caplog) == [f"Times (timestamp) are numbers, {name} since 1970"]


@pytest.mark.parametrize("times", [[1, 2, 3], [3, 2.5, -1], [0, 0, 0], [99_999_999]])
def test_small_numbers_order_rows_and_have_no_unit(
    folder: Path, caplog: pytest.LogCaptureFixture, times: list[object]
) -> None:
    with caplog.at_level(logging.INFO, "slmc.data"):
        log = read_times(times)
    assert log.clock is not None and log.clock.unit is None and log.malformed.is_empty()
    assert messages(caplog) == [
        "Times (timestamp) are numbers without a unit, which only order the rows"
    ]


def test_a_row_in_another_unit_is_malformed(folder: Path) -> None:
    log = read_times([SECOND, SECOND + 1, SECOND * 1000, SECOND + 2, 10**19 * 99, 0])
    assert log.frame["time"].to_list() == [SECOND, SECOND + 1, SECOND + 2, 0]
    assert log.malformed.select("line", "fault", "reason").rows() == [
        (4, "unit", f"timestamp is {SECOND}000, milliseconds where most times are seconds since "
         "1970"),
        (6, "unit", f"timestamp is {10**19 * 99}, too large for seconds since 1970"),
    ]  # fmt: skip
    with pytest.raises(DataError) as caught:
        refuse_malformed(log, "1%")
    assert caught.value.what.startswith("2 of 6 rows are malformed")
    assert caught.value.remedy == (
        "Write all times in one unit; for sequence numbers set columns.time_unit: none."
    )


def test_files_of_two_units(folder: Path) -> None:
    read_times([SECOND * 1000, SECOND * 1000], name="a.csv")
    read_times([SECOND, SECOND, SECOND], name="b.csv")
    log = read([Path("a.csv"), Path("b.csv")])
    assert log.malformed.select("file", "line").rows() == [("a.csv", 2), ("a.csv", 3)]
    assert log.frame["time"].to_list() == [SECOND] * 3


@pytest.mark.parametrize("factor", [1, 1000])
def test_dates_and_numbers_that_have_a_unit_are_one_clock(folder: Path, factor: int) -> None:
    log = read_times([(SECOND + 1) * factor, "2023-11-14T22:30:00Z", (SECOND - 1) * factor])
    assert log.frame["time"].to_list() == [t * factor for t in (SECOND + 1, SECOND, SECOND - 1)]


def test_dates_and_numbers_without_a_unit_are_not(folder: Path) -> None:
    log = read_times(["2023-11-14", "2023-11-15", 5])
    assert log.malformed["reason"].to_list() == [
        "timestamp is 5, a number without a unit where most times are dates"
    ]
    log = read_times(["2023-11-14", 6, 5])
    assert log.malformed["reason"].to_list() == [
        "timestamp is 2023-11-14, a date where most times are numbers without a unit"
    ]


def test_the_unit_can_be_set(folder: Path) -> None:
    log = read_times([SECOND, SECOND * 1000], "ms")
    assert log.clock is not None
    assert [log.clock.text(time) for time in log.frame["time"]] == ["1970-01-20", "2023-11-14"]
    log = read_times([SECOND, SECOND * 1000], "none")
    assert log.clock is not None and log.clock.unit is None and log.frame.height == 2
    log = read_times([SECOND, SECOND * 1000], "s")
    assert log.malformed["reason"].to_list() == [
        f"timestamp is {SECOND}000, too large for seconds since 1970"
    ]


def test_an_implausible_time_gives_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read_times([SECOND, SECOND, 0])
    assert messages(caplog) == [
        "1 row has a time before 1980 or from 2100 on; the first: log.csv, line 4: 1970-01-01"
    ]


def test_time_stamps_among_small_numbers_give_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = read_times([1, 2, 3, SECOND])
    assert log.frame["time"].to_list() == [1, 2, 3, SECOND]
    assert messages(caplog) == [
        "timestamp: 1 of the times looks like a time stamp, but most are small numbers; all are "
        "sorted as numbers without a unit"
    ]


def test_the_manifest_holds_the_unit_and_the_exact_span(folder: Path) -> None:
    read_times([SECOND * 10**9 + place for place in range(6)])
    metrics = prepare(PrepareConfig(source="log.csv", core=1), {}, folder / "a").manifest.metrics
    assert metrics["time_unit"] == "ns" and metrics["time_span"] == ["2023-11-14"] * 2
    read_times([2**60 + place for place in range(6)])
    columns = Columns(time_unit="none")
    config = PrepareConfig(source="log.csv", core=1, columns=columns)
    metrics = prepare(config, {}, folder / "b").manifest.metrics
    assert metrics["time_unit"] is None
    assert metrics["time_span"] == [str(2**60), str(2**60 + 5)]
    assert metrics["tied_share"] == 0


def test_a_sentinel_does_not_move_the_split(folder: Path) -> None:
    days = [f"2023-11-1{day}" for day in (4, 5, 6, 7)]
    rows = [f"{user},{day},{day}\n" for user in "abc" for day in days]
    Path("log.csv").write_text("user_id,item_id,timestamp\na,x,9999-12-31\n" + "".join(rows))
    split = TemporalSplit(by="time", valid="2023-11-16", test="2023-11-17")  # type: ignore[arg-type]
    dataset = Dataset.open(
        prepare(PrepareConfig(source="log.csv", core=1, split=split), {}, folder / "data")
    )
    assert dataset.sequences["valid_from"].to_list() == [2, 2, 2]
    assert dataset.sequences["test_from"].to_list() == [3, 3, 3]
