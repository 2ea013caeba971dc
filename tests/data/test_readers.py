import gzip
import logging
from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest

from slmc.data.config import Columns, Titles
from slmc.data.readers import Log, read, read_titles, warn_malformed

ROWS = [("196", "242", 881250949), ("186", "302", 891717742), ("196", "7", 881250949)]
TEXTS = {
    "log.csv": "user_id,item_id,timestamp\n196,242,881250949\n186,302,891717742\n196,7,881250949\n",
    "log.tsv": "timestamp\tuser_id\titem_id\n881250949\t196\t242\n891717742\t186\t302\n"
    "881250949\t196\t7\n",
    "log.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    "196\t242\t3\t881250949\n186\t302\t3\t891717742\n196\t7\t1\t881250949\n",
    "log.jsonl": '{"user_id": 196, "item_id": "242", "timestamp": 881250949}\n'
    '{"item_id": 302.0, "user_id": 186, "timestamp": "891717742"}\n\n'
    '{"user_id": "196", "item_id": 7, "timestamp": 881250949.0}\n',
}


def rows(log: Log) -> list[tuple[object, ...]]:
    return log.frame.select("user", "item", "time").rows()


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_text_formats(folder: Path, name: str, packed: bool, newline: str) -> None:
    data = TEXTS[name].replace("\n", newline).encode()
    path = Path(name + ".gz" * packed)
    path.write_bytes(gzip.compress(data) if packed else data)
    log = read([path])
    assert rows(log) == ROWS and log.timed and log.rows == 3


def test_a_byte_order_mark_is_not_part_of_a_name(folder: Path) -> None:
    Path("log.csv").write_bytes(b"\xef\xbb\xbf" + TEXTS["log.csv"].encode())
    assert rows(read([Path("log.csv")])) == ROWS


@pytest.mark.parametrize(
    ("users", "times"),
    [
        (pl.Series([196, 186, 196]), pl.Series([881250949, 891717742, 881250949])),
        (pl.Series([196.0, 186.0, 196.0]), pl.Series([881250949.0, 891717742.0, 881250949.0])),
        (
            pl.Series(["196", "186", "196"], dtype=pl.Categorical),
            pl.Series([datetime.fromtimestamp(row[2], UTC) for row in ROWS]),
        ),
    ],
)
def test_parquet_types(folder: Path, users: pl.Series, times: pl.Series) -> None:
    pl.DataFrame({"user_id": users, "item_id": [242, 302, 7], "timestamp": times}).write_parquet(
        "log.parquet"
    )
    assert rows(read([Path("log.parquet")])) == ROWS


def test_a_gap_in_a_parquet_column_is_one_malformed_row(folder: Path) -> None:
    pl.DataFrame(
        {
            "user_id": [1.0, None, float("nan")],
            "item_id": [1, 2, 3],
            "timestamp": [date(1970, 1, 2)] * 3,
        }
    ).write_parquet("log.parquet")
    log = read([Path("log.parquet")])
    assert rows(log) == [("1", "1", 86400)]
    assert log.malformed.rows() == [
        ("log.parquet", 2, "user", "user_id is null"),
        ("log.parquet", 3, "user", "user_id is NaN"),
    ]


def test_sequences_in_the_order_of_the_file(folder: Path) -> None:
    Path("log.txt").write_text("b 3 1  2\na 9\n\nb 1\n")
    log = read([Path("log.txt")], columns=Columns(user="nothing", item="of", time="this"))
    assert log.frame.select("user", "item").rows() == [
        ("b", "3"), ("b", "1"), ("b", "2"), ("a", "9"), ("b", "1"),
    ]  # fmt: skip
    assert not log.timed


def test_files_are_concatenated_in_order(folder: Path) -> None:
    for name, item in (("b.csv", 1), ("a.csv", 2)):
        Path(name).write_text(f"user_id,item_id\n5,{item}\n")
    log = read([Path("a.csv"), Path("b.csv")], columns=Columns(time=None))
    assert log.frame.rows() == [("5", "2", None), ("5", "1", None)]


