"""Logs as other programs write them: read as meant, or refused with what to do."""

import gzip
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from slmc.data.config import Columns, PrepareConfig
from slmc.data.prepare import prepare
from slmc.data.readers import Log, check_head, read
from slmc.errors import DataError

SECOND = 1_700_001_000  # 2023-11-14T22:30:00Z
HEADER = "user_id,item_id,timestamp\n"
ROWS = f"u,007,{SECOND}\nu,7,{SECOND + 1}\nv,007,{SECOND + 2}\n"
TABLE = HEADER + ROWS
READ = [("u", "007", SECOND), ("u", "7", SECOND + 1), ("v", "007", SECOND + 2)]


def rows(log: Log) -> list[tuple[object, ...]]:
    return log.frame.select("user", "item", "time").rows()


def cut(text: str, separator: str) -> str:
    return text.replace(",", separator)


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\n" + cut(TABLE, ";"),
        "\ufeffsep=,\r\n" + TABLE.replace("\n", "\r\n"),
        '"sep=\t"\n' + cut(TABLE, "\t"),
        "SEP=|\n" + cut(TABLE, "|"),
        "sep=;;;\n" + cut(TABLE, ";"),
        "# exported by a person\n#\n\n" + TABLE,
        "// exported, with commas, 2024\n" + TABLE,
        "% bip weighted\n% 3 4\n" + cut(TABLE, "\t"),
        "#" + TABLE,
        "# " + cut(TABLE, ";"),
        "# exported\n# user_id;item_id;timestamp\n" + cut(ROWS, ";"),
        "+---+---+---+\n| user_id | item_id | timestamp |\n"
        + "".join(f"| {cut(row, ' | ')} |\n" for row in ROWS.splitlines()),
        TABLE.replace(",", " , "),
        TABLE.replace("\n", ",\n"),
        "," + HEADER + "".join(f"{n},{row}\n" for n, row in enumerate(ROWS.splitlines())),
    ],
)
def test_tables(folder: Path, text: str) -> None:
    Path("log.csv").write_text(text)
    log = read([Path("log.csv")])
    assert rows(log) == READ and log.malformed.is_empty()
    check_head([Path("log.csv")], Columns().roles)


@pytest.mark.parametrize("form", ["log.txt", "log.jsonl", "log.tsv"])
def test_comments_before_other_formats(folder: Path, form: str) -> None:
    texts = {
        "log.txt": "# user items\n\n# in order of time\nu 007 7\nv 007\n",
        "log.jsonl": "// from the shop\n"
        + "".join(
            f'{{"user_id": "{u}", "item_id": "{i}", "timestamp": {t}}}\n' for u, i, t in READ
        ),
        "log.tsv": "% a table\n" + cut(TABLE, "\t"),
    }
    Path(form).write_text(texts[form])
    log = read([Path(form)])
    assert log.frame.select("user", "item").rows() == [row[:2] for row in READ]
    assert log.malformed.is_empty() and log.timed == (form != "log.txt")


