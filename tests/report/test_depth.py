"""The result of a depth step: its table, whether it is within the budget, the report of a run."""

from typing import Any

import pytest
from rich.console import Console

from slmc.errors import VerdictError
from slmc.pipeline import RunResult
from slmc.report import depth, markdown
from slmc.report.html import page
from slmc.report.terminal import run_table
from slmc.report.view import view_of


def point(kept: int, change: float, within: bool) -> dict[str, Any]:
    bounds = {"change": change, "low": change - 0.01, "high": change + 0.01}
    return {
        "depth": kept, "layers": list(range(kept)), "parameters": 1_000_000 * kept, "value": 0.05,
        "change": bounds, "relative": bounds, "within": within,
    }  # fmt: skip


def content(**other: Any) -> dict[str, Any]:
    return {
        "metric": "ndcg@10",
        "max_drop": "1%",
        "confidence": 0.95,
        "n": 1234,
        "protocol": {"ranking": "full", "exclude_seen": True, "split": "valid"},
        "teacher": {"layers": 3, "parameters": 3_000_000, "value": 0.0512},
        "ways": {
            "first": {"depths": [point(2, -0.02, False), point(1, -0.2, False)]},
            "angular": {"depths": [point(2, 0.005, True)]},
        },
        "choice": point(2, 0.005, True),
        "detectable": 0.034,
        "redundancy": {"influence": [0.31, 0.02, 0.4]},
        "sentence": "no depth below 3 layers is within 1% of ndcg@10",
    } | other


def shown(what: Any) -> str:
    console = Console(width=200, record=True, color_system=None)
    console.print(what)
    return console.export_text()


def test_a_row_per_depth_and_a_column_per_way() -> None:
    lines = shown(depth.table(content())).splitlines()
    rows = {line.split("│")[1].strip(): line for line in lines if line.startswith("│")}
    assert list(rows) == ["3", "2", "1"]
    assert "3.0 M" in rows["3"] and rows["3"].count("0.0512") == 2
    assert "0.0500 -2.0 % [-3.0, -1.0]" in rows["2"] and "+0.5 % [-0.5, +1.5]" in rows["2"]
    assert rows["1"].split("│")[4].strip() == "-"
    text = " ".join(lines)
    assert "1,234 validation users, full ranking, seen items left out, valid" in text
    assert "influence by layer: 0 0.310, 1 0.020, 2 0.400" in text


def test_a_change_in_nats_is_absolute() -> None:
    one = point(2, -0.02, False) | {"relative": None}
    text = shown(depth.table(content(ways={"first": {"depths": [one]}}, metric="ce")))
    assert "0.0500 -0.0200 [-0.0300, -0.0100]" in text


@pytest.mark.parametrize(
    ("other", "remedy"),
    [
        (
            {},
            "Allow a larger --max-drop, or fit students with --train. 1,234 users can detect a "
            "loss of about 3.4 %; --users ranks more.",
        ),
        (
            {"detectable": None, "ways": {"trained": {}}},
            "Allow a larger --max-drop, or train them longer (--fit.epochs).",
        ),
    ],
)
def test_no_depth_within_the_budget(other: dict[str, Any], remedy: str) -> None:
    depth.check(content())
    with pytest.raises(VerdictError) as caught:
        depth.check(content(choice=None) | other)
    assert str(caught.value) == "depth: no depth below 3 layers is within 1% of ndcg@10."
    assert caught.value.remedy == remedy


def test_the_report_of_a_run_shows_it(finished: RunResult) -> None:
    view = view_of(finished)
    (one,) = view.depths
    assert one.step == "depth" and "of 2 layers (first)" in one.sentence
    assert one.sentence == finished.artefacts()["depth"].manifest.metrics["sentence"]
    html = page(view)
    assert "<h2>Fewer layers</h2>" in html and one.plot.strip() in html
    assert f"depth: {one.sentence[:20]}" in markdown.summary(view).replace("\\", "")
    assert one.sentence[:20] in shown(run_table(view))
