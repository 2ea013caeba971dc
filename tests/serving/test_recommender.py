"""Models and engines recommend the same, and as a plain ranking of the scores in float64 does."""

import json
import logging
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pandas
import polars as pl
import pytest
import torch

import slmc
from slmc import artefact
from slmc.artefact import Artefact, sha256
from slmc.errors import DataError, UsageError
from slmc.model.loading import load_model
from slmc.serving.catalogue import Catalogue
from slmc.serving.opening import load

ITEMS = 40
ALL = range(101, 101 + ITEMS)
HISTORIES: list[list[int]] = [[101], [105, 139, 105], [*range(101, 141)], [*range(120, 132)]]
"""Short, with a repeat, the whole catalogue, and longer than the model reads."""
CLOSE = 1e-4
"""Float32 scores of about 1 in another order of summation."""


@pytest.fixture(scope="module", params=["model", "engine"])
def served(request: pytest.FixtureRequest) -> Any:
    return load(request.getfixturevalue(request.param))


@cache
def loaded(path: Path) -> Any:
    return load_model(artefact.load(path))


def ranked(
    model: Artefact, history: list[int], excluded: set[int], allowed: set[int]
) -> list[tuple[int, float]]:
    """Every allowed id with its score, best first, by a plain sort; ties by the smaller row."""
    module = loaded(model.path)
    rows = torch.tensor([[id - 100 for id in history[-6:]]])
    with torch.no_grad():
        user = module.user_vectors(rows).double()
        scores = (user @ module.item_vectors().double().T)[0].tolist()
    ids = [id for id in ALL if id in allowed and id not in excluded]
    return sorted(((id, scores[id - 100]) for id in ids), key=lambda one: (-one[1], one[0]))


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize(
    ("allow", "deny"), [(None, None), ([102, 104, 139, 111], None), (None, [102, 103]),
                        ([102, 104, 106], [104])],
)  # fmt: skip
def test_a_plain_ranking_gives_the_same(
    served: Any,
    model: Artefact,
    history: list[int],
    exclude_seen: bool,
    allow: list[int] | None,
    deny: list[int] | None,
) -> None:
    allowed = set(allow or ALL) - set(deny or ())
    expected = ranked(model, history, set(history) if exclude_seen else set(), allowed)[:10]
    best = served.recommend(history, 10, exclude_seen, allow, deny)
    assert best.ids == [id for id, _ in expected]
    np.testing.assert_allclose(best.scores, [score for _, score in expected], atol=CLOSE)
    assert best.by == "model"


def test_a_recommendation_has_row_id_title_and_score(served: Any) -> None:
    best = served.recommend([101, 102], k=5)
    assert [one.item for one in best] == best.ids and len(best) == 5
    assert [one.row + 100 for one in best] == best.ids
    assert best.titles == [f"Title {id - 100}" if id % 2 == 0 else None for id in best.ids]
    assert best[0].score == best.scores[0] == max(best.scores)
    assert best[1:3] == tuple(best)[1:3]


def test_ids_come_out_in_the_type_in_which_they_come_in(served: Any) -> None:
    numbers = served.recommend([101, np.int64(102)]).ids
    assert [type(id) for id in numbers] == [int] * 10
    assert served.recommend(["101", "102"]).ids == [str(id) for id in numbers]
    assert served.recommend(np.array([101, 102])).ids == numbers
    assert served.recommend(pl.Series([101, 102])).ids == numbers
    assert served.recommend(id for id in (101, 102)).ids == numbers
    assert served.recommend(["101", 102]).ids == [str(id) for id in numbers]


def test_uuids_are_ids(tmp_path: Path) -> None:
    ids = [UUID(int=one) for one in (7, 8)]
    texts = pl.Series([str(id) for id in ids])
    catalogue = Catalogue(texts, [None, None], tmp_path / "items.parquet")
    assert catalogue.has_kind(UUID) and not catalogue.has_kind(int)
    assert catalogue.rows(texts).tolist() == [1, 2]


@pytest.mark.parametrize("text", ["007", "+7", "7.0", "-0", "7 "])
def test_a_catalogue_of_other_texts_has_no_numbers(text: str, tmp_path: Path) -> None:
    items = pl.Series(["5", text])
    assert not Catalogue(items, [None, None], tmp_path).has_kind(int)


def test_unknown_ids_are_skipped_or_refused(served: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "slmc"):
        best = served.recommend([101, 999, 102])
    assert caplog.messages == ["skipped ids that are not in the vocabulary: 999"]
    assert best == served.recommend([101, 102])
    with pytest.raises(UsageError) as caught:
        served.recommend([101, 999], unknown="error")
    assert str(caught.value) == "ids that are not in the vocabulary: 999."


