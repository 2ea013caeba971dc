"""Detect the layout of a file from its lines: wrong names, unknown separators, no header."""

import gzip
import logging
from pathlib import Path

import polars as pl
import pytest

from slmc.data.config import Columns
from slmc.data.layout import Layout
from slmc.data.readers import read
from slmc.data.sniff import detect_layout
from slmc.errors import DataError

COLUMNS = {"user": "user_id", "item": "item_id", "time": "timestamp"}
CSV = "user_id,item_id,timestamp\n1,17,1700000000\n1,12,1700000001\n"
TSV = CSV.replace(",", "\t")
JSONL = '{"user_id": 1, "item_id": 17, "timestamp": 1700000000}\n' * 2
RECBOLE = "user_id:token\titem_id:token\ttimestamp:float\n1\t17\t3\n"
SEQUENCES = "1 17 12 5\n2 17\n3 9 9 9 9\n"

CASES = {
    "log.csv": (CSV, Layout("csv"), False),
    "log.CSV.gz": (CSV, Layout("csv"), False),
    "log.tsv": (TSV, Layout("tsv", "\t"), False),
    "log.ndjson.gz": (JSONL, Layout("jsonl"), False),
    "ml.inter": (RECBOLE, Layout("recbole", "\t"), False),
    "a.txt.gz": (SEQUENCES, Layout("sequences"), False),
    "semicolons.csv": (CSV.replace(",", ";"), Layout("csv", ";"), False),
    "bars.csv": (CSV.replace(",", "|"), Layout("csv", "|"), False),
    "colons.csv": (CSV.replace(",", "::"), Layout("csv", "::"), False),
    "tabs.csv": (TSV, Layout("csv", "\t"), False),
    "blanks.csv": (CSV.replace(",", "  "), Layout("csv", " "), False),
    "commas.tsv": (CSV, Layout("csv"), True),
    "commas.txt": (CSV, Layout("csv"), True),
    "tabs.txt": (TSV, Layout("tsv", "\t"), True),
    "blanks.txt": (CSV.replace(",", " "), Layout("csv", " "), True),
    "commas.inter": (CSV, Layout("csv"), True),
    "json.csv": (JSONL, Layout("jsonl"), True),
    "json.txt": (JSONL, Layout("jsonl"), True),
    "commas.jsonl": (CSV, Layout("csv"), True),
    "commas.parquet": (CSV, Layout("csv"), True),
    "recbole.tsv": (RECBOLE, Layout("recbole", "\t"), True),
    "json.dat": (JSONL, Layout("jsonl"), False),
    "commas.log": (CSV, Layout("csv"), False),
    "no-suffix": (SEQUENCES, Layout("sequences"), False),
    # The separator that gives the columns is taken, even if another one is more frequent.
    "more.csv": ("item_id;user_id;a,b,c\n1;2;x,y,z\n", Layout("csv", ";"), False),
    "genres.csv": ("user_id,item_id,genres\n1,2,a|b\n1,3,c|d\n", Layout("csv"), False),
    # Names that pandas writes for unnamed columns.
    "numbers.csv": ("0,1,2\n7,17,1700000000\n", Layout("csv"), False),
}


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the logged messages, without the one about the unit of times."""
    return [one for one in caplog.messages if "Times (" not in one]


@pytest.mark.parametrize("name", CASES)
def test_the_lines_show_the_format(folder: Path, name: str) -> None:
    text, expected, warned = CASES[name]
    Path(name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    columns = {"user": "0", "item": "1"} if name == "numbers.csv" else dict(COLUMNS)
    if "timestamp" not in text:
        columns.pop("time", None)
    layout, warning = detect_layout(Path(name), columns)
    assert (layout, warning is not None) == (expected, warned)


def test_layouts_and_mismatches_are_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in (1, 2, 3):
        Path(f"{number}.txt").write_text(CSV)
    with caplog.at_level(logging.INFO, "slmc.data"):
        log = read([Path("1.txt"), Path("2.txt"), Path("3.txt")])
    assert log.frame.height == 6 and log.format == "csv"
    assert messages(caplog) == [
        "1.txt and 2 more files: read as CSV, separated by commas",
        "1.txt and 2 more files: the name suggests sequences (user and items on each line), but "
        "the lines look like CSV, separated by commas; set format if this is wrong",
    ]


def test_a_format_that_is_set_is_used_with_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Path("u.data").write_text("1 17 4 1700000000\n1 12 5 1700000001\n")
    log = read([Path("u.data")], "sequences")
    assert log.frame.height == 6
    assert messages(caplog) == [
        "u.data: format is set to sequences (user and items on each line), but the lines look like "
        "CSV, separated by blanks"
    ]


def test_users_on_several_lines_give_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Path("log.txt").write_text("".join(f"{n % 3} {n} 4\n" for n in range(12)))
    assert read([Path("log.txt")]).format == "sequences"
    assert messages(caplog) == [
        "log.txt: all lines have the same number of entries, and users have several lines; if it "
        "is a table, set separator: space"
    ]


@pytest.mark.parametrize("separator", [",", ";", "|", "::", "\t", "  "])
def test_a_table_without_a_header(folder: Path, separator: str) -> None:
    rows = [("a", "17", "4", 1700000000.0), ("b", "12", "5", 1700000001.0)]
    text = "".join(separator.join([*row[:3], f"{row[3]:.0f}"]) + "\n" for row in rows)
    columns = Columns.model_validate({"user": 1, "item": 2, "time": 4})
    for name in ("u.csv", "u.txt", "u.data"):
        Path(name).write_text(text)
        log = read([Path(name)], columns=columns, header=False)
        assert log.frame.select("user", "item", "time").rows() == [
            (user, item, time) for user, item, _, time in rows
        ]


def test_names_of_columns_do_not_hide_the_times(folder: Path) -> None:
    Path("u.txt").write_text("userId movieId rating time\n1 17 4 1700000000\n2 12 5 1700000001\n")
    columns = Columns(user="userId", item="movieId", time="when")
    with pytest.raises(DataError, match=r"^u\.txt has no column 'when'; it has 'userId', "):
        read([Path("u.txt")], columns=columns)


def test_broken_json_lines_are_json_lines(folder: Path) -> None:
    Path("log.jsonl").write_text('{"user_id": 1, "item_id": 2\n' * 9)
    log = read([Path("log.jsonl")])
    assert (log.format, log.malformed.height) == ("jsonl", 9)


def test_a_separator_that_is_set(folder: Path) -> None:
    Path("log.txt").write_text("user_id^item_id,2\na^1,2\nb^3,4\n")
    columns = Columns(item="item_id,2", time=None)
    log = read([Path("log.txt")], columns=columns, separator="^")
    assert log.frame.select("user", "item").rows() == [("a", "1,2"), ("b", "3,4")]


def test_parquet_under_another_name(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    pl.DataFrame({"user_id": [1], "item_id": [2], "timestamp": [3]}).write_parquet("log.csv")
    assert read([Path("log.csv")]).format == "parquet"
    assert messages(caplog) == [
        "log.csv: the name suggests CSV, but the lines look like Parquet; set format if this is "
        "wrong"
    ]
