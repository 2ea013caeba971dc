"""Logs that were delivered twice, or matched twice by a glob."""

import gzip
from pathlib import Path

import pytest

from slmc.data.check import check
from slmc.data.config import Columns, PrepareConfig
from slmc.data.prepare import prepare

ROWS = [f"{user},{item},{time}\n" for user in "ab" for time, item in enumerate("wxyzx")]
HEADER = "user_id,item_id,timestamp\n"
UNTIMED = Columns(time=None)
KEPT = (
    "They are kept, so a model that recommends the last item again will look too good; set "
    "repeats: drop (--repeats drop) unless they are real"
)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    caplog.clear()
    return messages


def test_each_row_twice(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    Path("log.csv").write_text(HEADER + "".join(row * 2 for row in ROWS))
    metrics = check(PrepareConfig(source="log.csv", core=1)).metrics
    assert (metrics["duplicates"], metrics["interactions"]) == (10, 20)
    what = "10 of 20 rows (50 %) are exact duplicates: the same user, item and time. "
    assert warnings(caplog) == [what + KEPT]
    config = PrepareConfig(source="log.csv", core=1, repeats="drop")
    metrics = prepare(config, {}, folder / "data").manifest.metrics
    assert (metrics["duplicates"], metrics["interactions"]) == (10, 10)
    assert warnings(caplog) == [what + "They are dropped (repeats: drop)"]


@pytest.mark.parametrize("columns", [Columns(), UNTIMED])
@pytest.mark.parametrize("repeats", ["keep", "drop"])
def test_a_glob_that_matches_a_log_and_its_gzip(
    folder: Path, caplog: pytest.LogCaptureFixture, columns: Columns, repeats: str
) -> None:
    data = HEADER + "".join(ROWS)
    Path("log.csv").write_text(data)
    Path("log.csv.gz").write_bytes(gzip.compress(data.encode()))
    config = PrepareConfig(source="log.csv*", core=1, columns=columns, repeats=repeats)  # type: ignore[arg-type]
    metrics = check(config).metrics
    assert metrics["duplicates"] == 10
    assert metrics["interactions"] == (20 if repeats == "keep" else 10)
    copied, duplicates = warnings(caplog)
    assert copied == "log.csv.gz holds the same rows as log.csv"
    what = "repeat the row before them" if columns == UNTIMED else "are exact duplicates"
    assert duplicates.startswith(f"10 of 20 rows (50 %) {what}")


def test_a_file_without_times_whose_halves_are_equal(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Path("log.txt").write_text("a w x y z\nb w x y x\n" * 2)
    metrics = check(PrepareConfig(source="log.txt", core=1, repeats="drop")).metrics
    assert (metrics["duplicates"], metrics["interactions"]) == (8, 8)
    assert warnings(caplog) == [
        "the second half of log.txt holds the same rows as the first",
        "8 of 16 rows (50 %) repeat the row before them, or an earlier part of the log. They are "
        "dropped (repeats: drop)",
    ]


def test_without_times_a_row_repeats_the_one_before(folder: Path) -> None:
    Path("log.csv").write_text(HEADER + "".join(row * 2 for row in ROWS))
    config = PrepareConfig(source="log.csv", core=1, columns=UNTIMED)
    assert check(config).metrics["duplicates"] == 10
    dropped = check(config.model_copy(update={"repeats": "drop"}))
    assert dropped.metrics["interactions"] == 10  # x comes back at another place: no repeat


def test_a_log_without_repeats_gives_no_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Path("log.csv").write_text(HEADER + "".join(ROWS))
    assert check(PrepareConfig(source="log.csv", core=1)).metrics["duplicates"] == 0
    assert warnings(caplog) == []