def test_an_empty_history_gets_the_popular_items(served: Any) -> None:
    best = served.recommend([], k=3)
    assert (best.ids, best.scores, best.by) == (["103", "101", "102"], [9, 5, 5], "popular")
    assert served.recommend([999], k=3).ids == [103, 101, 102]
    assert served.recommend([], k=2, deny=[103]).ids == ["101", "102"]
    assert len(served.recommend([], empty="skip")) == 0
    with pytest.raises(UsageError) as caught:
        served.recommend([999], empty="error")
    assert str(caught.value) == "none of the ids is in the vocabulary: 999."


def test_more_than_the_catalogue(model: Artefact, engine: Artefact) -> None:
    assert len(load(model).recommend([101], k=1000)) == ITEMS - 1
    with pytest.raises(UsageError) as caught:
        load(engine).recommend([101], k=13)
    assert str(caught.value) == "k: 13 items were requested; the engine returns 1 to 12."


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"history": "101"}, "history: expected a list of ids, not '101'."),
        ({"history": {101}}, "history: expected a list of ids, not a set."),
        ({"history": [101.0]}, "history: 101.0 has type float."),
        ({"history": [None]}, "history: None has type NoneType."),
        ({"k": 0}, "k: 0 items were requested"),
        ({"k": 2.5}, "k: expected a whole number, not 2.5."),
        ({"exclude_seen": "yes"}, "exclude_seen: expected True, False or None, not 'yes'."),
        ({"allow": [999]}, "no item remains: allow and deny exclude the whole catalogue."),
        ({"deny": ALL}, "no item remains: allow and deny exclude the whole catalogue."),
        ({"allow": 101}, "allow: expected a list of ids, not 101."),
        ({"empty": "none"}, "empty: expected 'popular' or 'skip' or 'error', not 'none'."),
        ({"unknown": "drop"}, "unknown: expected 'skip' or 'error', not 'drop'."),
    ],
)
def test_wrong_arguments(served: Any, arguments: dict[str, object], what: str) -> None:
    with pytest.raises(UsageError) as caught:
        served.recommend(**{"history": [101], **arguments})
    assert caught.value.what.startswith(what)