def test_quotes_separators_and_newlines_inside_a_field(folder: Path) -> None:
    Path("log.csv").write_text(
        'user_id,item_id,timestamp\n"a, b","say ""x""",1\n"two\nlines",y,2\nplain,z\nplain,z,3\n'
    )
    log = read([Path("log.csv")])
    assert rows(log) == [("a, b", 'say "x"', 1), ("two\nlines", "y", 2), ("plain", "z", 3)]
    assert log.malformed.rows() == [
        ("log.csv", 5, "fields", "2 fields, the header has 3"),
    ]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0), ("1.5e3", 1500), ("-3", -3), ("1970-01-02", 86400),
        ("1970-01-01 01:00:00+01:00", 0), ("1970-01-01T00:01:00Z", 60),
        ("1970-01-01 00:01:00 UTC", 60),
    ],
)  # fmt: skip
def test_times(folder: Path, text: str, seconds: int) -> None:
    Path("log.csv").write_text(f"user_id,item_id,timestamp\na,b,{text}\n")
    assert rows(read([Path("log.csv")])) == [("a", "b", seconds)]


def test_every_malformed_row_is_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    Path("log.csv").write_bytes(
        b"user_id,item_id,timestamp\na,b,1\na,b\na,b,1,2\n,b,1\na,nan,1\na,b,soon\na,b,\n"
        b"a,b\xff,1\na,b,inf\nNULL,b,1\n"
    )
    log = read([Path("log.csv")])
    assert rows(log) == [("a", "b", 1)] and log.rows == 10
    assert log.malformed.drop("file").rows() == [
        (3, "fields", "2 fields, the header has 3"),
        (4, "fields", "4 fields, the header has 3"),
        (5, "user", "user_id is empty"),
        (6, "item", "item_id is nan"),
        (7, "time", "timestamp is soon, neither a number nor an ISO date"),
        (8, "time", "timestamp is empty"),
        (9, "encoding", "not UTF-8: byte 0xff at column 4"),
        (10, "time", "timestamp is inf, neither a number nor an ISO date"),
        (11, "user", "user_id is NULL"),
    ]
    with caplog.at_level(logging.WARNING, "slmc.data"):
        warn_malformed(log)
    assert caplog.messages[0] == "log.csv, line 3: 2 fields, the header has 3; skipped"
    assert len(caplog.messages) == 6
    assert caplog.messages[-1] == "4 more malformed rows were skipped, of 10 rows"


def test_malformed_json(folder: Path) -> None:
    Path("log.jsonl").write_text(
        '{"user_id": 1, "item_id": 2, "timestamp": 3}\n{"user_id": 1\n[1]\n'
        '{"user_id": 1, "timestamp": 3}\n{"user_id": [1], "item_id": 2, "timestamp": 3}\n'
        '{"user_id": NaN, "item_id": 2, "timestamp": 3}\n'
        '{"user_id": 1, "item_id": 2, "timestamp": null}\n' + "[" * 100000 + "\n"
        '{"user_id": 1, "item_id": "a\\ud83d", "timestamp": 3}\n'
        '{"user_id": 1, "item_id": 2, "timestamp": 4, "title": "\\ud83d"}\n'
        '{"user_id": 1, "item_id": 2, "item_id": 3, "timestamp": 4}\n'
    )
    log = read([Path("log.jsonl")])
    assert rows(log) == [("1", "2", 3), ("1", "2", 4)]
    assert log.malformed.select("line", "reason").rows() == [
        (2, "broken JSON: Expecting ',' delimiter at column 14"),
        (3, "not a JSON object"),
        (4, "item_id is null"),
        (5, "user_id is a list"),
        (6, "user_id is nan"),
        (7, "timestamp is null"),
        (8, "broken JSON: nested too deeply, or a number too long"),
        (9, "item_id contains \\ud83d, half of a character"),
        (11, "the key 'item_id' occurs twice in one object"),
    ]


def test_malformed_sequences(folder: Path) -> None:
    Path("log.txt").write_text("1 2 3\n4\n5 nan 6\n")
    log = read([Path("log.txt")])
    assert rows(log) == [("1", "2", None), ("1", "3", None), ("5", "6", None)]
    assert log.malformed.select("line", "reason").rows() == [
        (2, "a user without items"),
        (3, "an item is nan"),
    ]


def test_titles(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    Path("log.item").write_text(
        "item_id:token\tmovie_title:token_seq\n1\tToy Story\n2\t\n\tNobody\n1\tAgain\n3\n"
    )
    titles = read_titles([Path("log.item")], Titles(source="log.item", title="movie_title"))
    assert titles.rows() == [("1", "Toy Story")]
    assert caplog.messages == [
        "log.item: 2 malformed rows were skipped, with their titles; the first: line 6: 1 field, "
        "the header has 2"
    ]
