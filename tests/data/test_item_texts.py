import json
import logging
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from slmc.data.config import ItemTable, PrepareConfig
from slmc.data.dataset import Dataset
from slmc.data.item_texts import cleaned, cut, read_texts, text_of, texts_for
from slmc.data.prepare import prepare
from slmc.errors import DataError, UsageError


def table(file: Path | str = "items.csv", **settings: object) -> ItemTable:
    return ItemTable.model_validate({"source": str(file), "item": "item", **settings})


def texts(file: Path, **settings: object) -> dict[str, str | None]:
    frame = read_texts([file], table(file, **settings))
    return dict(frame.select("item", "text").iter_rows())


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  two\n\twords ", "two words"),
        ("<p>Soft <b>soap</b></p>", "Soft soap"),
        ("Salt &amp; Pepper&nbsp;&#39;n more", "Salt & Pepper 'n more"),
        ("<!-- hidden --> seen", "seen"),
        ("3 < 5 and 7 > 2", "3 < 5 and 7 > 2"),
        ("💄 Rouge 💋", "💄 Rouge 💋"),
        ("<br/>", ""),
    ],
)
def test_markup_and_white_space_go(raw: str, clean: str) -> None:
    assert cleaned(raw) == clean


@given(st.text(max_size=80), st.integers(1, 40))
def test_a_cut_text_is_a_beginning_of_whole_words(text: str, most: int) -> None:
    text = cleaned(text)
    if len(text) <= most:
        return
    short = cut(text, most)
    assert 0 < len(short) <= most and text.startswith(short)
    assert text[len(short)] == " " or " " not in text[: most + 1].strip()


def test_columns_are_joined_in_their_order_and_empty_ones_left_out() -> None:
    config = table(columns=("title", "brand", "price"))
    values: dict[str, str | None] = {"title": "Red <i>Nail</i> Lacquer", "brand": " ", "price": "7"}
    assert text_of(values, config) == "Red Nail Lacquer. 7"
    assert text_of(dict.fromkeys(config.columns), config) is None


def test_a_template() -> None:
    config = table(columns=("title", "brand"), template="{title} by {brand} {{x}}")
    assert text_of({"title": "Soap", "brand": "Acme"}, config) == "Soap by Acme {x}"


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{colour}", "template names {colour}, which is not in columns"),
        ("{title.__class__}", "template names {title.__class__}, which is not in columns"),
        ("no column", "template names no column in braces"),
        ("{title", "template: expected '}' before end of string"),
    ],
)
def test_a_template_that_cannot_be_filled(template: str, why: str) -> None:
    with pytest.raises(ValidationError) as caught:
        table(template=template)
    assert why in str(caught.value)


def test_a_long_description_is_cut(tmp_path: Path) -> None:
    file = tmp_path / "items.csv"
    file.write_text("item,title\n1," + "word " * 20_000 + "\n")
    (text,) = texts(file, max_chars=99).values()
    assert text == " ".join(["word"] * 20)[:99].strip()


def test_lists_of_json_lines_and_of_parquet_are_joined(tmp_path: Path) -> None:
    rows = [
        {"item": 1, "title": "Soap", "category": ["Beauty", "Bath"], "price": 2.5},
        {"item": 2, "title": None, "category": [], "price": None},
    ]
    lines = tmp_path / "items.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    parquet = tmp_path / "items.parquet"
    pl.DataFrame(rows).write_parquet(parquet)
    expected = {"1": "Soap. Beauty, Bath. 2.5", "2": None}
    columns = ("title", "category", "price")
    assert texts(lines, columns=columns) == texts(parquet, columns=columns) == expected


def test_columns_without_a_header_are_numbers(tmp_path: Path) -> None:
    file = tmp_path / "items.csv"
    file.write_text("1,Soap,Acme\n2,Cream,Acme\n")
    config = ItemTable.model_validate(
        {"source": str(file), "header": False, "item": 1, "columns": [3, 2]}
    )
    frame = read_texts([file], config)
    assert frame["text"].to_list() == ["Acme. Soap", "Acme. Cream"]
    with pytest.raises(ValidationError, match=r"items\.columns is title"):
        ItemTable.model_validate({"source": str(file), "header": False, "item": 1})


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    file = tmp_path / "items.csv"
    file.write_text("item,name\n1,Soap\n")
    with pytest.raises(DataError) as caught:
        texts(file)
    assert caught.value.what == f"{file} has no column 'title'; it has 'item', 'name'."
    assert caught.value.remedy == "Set items.columns to one of them, perhaps 'item'."


def test_titles_are_cleaned_too(tmp_path: Path) -> None:
    file = tmp_path / "items.csv"
    file.write_text("item,title,brand\n1,<b>Soap</b> &amp; more,Acme\n2,,Acme\n")
    frame = read_texts([file], table(file, columns=("brand", "title")))
    assert frame["title"].to_list() == ["Soap & more", None]
    assert frame["text"].to_list() == ["Acme. Soap & more", "Acme"]


def test_ids_that_do_not_match_are_refused() -> None:
    known = pl.DataFrame({"item": ["x1", "x2"], "title": ["a", "b"], "text": ["a", "b"]})
    with pytest.raises(DataError) as caught:
        texts_for(pl.Series(["1", "2", "x1"]), known, "items.csv")
    assert caught.value.what == (
        "items.csv has a text for 33.3% of the 3 items of the log; the ids of the log are like "
        "'1', '2', those of the table like 'x1', 'x2'."
    )


def test_equal_texts_are_refused() -> None:
    known = pl.DataFrame({"item": ["1", "2"], "title": ["a", "a"], "text": ["a", "a"]})
    with pytest.raises(DataError, match="all items have the same text, 'a'"):
        texts_for(pl.Series(["1", "2"]), known, "items.csv")


def test_texts_are_part_of_the_dataset(
    log_csv: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = prepare(PrepareConfig(source=str(log_csv), core=1), {}, tmp_path / "plain")
    items = pl.read_parquet(plain.file("items.parquet"))["item"].to_list()
    file = tmp_path / "items.csv"
    file.write_text("item,title\n" + "".join(f"{item},Film {item}\n" for item in items[1:]))
    caplog.set_level(logging.INFO, "slmc.data")
    config = PrepareConfig(source=str(log_csv), core=1, items=table(file))
    made = prepare(config, {}, tmp_path / "data")
    assert Dataset.texts(made) == [None, *(f"Film {item}" for item in items[1:])]
    titles = pl.read_parquet(made.file("items.parquet"))["title"].to_list()
    assert titles == [None, *(f"Film {item}" for item in items[1:])]
    assert made.manifest.metrics["texts"] == len(items) - 1
    assert f"{len(items) - 1} of {len(items)} items" in caplog.text
    with pytest.raises(UsageError, match="has no texts of items"):
        Dataset.texts(plain)
