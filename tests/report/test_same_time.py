"""The table of targets at the time of the item before them, and of later ones."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from slmc.evaluation.results import values
from slmc.pipeline import RunResult
from slmc.report import markdown, numbers, same_time
from slmc.report.html import page
from slmc.report.same_time import tied_targets
from slmc.report.tables import Z, user_tables
from slmc.report.terminal import run_table
from slmc.report.view import view_of

NAMES = ["markov", "teach", "export"]


def marked(result: RunResult, name: str) -> list[pl.DataFrame]:
    """The tables of an evaluation of 80 users; every fourth target is tied."""
    fourth = pl.int_range(pl.len()) % 4 == 0
    return [table.with_columns(same_time=fourth) for table in user_tables(result, name)]


@pytest.fixture
def tied(finished: RunResult, monkeypatch: pytest.MonkeyPatch) -> same_time.TiedTargets:
    monkeypatch.setattr(same_time, "user_tables", marked)
    table = tied_targets(finished, "ndcg@10", [*NAMES, "unknown"])
    assert table is not None
    return table


def test_values_by_hand(finished: RunResult, tied: same_time.TiedTargets) -> None:
    assert tied.users == (20, 60)
    assert tied.headings == [
        "step", "NDCG@10, same-time (25.0 % of users)", "NDCG@10, later (75.0 % of users)",
    ]  # fmt: skip
    assert [step for step, _ in tied.rows] == NAMES
    (table,) = user_tables(finished, "teach")
    of_users = values(table, "ndcg@10", finished.protocol)
    same = np.arange(80) % 4 == 0
    for (value, half), users in zip(tied.rows[1][1], (same, ~same), strict=True):
        part = of_users[users]
        assert value == pytest.approx(part.mean())
        assert half == pytest.approx(Z * part.std(ddof=1) / part.size**0.5)


def test_each_form_shows_it(finished: RunResult, tied: same_time.TiedTargets) -> None:
    view = replace(view_of(finished), tied=tied)
    cell = numbers.value(*tied.rows[1][1][0])
    terminal = Console(width=200, record=True, quiet=True)
    terminal.print(run_table(view))
    for text in (page(view), markdown.summary(view), terminal.export_text()):
        assert cell in text and "(25.0 % of users)" in text
    assert "<h2>Same-time and later targets</h2>" in page(view)


def test_a_run_of_an_older_version_has_no_table(
    finished: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    def older(result: RunResult, name: str) -> list[pl.DataFrame]:
        return [table.drop("same_time") for table in user_tables(result, name)]

    monkeypatch.setattr(same_time, "user_tables", older)
    assert tied_targets(finished, "ndcg@10", NAMES) is None


def test_without_ties_there_is_no_table(finished: RunResult) -> None:
    assert tied_targets(finished, "ndcg@10", NAMES) is None  # the times of the log all differ
    view = view_of(finished)
    assert view.tied is None
    assert "Same-time" not in page(view) + markdown.summary(view)
