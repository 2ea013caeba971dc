"""Recipes whose items have texts."""

from pathlib import Path

import pytest
from recipe_files import TEACH, faults, read

from slmc.recipe import load

ITEMS = "items: {source: items.csv, columns: [title, brand]}"
TOP = f"version: 1\nname: x\ndata: {{source: a.csv, {ITEMS}}}\nsteps:\n"
SASREC = "  - sasrec: {item_embeddings: hybrid, encoder: ./encoder}\n"


def test_sasrec_takes_texts(file: Path) -> None:
    made = read(file, TOP + SASREC + TEACH)
    config = made.step("sasrec").config.model_dump()
    assert (config["item_embeddings"], config["encoder"]) == ("hybrid", "./encoder")
    assert made.data.items is not None and made.data.items.columns == ("title", "brand")


def test_a_smoke_run_has_no_encoder(file: Path) -> None:
    config = read(file, TOP + SASREC + TEACH, smoke=True).step("sasrec").config.model_dump()
    assert (config["item_embeddings"], config["encoder"]) == ("ids", None)


def test_texts_that_the_data_does_not_have(file: Path) -> None:
    text = (TOP + SASREC + TEACH).replace(f", {ITEMS}", "")
    (fault,) = faults(file, text)
    assert fault == (
        "./r.yaml:5: sasrec.item_embeddings: hybrid: the data has no texts of items. "
        "Set data.items."
    )


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("data.items.template={colour}", "template names {colour}, which is not in columns"),
        ("data.items.columns=[title, title]", "columns names one column twice"),
        ("sasrec.encoder=", "item_embeddings: hybrid needs an encoder"),
    ],
)
def test_settings_that_cannot_be(file: Path, change: str, what: str) -> None:
    (fault,) = faults(file, TOP + SASREC + TEACH, change)
    assert what in fault


def test_items_of_another_log_are_left_out(file: Path) -> None:
    text = (TOP + TEACH).replace("{source: items.csv", "{of: a.csv, source: items.csv")
    assert read(file, text).data.items is not None
    assert read(file, text, "data.source=b.csv").data.items is None


def test_a_file_of_new_items_is_sought_in_the_folder_of_the_recipe(tmp_path: Path) -> None:
    folder = tmp_path / "sub"
    folder.mkdir()
    text = TOP + SASREC + TEACH + "  - export: {items: new.csv}\n"
    (folder / "r.yaml").write_text(text)
    config = load(str(folder / "r.yaml")).step("export").config.model_dump()
    assert Path(config["items"]) == folder / "new.csv"
