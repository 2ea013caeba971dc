"""Logs that cannot be read: a message of two lines, exit code 2, and no files left."""

import gzip
from pathlib import Path

import polars as pl
import pytest
from pydantic import ValidationError

from slmc.data.config import Columns, PrepareConfig, TemporalSplit, Titles
from slmc.data.prepare import prepare
from slmc.errors import DataError

HEADER = b"user_id,item_id,timestamp\n"
GOOD = HEADER + b"".join(b"%d,%d,%d\n" % (u, i, i) for u in range(6) for i in range(6))


def dated(*days: str) -> bytes:
    """A log of two users, who take an item on each day."""
    rows = [f"{user},{item},{day}\n" for user in "ab" for item, day in enumerate(days)]
    return HEADER + "".join(rows).encode()


TIMES = TemporalSplit(by="time", valid="2026-09-01", test="2026-10-01")  # type: ignore[arg-type]

CASES: dict[str, tuple[str, bytes, dict[str, object], str, str]] = {
    "empty file": (
        "log.csv", b"", {},
        "log.csv is empty.", "Export the log again, or name another file.",
    ),
    "empty gzip": (
        "log.csv.gz", gzip.compress(b""), {},
        "log.csv.gz is empty.", "Export the log again, or name another file.",
    ),
    "header only": (
        "log.csv", HEADER, {},
        "log.csv has a header but no rows.", "Export the log again, or name another file.",
    ),
    "wrong column": (
        "log.csv", b"userId,item_id,timestamp\n1,2,3\n", {},
        "log.csv has no column 'user_id'; it has 'userId', 'item_id', 'timestamp'.",
        "Set columns.user to one of them, perhaps 'userId'.",
    ),
    "no time column": (
        "log.csv", b"user_id,item_id\n1,2\n", {},
        "log.csv has no column 'timestamp'; it has 'user_id', 'item_id'.",
        "Set columns.time to one of them, or to null if the rows are already in time order.",
    ),
    "no separator": (
        "log.csv", b"user_id item_id\n1 2\n", {},
        "log.csv has no column 'user_id'; it has 'user_id item_id'.",
        "Its first line contains no comma: set separator, or set format.",
    ),
    "another separator than the one that is set": (
        "log.csv", GOOD, {"separator": ";"},
        "log.csv has no column 'user_id'; it has 'user_id,item_id,timestamp'.",
        "Its first line contains no ';': set separator, or set format.",
    ),
    "no header": (
        "log.csv", GOOD[len(HEADER):], {},
        "log.csv seems to have no header: its first line is '0,0,0'.",
        "Set header: false and number the columns (columns.user: 1, columns.item: 2, "
        "columns.time: N or null); or header: true if it names the columns.",
    ),
    "no header, its first row as names": (
        "log.csv", b"7,8,1700000000\n7,9,1700000001\n",
        {"columns": Columns(user="7", item="8", time="1700000000")},
        "log.csv seems to have no header: its first line is '7,8,1700000000'.",
        "Set header: false and number the columns (columns.user: 1, columns.item: 2, "
        "columns.time: 3); or header: true if it names the columns.",
    ),
    "no header, ids that are no numbers": (
        "log.csv", b"ann,tea,x\nann,milk,y\nbob,tea,x\n", {"columns": Columns(time=None)},
        "log.csv seems to have no header: its first line is 'ann,tea,x'.",
        "Set header: false and number the columns (columns.user: 1, columns.item: 2); "
        "or header: true if it names the columns.",
    ),
    "no header in the titles": (
        "log.csv", GOOD,
        {"titles": Titles(source="log.csv", item="0", title="1", header=True)},
        "log.csv has no column '0'; it has 'user_id', 'item_id', 'timestamp'.",
        "Set titles.item to one of them.",
    ),
    "ratings named .txt": (
        "u.txt", b"1 17 4 1700000000\n1 12 5 1700000001\n2 17 3 1700000002\n", {},
        "u.txt seems to have no header: its first line is '1 17 4 1700000000'.",
        "Set header: false and number the columns (columns.user: 1, columns.item: 2, "
        "columns.time: 4); or header: true if it names the columns, or format: sequences if it is "
        "a user and its items.",
    ),
    "a column number that is too large": (
        "log.csv", GOOD, {"header": False, "columns": Columns(user="1", item="2", time="4")},
        "log.csv has no column '4'; it has '1', '2', '3'.",
        "Set columns.time to one of them, or to null if the rows are already in time order.",
    ),
    "a JSON array": (
        "log.json", b'[{"user_id": 1, "item_id": 2, "timestamp": 3},\n{"user_id": 2}]\n', {},
        "log.json is one JSON array, not JSON lines (one object on each line).",
        "Write it as JSON lines: `jq -c '.[]' FILE > log.jsonl`.",
    ),
    "indented JSON": (
        "log.jsonl", b'{\n  "user_id": 1\n}\n', {},
        "log.jsonl is JSON over several lines, not JSON lines (one object on each line).",
        "Write it as JSON lines: `jq -c '.' FILE > log.jsonl`.",
    ),
    "another compression": (
        "log.csv.zst", b"\x28\xb5\x2f\xfd\x24\x00", {},
        "log.csv.zst is compressed with zstd.",
        "Decompress it, or use gzip; save a spreadsheet as CSV.",
    ),
    "an Arrow file": (
        "log.feather", b"ARROW1\0\0" + bytes(64), {},
        "log.feather is an Arrow (Feather) file, not a log that slmc reads.",
        "Save the table as Parquet or CSV.",
    ),
    "a database": (
        "log.csv", b"SQLite format 3\0" + bytes(64), {},
        "log.csv is an SQLite database, not a log that slmc reads.",
        "Save the table as Parquet or CSV.",
    ),
    "only carriage returns": (
        "log.csv", GOOD.replace(b"\n", b"\r"), {},
        "The lines of log.csv end with a carriage return only.",
        "Save it with line feeds: `tr '\\r' '\\n' < FILE`.",
    ),
    "a column twice": (
        "log.csv", b"user_id,item_id,item_id,timestamp\n1,2,2,3\n", {},
        "log.csv has 2 columns named 'item_id'.",
        "Give each column of the header a different name.",
    ),
    "no such column in JSON": (
        "log.jsonl", b'{"user_id": 1, "item": 2, "timestamp": 3}\n', {},
        "log.jsonl has no column 'item_id'; it has 'user_id', 'item', 'timestamp'.",
        "Set columns.item to one of them, perhaps 'item'.",
    ),
    "NaN ids": (
        "log.csv", HEADER + b"1,nan,3\n" + GOOD[len(HEADER):], {},
        "1 of 37 rows are malformed, more than max_malformed (1%) allows; the first: "
        "log.csv, line 2: item_id is nan.",
        "Fix the rows (`slmc data check` lists them), or raise max_malformed.",
    ),
    "more malformed rows than a number": (
        "log.csv", GOOD + b"1\n2\n3\n", {"max_malformed": "2"},
        "3 of 39 rows are malformed, more than max_malformed (2) allows; the first: "
        "log.csv, line 38: 1 field, the header has 3.",
        "Fix the rows (`slmc data check` lists them), or raise max_malformed.",
    ),
    "invalid times": (
        "log.csv", b"user_id,item_id,timestamp\n1,2,yesterday\n", {},
        "1 of 1 rows are malformed, more than max_malformed (1%) allows; the first: "
        "log.csv, line 2: timestamp is yesterday, neither a number nor an ISO date.",
        "Write times as numbers or as dates such as 2023-11-14 22:30:00, or set columns.time to "
        "another column (null if the rows are already in time order).",
    ),
    "binary garbage": (
        "log.csv", b"user_id,item\n\x07\x00\x9c\xff", {},
        "log.csv is not text: line 2 contains a zero byte.",
        "Name a text file, or set format: parquet if it is one.",
    ),
    "another encoding": (
        "log.csv", "usér,item_id,timestamp\n1,2,3\n".encode("latin-1"), {},
        "log.csv is not UTF-8 text: line 1 has byte 0xe9 at column 3.",
        "Save it as UTF-8; if it is Latin-1: `iconv -f latin1 -t utf-8 FILE > log.csv`.",
    ),
    "UTF-16": (
        "log.csv", "user_id,item_id\n".encode("utf-16"), {},
        "log.csv is UTF-16 text.", "Save it as UTF-8: `iconv -f utf-16 -t utf-8 FILE > log.csv`.",
    ),
    "truncated gzip": (
        "log.csv.gz", gzip.compress(GOOD, mtime=0)[:-20], {},
        "log.csv.gz ends in the middle of its gzip stream.", "Copy or download the file again.",
    ),
    "no gzip": (
        "log.csv.gz", GOOD, {},
        "log.csv.gz is not gzip data, although it is named .gz.",
        "Rename it, or compress it with gzip.",
    ),
    "no Parquet": (
        "log.parquet", b"\x07\x00\x9c\xff" * 9, {},
        "log.parquet is not a Parquet file.", "Set format to its real format.",
    ),
    "truncated Parquet": (
        "log.parquet", b"PAR1" + b"\x07\x00\x9c\xff" * 9, {},
        "log.parquet is an incomplete Parquet file.", "Copy the file again.",
    ),
    "an open quote": (
        "log.csv", HEADER + b'1,2,3\n1,"2,3\n1,2,3\n', {},
        "log.csv, line 3: a quoted field is never closed.",
        "Close the quote, or set format: tsv if the file is tab-separated.",
    ),
    "a header with an open quote": (
        "log.csv", b'user_id,"item_id\n1,2\n', {},
        "log.csv: the header is broken CSV: unexpected end of data.",
        "Fix its quotes, or set format: tsv if the file is tab-separated.",
    ),
    "one user": (
        "log.csv", HEADER + b"7,1,1\n7,2,2\n", {},
        "log.csv has only one user (7); a recommender needs many.",
        "Check columns.user, or name a log with more users.",
    ),
    "nothing in the core": (
        "log.csv", HEADER + b"1,1,1\n2,2,2\n", {},
        "log.csv: the 5-core drops all 2 interactions by 2 users.",
        "Lower core (1 keeps all), or name a larger log.",
    ),
    "one user in the core": (
        "log.csv", HEADER + b"1,1,1\n1,1,2\n2,2,2\n", {"core": 2},
        "log.csv: the 2-core leaves one user of the 3 interactions by 2 users.",
        "Lower core (1 keeps all), or name a larger log.",
    ),
    "no test target": (
        "log.csv", HEADER + b"1,1,1\n2,2,2\n", {"core": 1},
        "log.csv: no user has two interactions, so leave-one-out has no test target.",
        "Name a log with several interactions per user.",
    ),
    "a list of items in each row": (
        "log.csv", HEADER + b"1,7 8 9,1\n2,9 8 7 6,2\n", {"core": 1},
        "log.csv: no user has two interactions, so leave-one-out has no test target.",
        "item_id seems to hold lists, such as '7 8 9': write one row per interaction, or lines of "
        "a user and the items (format: sequences).",
    ),
    "a sample without a test target": (
        "log.csv", HEADER + b"1,1,1\n2,2,2\n3,1,1\n", {"core": 1, "users": 2},
        "log.csv: no user has two interactions, so leave-one-out has no test target.",
        "Raise core to 2, or sample more users: these may have one interaction each.",
    ),
    "a split outside the log": (
        "log.csv", dated("2026-05-01", "2026-09-02", "2026-09-03"), {"split": TIMES, "core": 1},
        "log.csv: no user has interactions both before and from 2026-10-01 on.",
        "Set split.test to a day within the log, which covers 2026-05-01 to 2026-09-03.",
    ),
    "a split without validation": (
        "log.csv", dated("2026-05-01", "2026-08-31", "2026-10-02"), {"split": TIMES, "core": 1},
        "log.csv: no user has interactions both before 2026-09-01 and from then until 2026-10-01, "
        "so there are no validation targets.",
        "Set split.valid and split.test to other days of the log, which covers 2026-05-01 to "
        "2026-10-02.",
    ),
    "a temporal split of sequence numbers": (
        "log.csv", GOOD, {"split": TIMES, "core": 1},
        "log.csv: the times in timestamp are numbers without a unit, which cannot be split by "
        "date.",
        "Set columns.time to a column of dates, columns.time_unit to the unit of the numbers, or "
        "split: {by: leave-one-out}.",
    ),
    "a temporal split of sequences": (
        "log.txt", b"1 2 3\n4 5 6\n", {"split": TIMES},
        "log.txt is in the sequence format, which has no time stamps to split by.",
        "Set split: {by: leave-one-out}, or name a log with a column of time stamps.",
    ),
    "an unknown name and format": (
        "log.dat", b"Ann bought tea.\nBob did not.\n", {},
        "Neither the name nor the first lines of log.dat show its format.",
        "Set format to csv, tsv, jsonl, parquet, recbole or sequences.",
    ),
    "no titles in the titles": (
        "log.csv", GOOD, {"titles": Titles(source="log.csv")},
        "log.csv has no column 'title'; it has 'user_id', 'item_id', 'timestamp'.",
        "Set titles.title to one of them.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_two_lines(folder: Path, name: str) -> None:
    file, data, settings, what, remedy = CASES[name]
    Path(file).write_bytes(data)
    with pytest.raises(DataError) as caught:
        prepare(PrepareConfig(source=file, **settings), {}, Path("out/data"))  # type: ignore[arg-type]
    assert (caught.value.what, caught.value.remedy) == (what, remedy)
    assert caught.value.exit_code == 2
    assert sorted(path.name for path in folder.iterdir()) == [file]


def test_parquet_columns_of_another_type(folder: Path) -> None:
    pl.DataFrame({"user_id": [[1]], "item_id": [1], "timestamp": [True]}).write_parquet("l.pq")
    with pytest.raises(DataError) as caught:
        prepare(PrepareConfig(source="l.pq"), {}, Path("out"))
    assert caught.value.what == (
        "Column 'user_id' of l.pq has the type List(Int64), which cannot hold ids."
    )
    assert caught.value.remedy == (
        "Write one row per interaction, such as with explode of polars, pandas or Spark."
    )


def test_a_parquet_file_damaged_inside(folder: Path) -> None:
    pl.DataFrame({"user_id": [1], "item_id": [1], "timestamp": [1]}).write_parquet("log.parquet")
    data = bytearray(Path("log.parquet").read_bytes())
    data[4:-8] = bytes(len(data) - 12)
    Path("log.parquet").write_bytes(data)
    with pytest.raises(
        DataError, match=r"^log\.parquet is not a readable Parquet file: "
    ) as caught:
        prepare(PrepareConfig(source="log.parquet"), {}, Path("out"))
    assert "\n" not in caught.value.what
    assert caught.value.remedy == "Copy the file again, or set format to its real format."


def test_files_of_two_formats(folder: Path) -> None:
    Path("a.csv").write_bytes(GOOD)
    Path("b.txt").write_text("1 2 3\n")
    with pytest.raises(DataError, match=r"^a\.csv is csv, but b\.txt is sequences\.\n"):
        prepare(PrepareConfig(source="*.*"), {}, Path("out"))


@pytest.mark.parametrize(
    ("settings", "why"),
    [({"columns": Columns(time=None)}, "columns.time is null"),
     ({"format": "sequences"}, "format is sequences")],
)  # fmt: skip
def test_a_temporal_split_without_times_is_refused_in_the_config(
    settings: dict[str, object], why: str
) -> None:
    with pytest.raises(ValidationError, match=f"split.by: time needs time stamps, but {why}"):
        PrepareConfig(source="log", split=TIMES, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({}, "columns.user is user_id"),
        ({"columns": Columns(user="1", item="0", time=None)}, "columns.item is 0"),
        (
            {"columns": Columns(user="1", item="2", time=None), "header": "auto",
             "titles": {"source": "t.csv", "header": False}},
            "titles.item is item_id",
        ),
    ],
)  # fmt: skip
def test_columns_without_a_header_are_numbers(settings: dict[str, object], why: str) -> None:
    with pytest.raises(ValidationError, match=f"columns are numbers from 1, but {why}"):
        PrepareConfig(**{"source": "log", "header": False} | settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("separator", ["", '"', "a\nb"])
def test_invalid_separators(separator: str) -> None:
    with pytest.raises(ValidationError, match="a separator is one or more characters"):
        PrepareConfig(source="log", separator=separator)
