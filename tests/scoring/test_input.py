"""What ``slmc score`` reads: formats, columns, types, rows that are malformed or unknown."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from score_inputs import as_lists, interactions, lists, write

from slmc.artefact import Artefact
from slmc.errors import DataError
from slmc.scoring import grouping
from slmc.scoring.score import score
from slmc.scoring.settings import Settings, hashes
from slmc.serving.frames import Columns
from slmc.serving.opening import load

Run = Callable[..., pl.DataFrame]


@pytest.mark.parametrize("name", ["h.parquet", "h.jsonl", "h.jsonl.gz", "h.csv", "h.tsv", "h.txt"])
def test_a_row_per_user(
    name: str, run: Run, expected: dict[str, list[int]], tmp_path: Path
) -> None:
    write(lists(), tmp_path / name)
    answer = run(name, k=5)
    assert as_lists(answer) == expected
    assert answer[answer.columns[0]].to_list() == [*"abcde"]  # in the order of the input
    assert answer["by"].to_list() == ["model", "model", "popular", "model", "popular"]
    whole = name in ("h.parquet", "h.jsonl", "h.jsonl.gz")
    assert answer.schema["items"] == pl.List(pl.Int64 if whole else pl.String)


@pytest.mark.parametrize("name", ["log.parquet", "log.jsonl", "log.csv", "log.tsv"])
@pytest.mark.parametrize("in_memory", [1 << 22, 2])
def test_a_row_per_interaction(
    name: str,
    in_memory: int,
    run: Run,
    expected: dict[str, list[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grouping, "IN_MEMORY", in_memory)
    write(interactions(), tmp_path / name)
    answer = run(name, k=5)
    assert as_lists(answer) == {user: expected[user] for user in "abde"}
    order = interactions()["user_id"].unique(maintain_order=True)  # of their first rows
    if in_memory == 2:
        order = order.gather(np.argsort((hashes(order) >> 16) % 64, kind="stable"))
    assert answer["user_id"].to_list() == order.to_list()
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


def test_a_large_input_is_split_in_the_cache_for_standard_output(
    engine: Artefact,
    expected: dict[str, list[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grouping, "IN_MEMORY", 2)
    monkeypatch.setenv("SLMC_CACHE", str(tmp_path / "cache"))
    write(interactions(), tmp_path / "log.csv")
    texts: list[str] = []
    score(engine, Settings(str(tmp_path / "log.csv"), "-", k=5), texts.append)
    lines = [json.loads(line) for text in texts for line in text.splitlines()]
    assert {one["user_id"]: [int(id) for id in one["items"]] for one in lines} == {
        user: expected[user] for user in "abde"
    }
    assert [*(tmp_path / "cache/scratch").iterdir()] == []


def test_times_of_every_kind_order_the_rows(run: Run, tmp_path: Path, engine: Artefact) -> None:
    best = load(engine).recommend([101, 102], 3, False).ids
    for times in (["2024-01-02", "2024-01-01"], ["1.5", "1.25"], ["10", "9"]):
        frame = pl.DataFrame({"user": ["a"] * 2, "item": [102, 101], "time": times})
        frame.write_csv(tmp_path / "log.csv")
        assert as_lists(run("log.csv", k=3)) == {"a": best}


def test_users_and_items_keep_their_types(run: Run, tmp_path: Path) -> None:
    for name in ("h.parquet", "h.jsonl"):
        write(lists([1, 2, 3, 4, 2**60]), tmp_path / name)
        answer = run(name, k=2)
        assert answer.schema["user"] == pl.Int64
        assert answer["user"].to_list() == [1, 2, 3, 4, 2**60]


def test_lists_in_text_and_json_arrays(run: Run, expected: Any, tmp_path: Path) -> None:
    (tmp_path / "h.csv").write_text('user,items\na,101;102\nd,"105; 999"\n')
    answer = run("h.csv", k=5, items_separator=";")
    assert as_lists(answer) == {user: expected[user] for user in "ad"}
    (tmp_path / "h.csv").write_text('user,items\na,"[101, ""102""]"\nc,[]\nd,105 999\n')
    assert as_lists(run("h.csv", k=5)) == {user: expected[user] for user in "acd"}


def test_decimals_are_ids(run: Run, expected: Any, tmp_path: Path) -> None:
    items = pl.Series([101, 102], dtype=pl.Decimal(20, 2))
    pl.DataFrame({"user": ["a", "a"], "item": items}).write_parquet(tmp_path / "log.parquet")
    assert as_lists(run("log.parquet", k=5)) == {"a": expected["a"]}


def test_a_table_without_a_header(run: Run, expected: Any, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("102,a,9\n101,a,8\n")
    columns = Columns(user="2", item="1", time="3")
    assert as_lists(run("log.csv", k=5, header=False, columns=columns)) == {"a": expected["a"]}


def test_json_numbers_are_exact(run: Run, expected: Any, tmp_path: Path) -> None:
    (tmp_path / "h.jsonl").write_text('{"user": "a", "items": [101.0, 1.02e2]}\n')
    assert as_lists(run("h.jsonl", k=5)) == {"a": expected["a"]}


def test_unknown_items(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(lists(), tmp_path / "h.parquet")
    with caplog.at_level(logging.WARNING, "slmc"):
        run("h.parquet")
    assert caplog.messages == [
        "2 items of the histories are not in the vocabulary and were skipped, such as 999"
    ]
    for name in ("h.parquet", "log.csv"):
        write(interactions(), tmp_path / "log.csv")
        with pytest.raises(DataError) as caught:
            run(name, unknown="error")
        assert str(caught.value) == (f"{tmp_path / name}: ids that are not in the vocabulary: 999.")


MALFORMED = {
    "lists.jsonl": (
        '{"user": "a", "items": [101, 102]}\n{"user": "x", "items": 7}\n{"user": "y", "items"\n'
        '{"items": [101]}\n{"user": "z", "items": [101, {"a": 1}]}\n',
        ["line 2: items is not a list", "line 3: broken JSON", "line 4: user is empty",
         "line 5: items is an object"],
    ),
    "log.csv": (
        "user,item,time\na,101,1\nx,102\na,102,2\n,103,4\ny,,4\nz,104,noon\n",
        ["line 3: ", "line 5: user is empty", "line 6: item is empty",
         "line 7: time is noon, which is no time"],
    ),
}  # fmt: skip
"""Name -> content, of which user a is whole; what is wrong."""


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_rows(
    name: str, run: Run, expected: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content, reasons = MALFORMED[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as caught:
        run(name, k=5)
    assert str(caught.value).startswith(f"{tmp_path / name}, {reasons[0]}")
    assert caught.value.remedy == "Fix the row, or pass --malformed skip."
    with caplog.at_level(logging.WARNING, "slmc"):
        assert as_lists(run(name, k=5, malformed="skip")) == {"a": expected["a"]}
    assert len(caplog.messages) == len(reasons)
    for message, reason in zip(sorted(caplog.messages), sorted(reasons), strict=True):
        assert message.startswith(f"{tmp_path / name}, {reason}")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("x,y\n1,2\n", "no column of items is known by its name; it has 'x', 'y'."),
        ("user,y\na,b\n", "no column of items is known by its name; it has 'user', 'y'."),
        ("", "h.csv is empty."),
    ],
)
def test_input_that_cannot_be_read(content: str, what: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "h.csv").write_text(content)
    with pytest.raises(DataError) as caught:
        run("h.csv")
    assert str(caught.value).endswith(what)


def test_no_row_gives_an_empty_result(run: Run, tmp_path: Path) -> None:
    lists().clear().write_parquet(tmp_path / "h.parquet")
    answer = run("h.parquet")
    assert (answer.height, answer.columns) == (0, ["user", "items", "scores", "by"])
    (tmp_path / "h.csv").write_text("user,item\n")
    assert run("h.csv").height == 0
