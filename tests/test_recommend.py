"""Answers of an engine made by hand."""

import logging
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hand_engine import by_hand

from slmc.artefact import Artefact
from slmc.errors import ArtefactError, UsageError
from slmc.export.runtime.engine import Engine
from slmc.recommend import Recommendation, recommend


@pytest.fixture
def engine(tmp_path: Path) -> Artefact:
    return by_hand(tmp_path, top_k=3)


def test_known_answer(engine: Artefact) -> None:
    assert recommend(engine, ["b", "a"], k=3) == [
        Recommendation(1, "a", "Alien", 9.0),
        Recommendation(2, "b", None, 3.0),
        Recommendation(3, "c", "Überfahrt", 2.0),
    ]
    assert [r.item for r in recommend(engine.path, ["a", "b"], k=2)] == ["d", "c"]
    assert [r.item for r in recommend(Engine.open(engine), ["c"], k=3)] == ["a", "b", "d"]


def test_the_newest_items_of_a_long_history_count(engine: Artefact) -> None:
    assert [r.item for r in recommend(engine, [*"aaaab"], k=1)] == ["d"]


def test_unknown_ids_are_skipped_and_named(
    engine: Artefact, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "slmc.recommend"):
        found = recommend(engine, ["x", "b", "a", "y"], k=3)
    assert caplog.messages == ["skipped ids that are not in the vocabulary: x, y"]
    assert found == recommend(engine, ["b", "a"], k=3)


@pytest.mark.parametrize(("ids", "told"), [(["x", "y"], "x, y"), ([], "the list is empty")])
@pytest.mark.parametrize("exclude_seen", [False, True])
def test_without_a_known_id_the_most_popular_items_are_returned(
    ids: list[str],
    told: str,
    exclude_seen: bool,
    engine: Artefact,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "slmc.recommend"):
        found = recommend(engine, ids, k=3, exclude_seen=exclude_seen)
    assert found == [
        Recommendation(2, "b", None, 9.0),
        Recommendation(1, "a", "Alien", 5.0),
        Recommendation(3, "c", "Überfahrt", 5.0),
    ]
    assert caplog.messages == [
        f"none of the ids is in the vocabulary: {told}; these are the most popular items. "
        "Ids of the log are, for example, a, b, c"
    ]


@pytest.mark.parametrize("damage", ["missing", "not Parquet", "no counts"])
def test_an_engine_without_counts_says_so(tmp_path: Path, damage: str) -> None:
    folder = by_hand(tmp_path, top_k=3).path
    file = folder / "items.parquet"
    if damage == "missing":
        file.unlink()
    elif damage == "not Parquet":
        file.write_bytes(b"PAR1")
    else:
        pl.DataFrame({"row": [1], "item": ["a"]}).write_parquet(file)
    with pytest.raises(ArtefactError) as caught:
        recommend(Engine(folder), ["x"], k=2)
    assert str(caught.value) == f"{file}: the training interactions of each item cannot be read."
    assert caught.value.remedy == "Run `slmc export` again."


def test_items_of_the_history_are_left_out_if_asked(
    engine: Artefact, caplog: pytest.LogCaptureFixture
) -> None:
    found = recommend(engine, ["b", "a"], k=1, exclude_seen=True)
    assert [r.item for r in found] == ["c"]
    assert caplog.messages == []
    with caplog.at_level(logging.WARNING, "slmc.recommend"):
        found = recommend(engine, ["b", "a"], k=3, exclude_seen=True)
    assert [r.item for r in found] == ["c", "d"]
    assert caplog.messages == ["only 2 of 3 items remain without those of the history"]


@pytest.mark.parametrize("k", [0, 4])
def test_k_out_of_range(k: int, engine: Artefact) -> None:
    with pytest.raises(UsageError) as caught:
        recommend(engine, ["a"], k=k)
    assert str(caught.value) == f"k: {k} items were requested; the engine returns 1 to 3."


def test_a_small_catalogue_is_given_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = recommend(by_hand(tmp_path, top_k=4), ["b"], k=10)
    assert [r.item for r in found] == ["d", "c", "b", "a"]
    assert caplog.messages == []


def test_an_edited_engine_is_refused(engine: Artefact) -> None:
    file = engine.path / "items.jsonl"
    file.write_text(file.read_text().replace("Alien", "Aliens"))
    with pytest.raises(ArtefactError) as caught:
        recommend(engine.path, ["a"])
    assert str(caught.value) == f"{file} has changed since it was sealed."


def test_a_path_may_be_text_and_ids_whole_numbers(
    engine: Artefact, caplog: pytest.LogCaptureFixture
) -> None:
    assert recommend(str(engine.path), ["a"], 3) == recommend(engine, ["a"], 3)
    with caplog.at_level(logging.WARNING, "slmc.recommend"):
        recommend(str(engine.path), [1, np.int64(2)], 3)  # type: ignore[list-item]
    assert caplog.messages[0].startswith("none of the ids is in the vocabulary: 1, 2; ")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"engine": None}, "engine: expected a path or an engine, not NoneType."),
        ({"ids": "a"}, "history: expected a list of ids, not 'a'."),
        ({"ids": 7}, "history: expected a list of ids, not 7."),
        ({"ids": ["a", 7.0]}, "history: 7.0 has type float."),
        ({"ids": [None]}, "history: None has type NoneType."),
        ({"k": "3"}, "k: expected a whole number, not '3'."),
        ({"k": True}, "k: expected a whole number, not True."),
    ],
)
def test_arguments_of_another_kind(
    engine: Artefact, arguments: dict[str, object], what: str
) -> None:
    with pytest.raises(UsageError) as caught:
        recommend(**{"engine": engine, "ids": ["a"], **arguments})  # type: ignore[arg-type]
    assert caught.value.what == what
    assert caught.value.__notes__ == [caught.value.remedy]


def test_the_module_says_that_it_is_one(engine: Artefact) -> None:
    import slmc.recommend as module

    with pytest.raises(UsageError) as caught:
        module(engine.path, ["a"])  # type: ignore[operator]
    assert caught.value.what == "slmc.recommend is a module and cannot be called."
