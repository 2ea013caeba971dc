"""Logs of spreadsheets, warehouses and clusters that would be read wrongly without a word."""

import logging
from pathlib import Path

import polars as pl
import pytest

from slmc.data.config import Columns, PrepareConfig, TemporalSplit, Titles
from slmc.data.prepare import build, fetch_log
from slmc.data.readers import read, read_titles, refuse_malformed
from slmc.data.sources import digest, fetch
from slmc.errors import DataError

SECOND = 1_700_001_000  # 2023-11-14T22:30:00Z
HEADER = "user_id,item_id,timestamp"


def csv(rows: list[str], name: str = "log.csv", header: str = HEADER) -> Path:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text("\n".join([header, *rows]) + "\n")
    return Path(name)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]


@pytest.mark.parametrize(
    ("item", "kept"),
    [
        ("4.00638E+12", False), ("4,00638E+12", False), ("1.23457e+06", False),
        ("1.2345678E7", True), ("1.234567e+06", True), ("1e+05", True), ("4.5E12X", True),
    ],
)  # fmt: skip
def test_ids_that_a_spreadsheet_rounded_are_malformed(folder: Path, item: str, kept: bool) -> None:
    csv([f"u;{item};{SECOND}", f"v;7;{SECOND}"], header=HEADER.replace(",", ";"))
    log = read([Path("log.csv")])
    assert (item in log.frame["item"].to_list()) == kept
    reason = (
        f"item_id is {item}: the last digits are lost, as when a spreadsheet saves a long number; "
        "export the column as text"
    )
    assert log.malformed["reason"].to_list() == [] if kept else [reason]


def test_a_round_number_among_rounded_ids_is_rounded_too(folder: Path) -> None:
    log = read([csv([f"u,4E+12,{SECOND}", f"u,4.00638E+12,{SECOND}", f"v,7,{SECOND}"])])
    assert log.frame["item"].to_list() == ["7"]


@pytest.mark.parametrize(
    ("text", "kept"), [("1.70000E+12", False), ("1.7e+09", False), ("1.700001E9", True)]
)
def test_times_that_a_spreadsheet_rounded_are_malformed(
    folder: Path, text: str, kept: bool
) -> None:
    log = read([csv([f"u,1,{text}", f"v,2,{SECOND}"])])
    assert (log.frame.height == 2) == kept
    reason = f"timestamp is {text}: its last digits are lost, as when a spreadsheet saves it"
    assert log.malformed["reason"].to_list() == ([] if kept else [reason])


@pytest.mark.parametrize("form", ["{1:02}{0:02}2023", "{0:02}{1:02}2023", "{1:02}.{0:02}"])
def test_days_that_do_not_sort_are_refused(folder: Path, form: str) -> None:
    rows = [f"u{n % 3},{n},{form.format(n % 12 + 1, n + 5)}" for n in range(12)]
    with pytest.raises(DataError, match="which do not sort by time") as caught:
        read([csv(rows)])
    assert caught.value.remedy == (
        "Write them as 2023-11-14, or set columns.time_unit: none if they are numbers that only "
        "order the rows."
    )
    assert read([Path("log.csv")], columns=Columns(time_unit="none")).frame.height == 12
    csv([*rows, "u,1,14"])  # a number that is no such day
    assert read([Path("log.csv")]).frame.height == 13


def test_days_without_dashes_order_rows_and_the_split_says_what_to_do(folder: Path) -> None:
    csv([f"u{n % 3},{n},202311{n + 1}" for n in range(10, 25)])
    split = TemporalSplit(by="time", valid="2023-11-14", test="2023-11-18")  # type: ignore[arg-type]
    config = PrepareConfig(source="log.csv", core=1, split=split)
    with pytest.raises(DataError, match="numbers without a unit") as caught:
        build(config, fetch_log(config))
    assert caught.value.remedy == (
        "They look like days (such as 20231114): write them as 2023-11-14, or split: "
        "{by: leave-one-out}."
    )


def test_hours_without_dashes_give_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read([csv([f"u{n % 3},{n},20231114{n}" for n in range(10, 23)])])
    assert warnings(caplog)[0].startswith("timestamp: all times look like hours")