@pytest.mark.parametrize("repeats", [0.002, 0.2])
@pytest.mark.parametrize("kind", ["model", "engine"])
def test_exclude_seen_as_the_users_of_the_data(
    kind: str, repeats: float, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Also with a copy on a machine without the dataset."""
    sealed: Artefact = request.getfixturevalue(kind)
    copy = shutil.copytree(sealed.path, tmp_path / kind)
    preprocessor = json.loads((copy / "preprocessor.json").read_text())
    (copy / "preprocessor.json").write_text(json.dumps(preprocessor | {"valid_repeats": repeats}))
    manifest = json.loads((copy / "slmc.json").read_text())
    manifest["files"]["preprocessor.json"] = sha256(copy / "preprocessor.json")
    (copy / "slmc.json").write_text(json.dumps(manifest))
    served = load(copy)
    assert served.excludes_seen == (repeats == 0.002)
    history = [*range(101, 135)]
    expected = served.recommend(history, 10, served.excludes_seen)
    assert served.recommend(history, exclude_seen=None) == expected
    assert expected != served.recommend(history, 10, not served.excludes_seen)


def test_exclude_seen_of_an_artefact_without_the_share_of_repeats(
    served: Any, catalogue: Artefact, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError) as caught:
        served.recommend([101], exclude_seen=None)
    assert str(caught.value) == (
        f"exclude_seen: {served.artefact.path} does not say how often users repeat an item, and "
        "the dataset that it was made from is not in the cache."
    )
    monkeypatch.setattr("slmc.pipeline.find", lambda digest: catalogue)
    assert served.recommend([101], exclude_seen=None) == served.recommend([101], 10, False)
    vars(served).pop("excludes_seen")  # other tests have another dataset


def rows_of(frame: Any) -> list[dict[str, Any]]:
    """The rows of a frame of either library."""
    rows = frame.to_dicts() if isinstance(frame, pl.DataFrame) else frame.to_dict("records")
    return [{name: _plain(value) for name, value in row.items()} for row in rows]


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


LISTS = {"user_id": ["a", "b", "c"], "items": [[101, 102], [], [140, 999]]}
ROWS = {
    "user_id": ["a", "c", "a", "c"],
    "item_id": [102, 140, 101, 140],
    "timestamp": [2, 9, 1, 5],
}


@pytest.mark.parametrize("library", [pl.DataFrame, pl.LazyFrame, pandas.DataFrame])
def test_a_frame_of_lists(served: Any, library: Any) -> None:
    answer = served.recommend_batch(library(LISTS), k=4)
    assert isinstance(answer, pandas.DataFrame if library is pandas.DataFrame else pl.DataFrame)
    alone = [served.recommend(history, k=4) for history in ([101, 102], [999], [140])]
    by = ["model", "popular", "model"]
    for row, user, one, how in zip(rows_of(answer), "abc", alone, by, strict=True):
        scores = row.pop("scores")
        assert row == {"user_id": user, "items": one.ids, "titles": one.titles, "by": how}
        np.testing.assert_allclose(scores, one.scores, atol=CLOSE)


@pytest.mark.parametrize("library", [pl.DataFrame, pandas.DataFrame])
def test_a_frame_of_interactions_is_sorted_by_time(served: Any, library: Any) -> None:
    answer = rows_of(served.recommend_batch(library(ROWS), k=3))
    assert [row["user_id"] for row in answer] == ["a", "c"]
    assert [row["items"] for row in answer] == [
        served.recommend(history, k=3).ids for history in ([101, 102], [140, 140])
    ]
    timeless = {name: values for name, values in ROWS.items() if name != "timestamp"}
    unsorted = rows_of(served.recommend_batch(library(timeless), k=3))
    assert unsorted[0]["items"] == served.recommend([102, 101], k=3).ids


def test_other_columns_are_named_and_texts_stay_texts(served: Any) -> None:
    frame = pl.DataFrame({"who": [7, 8], "what": [["101"], ["102", "103"]]})
    answer = served.recommend_batch(frame, 2, user="who", items="what", empty="skip")
    assert answer.schema["who"] == pl.Int64 and answer.schema["items"] == pl.List(pl.String)
    assert answer["items"].to_list() == [
        served.recommend(history, 2).ids for history in (["101"], ["102", "103"])
    ]
    alone = served.recommend_batch(pl.DataFrame({"items": [[101], [102]]}), 1)
    assert alone["row"].to_list() == [1, 2]


def test_pandas_floats_and_missing_values(served: Any) -> None:
    frame = pandas.DataFrame({"user": ["a", "a"], "item": [101.0, 102.0]})
    assert (
        rows_of(served.recommend_batch(frame, 2))[0]["items"] == served.recommend([101, 102], 2).ids
    )
    nothing = pandas.DataFrame({"user": ["a", "b"], "items": [None, [101]]})
    assert [row["by"] for row in rows_of(served.recommend_batch(nothing, 2))] == [
        "popular",
        "model",
    ]


@pytest.mark.parametrize(
    ("frame", "what"),
    [
        ({"user": ["a"]}, "the frame: no column of items is known by its name; it has 'user'."),
        ({"x": ["a"], "item": [1]}, "the frame: no column of users is known by its name"),
        ({"user": [None], "item": [1]}, "the frame: column 'user' has no value in row 1."),
        ({"user": ["a"], "item": [1.5]}, "the frame: column 'item' has the type Float64"),
        ({"user": ["a"], "item": [1], "time": ["x"]}, "the frame: time of row 1 is 'x'"),
    ],
)
def test_frames_that_cannot_be_read(served: Any, frame: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError) as caught:
        served.recommend_batch(pl.DataFrame(frame))
    assert caught.value.what.startswith(what)


def test_what_is_no_frame(served: Any) -> None:
    with pytest.raises(UsageError) as caught:
        served.recommend_batch([[101]])
    assert str(caught.value) == "frame: expected a data frame of Polars or pandas, not list."


def test_vectors_of_users(served: Any, model: Artefact) -> None:
    module = load_model(model)
    vectors = served.embed([[101], ["102", 999, "103"], range(101, 120)])
    newest = [[1], [2, 3], [14, 15, 16, 17, 18, 19]]
    with torch.no_grad():
        expected = [module.user_vectors(torch.tensor([rows]))[0] for rows in newest]
    np.testing.assert_allclose(vectors, torch.stack(expected).numpy(), atol=CLOSE)
    with pytest.raises(UsageError) as caught:
        served.embed([[101], [], [999]])
    assert str(caught.value) == (
        "histories without a known id have no vector: number 1, 2, from 0."
    )


def test_the_catalogue(served: Any) -> None:
    items = served.items
    assert items.columns == ["row", "item", "title", "count"] and items.height == ITEMS
    assert items.row(2) == (3, "103", None, 9)


def test_an_engine_needs_no_torch(engine: Artefact) -> None:
    code = (
        "import sys, slmc\n"
        f"slmc.load({str(engine.path)!r}).recommend([101])\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_import_slmc_imports_nothing_else() -> None:
    code = "import sys; import slmc; print([m for m in sys.modules if m.startswith('slmc.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert {"load", "run", "evaluate"} <= set(dir(slmc))
    stub = (Path(slmc.__file__).parent / "__init__.pyi").read_text()
    assert {*re.findall(r" as (\w+)", stub), "__version__"} == set(slmc.__all__)