def test_lines_before_a_table_are_counted_and_keep_their_numbers(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Path("log.csv").write_text(f"# a\n\n# b\n{TABLE}u,9,x\n")
    with caplog.at_level(logging.INFO, "slmc.data"):
        log = read([Path("log.csv")])
    assert "log.csv: 2 lines before the table skipped" in caplog.messages
    assert log.malformed["line"].to_list() == [8]


def test_a_comment_longer_than_a_block_is_skipped(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slmc.data.files.BLOCK_BYTES", 16)
    Path("log.csv").write_text(f"# {'x' * 100}\n# b\n{TABLE}")
    assert rows(read([Path("log.csv")])) == READ


def test_ids_that_look_like_comments_are_rows(folder: Path) -> None:
    Path("log.csv").write_text("#1,a,5\n#2,a,6\n")
    columns = Columns(user="1", item="2", time="3")
    log = read([Path("log.csv")], columns=columns, header=False)
    assert rows(log) == [("#1", "a", 5), ("#2", "a", 6)]
    Path("log.csv").write_text(HEADER + "#1,a,5\n")
    assert rows(read([Path("log.csv")])) == [("#1", "a", 5)]
    Path("log.csv").write_text("#user_id,item_id,timestamp\n1,2,3\n")
    assert rows(read([Path("log.csv")], columns=Columns(user="#user_id"))) == [("1", "2", 3)]


def test_comments_before_a_table_without_a_header(folder: Path) -> None:
    Path("out.txt").write_text(f"% bip weighted\n% 3 4\n{cut(ROWS, ' ')}")
    columns = Columns(user="1", item="2", time="3")
    log = read([Path("out.txt")], columns=columns, header=False)
    assert rows(log) == READ and log.malformed.is_empty()


@pytest.mark.parametrize("time", ["timestamp", None])
def test_a_header_in_the_middle_is_a_malformed_row(folder: Path, time: str | None) -> None:
    Path("log.csv").write_text(f"{TABLE}\ufeff{TABLE}{TABLE}")
    log = read([Path("log.csv")], columns=Columns(time=time))
    assert log.frame.height == 9
    assert log.malformed.select("line", "fault", "reason").rows() == [
        (line, "header", "repeats the header, as where files were joined") for line in (5, 9)
    ]


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("20231114223000", SECOND),
        ("2023/11/14 22:30:00", SECOND),
        ("2023/11/14T22:30:00Z", SECOND),
        ("2023/11/14", SECOND - 81000),
        (f"{SECOND},0", SECOND),
        (f"{SECOND}000", None),
        ("20231399223000", None),
        ("14/11/2023 22:30", None),
        ("11/14/2023", None),
        ("14.11.2023", None),
        ("1,700,001,000", None),
        ("1.700.001.000", None),
    ],
)
def test_times_of_other_programs(folder: Path, text: str, time: int | None) -> None:
    Path("log.csv").write_text(cut(TABLE, ";") + f"w;1;{text}\n")
    log = read([Path("log.csv")])
    assert log.clock is not None and log.clock.unit == "s"
    found = log.frame.filter(pl.col("user").cast(pl.String) == "w")["time"].to_list()
    assert found == ([] if time is None else [time])
    assert log.malformed.height == (time is None)


def test_decimals_with_a_comma(folder: Path) -> None:
    Path("log.csv").write_text(f"user_id;item_id;timestamp\na;1;{SECOND},25\na;2;{SECOND},3\n")
    log = read([Path("log.csv")])
    assert log.frame["time"].to_list() == [SECOND * 100 + 25, SECOND * 100 + 30]
    assert log.clock is not None and log.clock.text(SECOND * 100) == "2023-11-14"


def test_dates_of_fourteen_digits_in_parquet(folder: Path) -> None:
    times = [20231114223000, 20231114223001, None]
    parquet({"user_id": ["a"] * 3, "item_id": ["x"] * 3, "timestamp": times})
    log = read([Path("log.parquet")])
    assert log.clock is not None and log.clock.unit == "date"
    assert log.frame["time"].to_list() == [SECOND, SECOND + 1]


def parquet(columns: Mapping[str, object]) -> None:
    base = {"user_id": ["a", "b"], "item_id": ["x", "y"], "timestamp": [SECOND, SECOND + 1]}
    pl.DataFrame(base | dict(columns)).write_parquet("log.parquet")


@pytest.mark.parametrize(
    ("items", "read_as"),
    [
        (pl.Series(["x", "y"], dtype=pl.Enum(["x", "y"])), ["x", "y"]),
        (pl.Series([b"x", b"\xc3\xa9"]), ["x", "é"]),
        (pl.Series(["1.00", "2.50"]).cast(pl.Decimal(10, 2)), ["1", "2.5"]),
        (pl.Series([2**64 - 1, 2], dtype=pl.UInt64), [str(2**64 - 1), "2"]),
        (pl.Series([" 007", "7 "]), ["007", "7"]),
        (pl.Series(["550e8400-e29b-41d4-a716-446655440000", "{B}"]), None),
    ],
)
def test_types_of_ids_in_parquet(folder: Path, items: pl.Series, read_as: list[str] | None) -> None:
    parquet({"item_id": items})
    found = read([Path("log.parquet")]).frame["item"].to_list()
    assert found == (items.to_list() if read_as is None else read_as)


def test_binary_that_is_no_text_is_refused(folder: Path) -> None:
    parquet({"item_id": pl.Series([b"x", b"\xff"])})
    with pytest.raises(DataError, match="whose bytes are not UTF-8 text"):
        read([Path("log.parquet")])