def test_minutes_without_dashes_are_dates(folder: Path) -> None:
    log = read([csv(["u,1,202311142230", f"v,2,{SECOND}"])])
    assert log.frame["time"].to_list() == [SECOND, SECOND]


@pytest.mark.parametrize(
    ("ids", "how"),
    [
        (["7", "007"], "1 id is written with and without zeros, such as 7 and 007"),
        (["7", "7\u200b"], r"such as '7' and '7\u200b'"),
        (["caf\u00e9", "cafe\u0301"], r"such as 'caf\xe9' and 'cafe\u0301'"),
        (["bob@x.com", "Bob@x.com"], "1 id is written in two cases, such as bob@x.com and Bob"),
    ],
)
def test_spellings_of_one_id_are_warned_of(
    folder: Path, caplog: pytest.LogCaptureFixture, ids: list[str], how: str
) -> None:
    log = read([csv([f"{one},1,{SECOND}" for one in ids])])
    assert log.frame["user"].to_list() == ids
    (warning,) = warnings(caplog)
    assert how in warning and warning.startswith("user_id: ")


@pytest.mark.parametrize(("mark", "written"), [('="…"', '="00{}"'), ("'…'", "'{}'")])
def test_marks_of_a_spreadsheet_or_a_database_are_warned_of(
    folder: Path, caplog: pytest.LogCaptureFixture, mark: str, written: str
) -> None:
    ids = [written.format(number) for number in range(4)]
    log = read([csv([f"{one},1,{SECOND}" for one in [*ids, "9"]])])
    assert log.frame["user"].to_list() == [*ids, "9"]
    assert warnings(caplog) == [
        f"user_id: 4 of 5 ids are written as {mark}, such as {ids[0]}; the marks count as part of "
        "the id. Leave them out if they are not"
    ]


