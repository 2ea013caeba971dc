"""What ``slmc score`` writes, and where."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pytest
from score_inputs import as_lists, lists, write

from slmc.artefact import Artefact
from slmc.errors import UsageError
from slmc.scoring.score import score
from slmc.scoring.settings import Settings

Run = Callable[..., pl.DataFrame]


def test_csv_has_a_row_per_item_and_jsonl_one_per_user(
    engine: Artefact, expected: Any, tmp_path: Path
) -> None:
    write(lists(), tmp_path / "h.jsonl")
    for name in ("top.csv", "top.jsonl"):
        score(engine, Settings(str(tmp_path / "h.jsonl"), str(tmp_path / name), k=5))
    table = pl.read_csv(tmp_path / "top.csv")
    assert table.columns == ["user", "rank", "item", "score", "by"]
    assert table["rank"].to_list() == [1, 2, 3, 4, 5] * 5
    found = table.group_by("user", maintain_order=True).agg("item")
    assert dict(found.iter_rows()) == expected
    lines = [json.loads(line) for line in (tmp_path / "top.jsonl").read_text().splitlines()]
    assert {one["user"]: one["items"] for one in lines} == expected
    assert lines[2] | {"items": 0} == {
        "user": "c", "items": 0, "scores": [9.0, 5.0, 5.0, 5.0, 5.0], "by": "popular",
    }  # fmt: skip


def test_an_existing_output_stays(run: Run, engine: Artefact, tmp_path: Path) -> None:
    write(lists(), tmp_path / "h.parquet")
    file = tmp_path / "top.parquet"
    file.write_text("mine")
    settings = Settings(str(tmp_path / "h.parquet"), str(file))
    with pytest.raises(UsageError) as caught:
        score(engine, settings)
    assert str(caught.value) == f"{file} exists already; it was not changed."
    assert file.read_text() == "mine"
    score(engine, replace(settings, force=True))
    assert pl.read_parquet(file).height == 5


@pytest.mark.parametrize(
    ("output", "what"),
    [
        ("top.xlsx", "--output: the name {}/top.xlsx shows no format."),
        ("no/top.csv", "--output: the folder {}/no does not exist."),
    ],
)
def test_wrong_outputs(output: str, what: str, engine: Artefact, tmp_path: Path) -> None:
    write(lists(), tmp_path / "h.parquet")
    with pytest.raises(UsageError) as caught:
        score(engine, Settings(str(tmp_path / "h.parquet"), str(tmp_path / output)))
    assert str(caught.value) == what.format(tmp_path)


def test_remote_input_and_output(engine: Artefact, expected: Any) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/in/h.jsonl", lists().write_ndjson().encode())
    settings = Settings("memory://in/h.jsonl", "memory://out/top.parquet", k=5)
    score(engine, settings)
    with memory.open("/out/top.parquet", "rb") as stream:
        assert as_lists(pl.read_parquet(stream)) == expected
    with pytest.raises(UsageError) as caught:
        score(engine, settings)
    assert str(caught.value) == "memory://out/top.parquet exists already; it was not changed."