def test_times_with_a_zone_in_parquet(folder: Path) -> None:
    moments = pl.Series([datetime.fromtimestamp(SECOND + n, UTC) for n in range(2)])
    parquet({"timestamp": moments.dt.convert_time_zone("Europe/Berlin")})
    assert read([Path("log.parquet")]).frame["time"].to_list() == [SECOND, SECOND + 1]


@pytest.mark.parametrize(
    ("column", "what", "remedy"),
    [
        (
            [["x"], ["y"]], "has the type List(String), which cannot hold ids.",
            "Write one row per interaction, such as with explode of polars, pandas or Spark.",
        ),
        (
            [{"a": 1}, {"a": 2}], "has the type Struct({'a': Int64}), which cannot hold ids.",
            "Set columns.item to one of its fields, such as item_id.a.",
        ),
        (
            [None, None], "has the type Null, which cannot hold ids.",
            "Set columns.item to a column of texts or integers.",
        ),
    ],
)  # fmt: skip
def test_columns_that_hold_no_ids(folder: Path, column: object, what: str, remedy: str) -> None:
    parquet({"item_id": column})
    with pytest.raises(DataError) as caught:
        read([Path("log.parquet")])
    assert caught.value.what == f"Column 'item_id' of log.parquet {what}"
    assert caught.value.remedy == remedy


def test_a_parquet_file_without_rows(folder: Path) -> None:
    empty = pl.Series([], dtype=pl.String)
    times = pl.Series([], dtype=pl.Datetime("us"))
    parquet({"user_id": empty, "item_id": empty, "timestamp": times})
    with pytest.raises(DataError, match=r"^log\.parquet has no rows\."):
        read([Path("log.parquet")])


def test_nested_columns(folder: Path) -> None:
    columns = Columns(user="who.id.$oid", item="item", time="at.$date")
    users = [{"id": {"$oid": "a1"}}, {"id": {"$oid": "b2"}}]
    parquet({"who": users, "item": [1, 2], "at": [{"$date": "2023-11-14T22:30:00Z"}] * 2})
    log = read([Path("log.parquet")], columns=columns)
    assert rows(log) == [("a1", "1", SECOND), ("b2", "2", SECOND)]
    Path("log.jsonl").write_text(
        '{"who": {"id": {"$oid": "a1"}}, "item": 1, "at": {"$date": "2023-11-14T22:30:00Z"}}\n'
        '{"who.id.$oid": "b2", "item": 2, "at": {"$date": "2023-11-14T22:30:00Z"}}\n'
        '{"who": {"id": 7}, "item": 2, "at": {"$date": "2023-11-14T22:30:00Z"}}\n'
    )
    log = read([Path("log.jsonl")], columns=columns)
    assert rows(log) == [("a1", "1", SECOND), ("b2", "2", SECOND)]
    assert log.malformed["reason"].to_list() == ["who.id.$oid is null"]
    for name in ("log.parquet", "log.jsonl"):
        with pytest.raises(DataError, match=r"has no column 'who\.name'; it has "):
            read([Path(name)], columns=Columns(user="who.name", item="item", time="at.$date"))


def test_gzip_under_any_name(folder: Path) -> None:
    packed = gzip.compress(TABLE.encode()) + gzip.compress(ROWS.encode())  # as `cat a.gz b.gz`
    Path("log.csv").write_bytes(packed)
    assert rows(read([Path("log.csv")])) == READ * 2


def test_one_user_only(folder: Path) -> None:
    Path("log.csv").write_text(HEADER + f"u,1,{SECOND}\nu,2,{SECOND}\n")
    with pytest.raises(DataError, match=r"log\.csv has only one user \(u\)") as caught:
        prepare(PrepareConfig(source="log.csv", core=1), {}, folder / "out")
    assert caught.value.remedy == "Check columns.user, or name a log with more users."
    assert not (folder / "out").exists()


def test_text_times_in_several_row_groups(folder: Path) -> None:
    """Polars panicked where only a later row group had times that cannot be read."""
    times = ["1700001004", "1700001000", "-", "-", "1700001003"]
    frame = pl.DataFrame({"user_id": list("aabbc"), "item_id": list("xyxyx"), "timestamp": times})
    frame.write_parquet("log.parquet", row_group_size=2)
    log = read([Path("log.parquet")])
    assert log.frame.height == 3
    assert (
        log.malformed["reason"].to_list()
        == ["timestamp is -, neither a number nor an ISO date"] * 2
    )