def test_ids_of_random_letters_are_not_spellings(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ids = ["aBc", "abc", *(f"x{number}" for number in range(400))]
    read([csv([f"{one},1,{SECOND}" for one in ids])])
    assert warnings(caplog) == []


def test_a_user_who_stands_for_all_guests_is_warned_of(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read([csv([f"{u},{n},{SECOND + n}" for u in range(1, 31) for n in range(4 if u > 1 else 60)])])
    assert warnings(caplog) == [
        "user_id 1 has 60 of 176 rows (34 %), 15 times the mean of the others: if it stands for "
        "guests without an id, or for a program, leave these rows out"
    ]


def test_one_item_cannot_be_ranked(folder: Path) -> None:
    config = PrepareConfig(source=str(csv([f"u{n},9,{SECOND}" for n in range(5)])), core=1)
    with pytest.raises(DataError, match=r"there is only one item \(9\), so there is nothing"):
        build(config, fetch_log(config))


def test_quoted_tsv_is_read(folder: Path) -> None:
    Path("log.tsv").write_text(f'"user_id"\t"item_id"\t"timestamp"\n"u 1"\t"7"\t{SECOND}\n')
    assert read([Path("log.tsv")]).frame.row(0)[:2] == ("u 1", "7")


@pytest.mark.parametrize(
    ("name", "text", "what", "remedy"),
    [
        ("log.json", "{u'user_id': u'1', 'item_id': 3}\n",
         "log.json holds Python dictionaries", "ast.literal_eval"),
        ("log.jsonl", "[1, 3, 1700001000]\n[2, 3, 1700001000]\n",
         "log.jsonl is a JSON array on each line", "jq -c '{a0: .[0], a1: .[1], a2: .[2]}'"),
        ("log.json", '{"user_id": 1}{"user_id": 2}\n',
         "log.json is JSON objects without line ends between them", "jq -c '.' FILE"),
        ("log.csv", "version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
         "log.csv is a pointer of Git LFS", "git lfs pull"),
        ("log.csv", "<!DOCTYPE html>\n<html></html>\n", "log.csv is a web page", "Download"),
    ],
)  # fmt: skip
def test_texts_that_are_no_log(folder: Path, name: str, text: str, what: str, remedy: str) -> None:
    Path(name).write_text(text)
    with pytest.raises(DataError) as caught:
        read([Path(name)])
    assert what in caught.value.what and remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("rows", "remedy"),
    [
        ([f"{n},1,14.11.2023 22:30" for n in range(5)], "Write times as numbers or as dates"),
        ([f"{n},1,{SECOND},x" for n in range(5)], "Quote fields that contain the separator"),
    ],
)
def test_the_remedy_fits_what_is_wrong_with_most_rows(
    folder: Path, rows: list[str], remedy: str
) -> None:
    with pytest.raises(DataError) as caught:
        refuse_malformed(read([csv(rows)]), "1%")
    assert caught.value.remedy.startswith(remedy)


def test_the_member_of_an_object_is_named(folder: Path) -> None:
    Path("log.jsonl").write_text('{"user_id": {"$oid": "a"}, "item_id": 1, "timestamp": 1}\n')
    assert read([Path("log.jsonl")]).malformed["reason"].to_list() == [
        "user_id is an object; name its member, such as user_id.$oid"
    ]


def test_columns_in_the_names_of_folders(folder: Path) -> None:
    for day in ("2023-11-14", "2023-11-15"):
        csv([f"u,{day[-2:]}"], f"csv/timestamp={day}/part-0.csv", "user_id,item_id")
    log = read(fetch("csv/*/*.csv"))
    assert log.frame["item"].to_list() == ["14", "15"]
    assert log.clock is not None and log.clock.unit == "date"
    assert log.frame["time"].diff()[1] == 86400
    for user in ("a%20b", "__HIVE_DEFAULT_PARTITION__"):
        file = Path(f"pq/user_id={user}/part-0.parquet")
        file.parent.mkdir(parents=True)
        pl.DataFrame({"item_id": [1, 2], "timestamp": [SECOND, SECOND + 1]}).write_parquet(file)
    log = read(fetch("pq/**/*.parquet"))
    assert log.frame["user"].to_list() == ["a b", "a b"]
    assert log.malformed["reason"].to_list() == ["user_id is null"] * 2
    (first, second) = fetch("pq/**/*.parquet")
    assert digest([first, second]) != digest([first, first])


def test_a_column_of_the_file_goes_before_one_of_a_folder(folder: Path) -> None:
    csv([f"u,1,{SECOND}"], "timestamp=2020-01-01/log.csv")
    assert read(fetch("*/*.csv")).frame["time"].to_list() == [SECOND]


def test_empty_files_of_a_glob_are_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    csv([f"u,1,{SECOND}"], "d/part-0.csv")
    Path("d/_SUCCESS").touch()
    assert fetch("d/*") == [Path("d/part-0.csv")]
    assert warnings(caplog) == ["d/_SUCCESS: empty, left out"]
    with pytest.raises(DataError) as caught:
        fetch("d")
    assert caught.value.remedy == "Name its files, for instance d/*.csv."


def test_a_part_without_rows_has_any_type(folder: Path) -> None:
    columns = {"user_id": [1, 2], "item_id": [1, 2], "timestamp": [SECOND, SECOND]}
    pl.DataFrame(columns).write_parquet("a.parquet")
    pl.DataFrame({name: [] for name in columns}).write_parquet("b.parquet")
    assert read(fetch("*.parquet")).frame.height == 2


def test_titles_of_other_ids_are_shown(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    csv(["001,A", "002,B", "003,C,D"], "items.csv", "item_id,title")
    csv([f"{u},{i},{SECOND + i}" for u in "ab" for i in (1, 2)])
    titles = Titles(source="items.csv")
    assert read_titles([Path("items.csv")], titles).height == 2
    config = PrepareConfig(source="log.csv", core=1, titles=titles)
    build(config, fetch_log(config))
    assert (
        "No item of the log has a title in items.csv; its ids are like '001', '002', those of the "
        "log like '1', '2'" in warnings(caplog)
    )
    assert (
        "items.csv: 1 malformed rows were skipped, with their titles; the first: line 4: 3 fields, "
        "the header has 2" in warnings(caplog)
    )
