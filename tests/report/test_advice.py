"""The first lines: what is said of SASRec, by how teacher and engine rank beside it."""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import polars as pl
import pytest
from rich.console import Console

from slmc.artefact import Artefact, draft
from slmc.config import Seeded
from slmc.evaluation.results import values
from slmc.pipeline import RunResult
from slmc.report import junit, markdown
from slmc.report.advice import advice
from slmc.report.html import page
from slmc.report.tables import user_tables
from slmc.report.terminal import cells, run_table
from slmc.report.view import View, view_of

RANKS = {"better": 0.4, "same": 1.0, "worse": 3.0}
"""What SASRec's ranks are multiplied with."""


def ranked(finished: RunResult, outcomes: dict[str, str], place: Path) -> RunResult:
    """The run, had its steps ranked so beside SASRec."""
    baselines = next(step.artefact for step in finished.steps if step.stage == "baselines")
    # Ranks of 2 to 5: twice as good and three times as bad stay among the first ten.
    table = pl.read_parquet(baselines.file("sasrec/test.parquet")).with_columns(
        rank=2.0 + pl.int_range(pl.len()) % 4
    )
    table = table.with_columns(rank_unseen=pl.col("rank"))
    evaluations = finished.evaluations | {"sasrec": report(table, place / "sasrec")}
    for step, outcome in outcomes.items():
        factor = RANKS[outcome]
        own = table.with_columns(rank=table["rank"] * factor, rank_unseen=table["rank"] * factor)
        evaluations[step] = report(own, place / f"{step}-{outcome}")
    return replace(finished, evaluations=evaluations)


def report(table: pl.DataFrame, out: Path) -> Artefact:
    with draft(out) as work:
        table.write_parquet(work.path / "per_user.parquet")
        return work.seal(kind="report", stage="evaluate", config=Seeded(), inputs={})


SHIP = (
    "A SASRec of 0.0 MB ranks {}. Consider shipping it instead: sasrec-engine, its engine, is `{}`."
)


@pytest.mark.parametrize(
    ("teacher", "engine", "said"),
    [
        ("better", "better", []),
        (
            "same",
            "worse",
            [
                "On this log the LLM (teach) does not rank better than SASRec: ",
                "The last engine of this run (export) ranks worse than SASRec: ",
                "better",
            ],
        ),
        (
            "worse",
            "same",
            [
                "On this log the LLM (teach) ranks worse than SASRec: ",
                "The last engine of this run (export) does not rank better than SASRec: ",
                "as well",
            ],
        ),
        (
            "better",
            "same",
            [
                "On this log the last engine of this run (export) does not rank better than "
                "SASRec: ",
                "The LLM (teach) ranks better than SASRec: ",
                "as well",
            ],
        ),
        (
            "same",
            "better",
            [
                "On this log the LLM (teach) does not rank better than SASRec: ",
                "The last engine of this run (export) ranks better than SASRec: ",
            ],
        ),
    ],
)
def test_what_is_said(
    teacher: str, engine: str, said: list[str], finished: RunResult, tmp_path: Path
) -> None:
    result = ranked(finished, {"teach": teacher, "export": engine}, tmp_path)
    lines = advice(result)
    assert len(lines) == len(said)
    for line, start in zip(lines[:2], said[:2], strict=True):
        assert line.startswith(start) and line.endswith("n = 80.")
    if len(said) == 3:
        folder = next(finished.run_dir.glob("*-sasrec-engine"))
        assert lines[2] == SHIP.format(said[2], folder)


def test_the_numbers_are_those_of_the_pair(finished: RunResult, tmp_path: Path) -> None:
    result = ranked(finished, {"teach": "worse", "export": "worse"}, tmp_path)
    tables = (user_tables(result, name)[0] for name in ("teach", "sasrec"))
    ours, theirs = (values(t, "ndcg@10", result.protocol).mean() for t in tables if t is not None)
    start = f"NDCG@10 {ours:.4f} against {theirs:.4f}, {100 * (ours / theirs - 1):+.1f} % ["
    assert start in advice(result)[0]


def test_without_an_engine_of_sasrec_the_command_that_makes_one_is_named(
    finished: RunResult, tmp_path: Path
) -> None:
    result = ranked(finished, {"teach": "same", "export": "same"}, tmp_path)
    result.steps = [step for step in finished.steps if step.id != "sasrec-engine"]
    line = advice(result)[-1]
    assert line.endswith(
        f"Consider shipping it instead: `slmc export {finished.run_dir / '02-sasrec'}`."
    )


def test_nothing_is_said_before_there_is_a_teacher_nor_of_a_smoke_run(
    finished: RunResult, tmp_path: Path
) -> None:
    assert advice(replace(finished, evaluations={})) == []
    result = ranked(finished, {"teach": "worse"}, tmp_path)
    assert advice(replace(result, recipe=replace(finished.recipe, smoke=True))) == []
    only_ce = finished.recipe.evaluate.model_copy(update={"metrics": ("ce",)})
    assert advice(replace(result, recipe=replace(finished.recipe, evaluate=only_ce))) == []


@pytest.fixture
def view(finished: RunResult) -> View:
    return replace(view_of(finished), advice=["First <line>.", "Second."])


def test_they_are_the_first_lines_of_every_form(view: View) -> None:
    console = Console(width=300, record=True, quiet=False, force_terminal=False)
    with console.capture() as captured:
        console.print(run_table(view))
    assert captured.get().splitlines()[:2] == ["First <line>.", "Second."]
    summary = markdown.summary(view).splitlines()
    assert summary[2:5] == ["**First \\<line\\>.**", "", "**Second.**"]
    header = page(view).split("<header>")[1]
    assert header.index("First &lt;line&gt;.") < header.index("Second.") < header.index(">A &lt;b")
    suite = ElementTree.fromstring(junit.suites(view).encode()).find("testsuite")
    assert suite is not None and suite.findtext("system-out") == "First <line>.\nSecond."


def test_a_command_is_code_in_markdown(view: View) -> None:
    said = replace(view, advice=["Ship *that*: `slmc export runs/a_b/02-sasrec`."])
    text = markdown.summary(said)
    assert "**Ship \\*that\\*: `slmc export runs/a_b/02-sasrec`.**" in text


def improving(finished: RunResult, **metrics: object) -> RunResult:
    """The run, had its teacher been stopped so."""

    def with_metrics(artefact: Artefact) -> Artefact:
        manifest = artefact.manifest
        return replace(
            artefact, manifest=manifest.model_copy(update={"metrics": manifest.metrics | metrics})
        )

    steps = [
        replace(step, artefact=with_metrics(step.artefact)) if step.id == "teach" else step
        for step in finished.steps
    ]
    return replace(finished, steps=steps)


@pytest.mark.parametrize(
    ("metrics", "note"),
    [
        (
            {"stopped": "epochs"},
            "teach: training reached its limit (epochs: 3) while ranking still improved; "
            "more epochs may help",
        ),
        (
            {"stopped": "minutes"},
            "teach: training reached its limit (max_minutes: None) while ranking still improved; "
            "more minutes may help",
        ),
        ({}, "teach: training ended while ranking still improved; more training may help"),
    ],
)
def test_training_that_a_bound_ended_is_marked(
    metrics: dict[str, object], note: str, finished: RunResult
) -> None:
    cleared = improving(finished, stopped=None, still_improving=True)
    view = view_of(improving(cleared, **metrics))
    assert note in view.notes
    marked = {row.step for row in view.rows if cells(row)[0].endswith(" *")}
    assert "teach" in marked and "export" not in marked
    assert view.caption.endswith(" * ranking still improved when training ended.")
