"""The report of a finished run: the same numbers in every form, and safe in each."""

import html.parser
import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from slmc import report
from slmc.commands import console
from slmc.config import CROSS_ENTROPIES
from slmc.evaluation.results import values
from slmc.export.config import BenchConfig
from slmc.pipeline import RunResult
from slmc.pipeline.keys import Outside, key_of
from slmc.report import junit, markdown, numbers
from slmc.report import model_card as card
from slmc.report.html import interval, page
from slmc.report.tables import Z, cost_per_million
from slmc.report.terminal import cells, run_table, sentence_of
from slmc.report.view import View, view_of

VOID = {"meta", "line", "rect", "polyline", "br", "img", "link"}


@pytest.fixture(scope="module")
def view(finished: RunResult) -> View:
    return view_of(finished)


def test_a_run_writes_its_report(finished: RunResult) -> None:
    names = ["report.html", "summary.md", "junit.xml", "model-card.md"]
    assert [file.name for file in finished.files] == names
    assert all(file.is_file() and file.parent == finished.run_dir for file in finished.files)
    assert report.write(finished) == finished.files


def test_the_table_has_baselines_models_control_and_engine(view: View) -> None:
    assert [(row.step, row.kind) for row in view.rows] == [
        ("popularity", "baseline"),
        ("markov", "baseline"),
        ("sasrec", "baseline"),
        ("teach", "model"),
        ("teach.control", "control"),
        ("distill", "model"),
        ("distill.control", "control"),
        ("sasrec-engine", "engine"),
        ("export", "engine"),
    ]


def test_values_are_those_of_the_evaluations(finished: RunResult, view: View) -> None:
    how = finished.protocol
    for row in view.rows[3:]:
        users = pl.read_parquet(finished.evaluations[row.step].file("per_user.parquet"))
        each = values(users, "ndcg@10", how)
        assert row.value == pytest.approx(each.mean())
        assert row.half == pytest.approx(Z * each.std(ddof=1) / np.sqrt(80))


def test_the_change_is_relative_to_the_teacher(view: View) -> None:
    rows = {row.step: row for row in view.rows}
    assert view.teacher == "teach" and rows["teach"].change is None
    for step in ("popularity", "distill", "distill.control", "export"):
        row, teacher = rows[step], rows["teach"]
        assert row.change is not None and row.value is not None and teacher.value is not None
        assert row.change.change == pytest.approx(row.value / teacher.value - 1)
        assert row.change.low <= row.change.change <= row.change.high


def test_times_stand_beside_what_was_timed(finished: RunResult, view: View) -> None:
    bench = json.loads(finished.artefacts()["bench"].file("metrics.json").read_bytes())
    rows = {row.step: row for row in view.rows}
    assert rows["export"].p50_ms == bench["batches"]["1"]["engine"]["latency_ms"]["p50"]
    assert rows["teach"].per_s == bench["batches"]["32"]["baseline"]["throughput"]
    assert rows["distill"].p50_ms is None


def test_gates_stand_on_the_step_they_judge(view: View) -> None:
    gates = {row.step: row.gate for row in view.rows}
    assert gates["export"] == ("fail" if view.failed else "pass")
    assert gates["sasrec-engine"] == "pass"
    others = {gate for step, gate in gates.items() if step not in ("export", "sasrec-engine")}
    assert others == {""}


def test_sasrec_has_one_row_where_it_is_measured_twice(finished: RunResult, view: View) -> None:
    assert "sasrec" in finished.evaluations
    assert [row.kind for row in view.rows if row.step == "sasrec"] == ["baseline"]
    users = pl.read_parquet(finished.evaluations["sasrec"].file("per_user.parquet"))
    again = values(users, "ndcg@10", finished.protocol).mean()
    assert {row.step: row.value for row in view.rows}["sasrec"] == pytest.approx(again)


def test_steps_are_compared_with_their_controls(finished: RunResult, view: View) -> None:
    metrics = list(finished.recipe.evaluate.metrics)
    assert [(one.step, one.control, one.brings, one.metric) for one in view.comparisons] == [
        *(("teach", "teach.control", "what pretraining brings", metric) for metric in metrics),
        *(("distill", "distill.control", "what distilling brings", metric) for metric in metrics),
    ]
    for one in view.comparisons:
        assert one.change.change == pytest.approx(one.value - one.control_value)
        assert (one.relative is None) == (one.metric in CROSS_ENTROPIES)
        if one.relative is not None:
            assert one.relative.change == pytest.approx(one.value / one.control_value - 1)
        assert one.n == 80
        told = one.outcome == "no significant difference"
        assert told == (one.change.low <= 0 <= one.change.high)


def test_the_caption_names_protocol_n_and_interval(view: View) -> None:
    assert replace(view, rows=[]).caption == (
        "NDCG@10: full ranking, seen items kept, test (repeats are 70 % of the targets, "
        "and 62.5 % of the validation targets), n = 80 users. Changes are "
        "relative to teach, for the same users (paired bootstrap). "
        "Intervals are two-sided 95 %; ± is half their width."
    )


def test_what_the_users_can_see_is_said(view: View) -> None:
    assert view.detectable[0].startswith("ndcg@10: 80 users can detect a loss of ")


def test_loss_curves_hold_every_term(view: View) -> None:
    terms = {one.task: set(one.terms) for one in view.curves}
    assert {"ce", "total", "cosine", "norm", "supervise"} <= terms["distill"]
    assert "grad_norm" not in terms["distill"]


class Tags(html.parser.HTMLParser):
    """Checks that tags close in order, and keeps what could load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.loads += [str(v) for k, v in attrs if k in ("src", "href", "srcset", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_is_well_formed_and_needs_nothing_else(view: View) -> None:
    tags, text = Tags(), page(view)
    tags.feed(text)
    assert tags.open == [] and tags.loads == []
    assert not tags.seen & {"script", "link", "img", "iframe"}
    assert "url(" not in text and "http" not in re.sub(r'"http-equiv[^>]*', "", text).replace(
        "http-equiv", ""
    )
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text


def test_html_shows_the_table_the_gates_and_the_rest(view: View) -> None:
    text = page(view)
    for row in view.rows:
        for cell in cells(row):
            assert f">{cell}</td>" in text
    for heading in ("Results", "Gates", "Controls", "Parity", "Latency and throughput", "Losses"):
        assert f"<h2>{heading}" in text
    assert f"seed {view.seed}" in text and f"torch {view.versions['torch']}" in text


def test_html_escapes_what_a_recipe_says(view: View) -> None:
    text = page(replace(view, description="<script>alert(1)</script>", notes=["<img src=x>"]))
    assert "<script>" not in text and "<img" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_an_interval_keeps_its_order_on_the_line() -> None:
    from slmc.evaluation.bootstrap import Bounds

    plot = interval(Bounds(-0.02, -0.05, 0.01), limit=-0.03)
    assert plot is not None and plot.limit is not None
    assert 0 < plot.low < plot.limit < plot.mid < plot.zero == 50 < plot.high < 100
    assert interval(Bounds(0.0, 0.0, 0.0)) is not None
    assert interval(None) is None


def test_markdown_has_the_same_cells(view: View) -> None:
    text = markdown.summary(view)
    for row in view.rows:
        line = " | ".join(markdown.escape(cell) for cell in cells(row))
        assert f"| {line} |" in text
    assert "A \\<b\\>small\\</b\\> run \\| with marks" in text


def test_the_terminal_shows_rows_sentences_and_notes(view: View) -> None:
    console = Console(width=300, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as captured:
        console.print(run_table(view))
    text = captured.get()
    assert all(row.step in text for row in view.rows)
    assert all(one.verdict.sentence in text for one in view.judged)
    assert all(note in text for note in view.detectable)
    assert all(f"control {sentence_of(one)}" in text for one in view.comparisons)


def test_junit_has_a_case_for_each_gate_and_parity(view: View) -> None:
    root = ElementTree.fromstring(junit.suites(view).encode())
    cases = root.findall("./testsuite/testcase")
    assert [(c.get("classname"), c.get("name")) for c in cases] == [
        ("gates.export", "ndcg@10 max_drop 0% against teach"),
        ("gates.export", "overlap@10 min 0.99 against distill"),
        ("gates.export", "size_mb max 64.0"),
        ("gates.sasrec-engine", "ndcg@10 max_drop 1% against sasrec"),
        ("parity.sasrec-engine", "the engine ranks like its model"),
        ("parity.export", "the engine ranks like its model"),
    ]
    failed = [one.verdict.failed for one in view.judged]
    assert [c.find("failure") is not None for c in cases[:4]] == failed
    assert root.get("failures") == str(sum(failed))


def test_junit_skips_what_does_not_bind_and_survives_control_characters(view: View) -> None:
    judged = [
        replace(one, binding=False, verdict=replace(one.verdict, outcome="regression"))
        for one in view.judged
    ]
    text = junit.suites(replace(view, judged=judged, name="bad\x00name"))
    root = ElementTree.fromstring(text.encode())
    assert (root.get("failures"), root.get("skipped")) == ("0", "4")
    assert root.find("testsuite").get("name") == "bad\ufffdname"  # type: ignore[union-attr]


def test_the_card_says_what_it_is_and_how_it_was_measured(view: View) -> None:
    text = card.card(view)
    assert text is not None
    head = text.split("---")[1]
    assert "library_name: slmc" in head and "engine" in head
    assert view.last is not None and view.last.digest[:12] in text
    assert all(line in text for line in markdown.main_table(view))
    assert "slmc recommend" in text


def test_a_run_that_stopped_early_has_a_report_too(finished: RunResult, tmp_path: Path) -> None:
    early = RunResult(finished.recipe, tmp_path, steps=finished.steps[:4], until="baselines")
    files = report.write(early)
    assert [file.name for file in files] == ["report.html", "summary.md", "junit.xml"]
    assert "popularity" in (tmp_path / "summary.md").read_text()
    assert "There was no gate to judge." in (tmp_path / "report.html").read_text()
    cases = ElementTree.fromstring((tmp_path / "junit.xml").read_bytes())
    assert cases.get("tests") == "0"


def test_bench_and_validate_have_tables(
    finished: RunResult, capsys: pytest.CaptureFixture[str]
) -> None:
    from slmc.commands.stage_command import bench_table
    from slmc.pipeline.judging import summary_of
    from slmc.report.terminal import metric_table

    bench = finished.artefacts()["bench"]
    console.show(bench_table(bench, BenchConfig()))
    out = capsys.readouterr().out
    assert "histories per second" in out and "cost of a million" not in out
    summary = summary_of(finished.evaluations["export"])
    console.show(metric_table({"engine": summary}, ["ndcg@10", "hr@10"], None))
    out = capsys.readouterr().out
    assert out.index("ndcg@10") < out.index("hr@10") and "±" in out and "n = 80" in out


def test_the_cost_of_a_million_by_hand() -> None:
    """100 a second are 360,000 an hour, so a million takes 2.78 hours."""
    assert cost_per_million(0.36, 100) == pytest.approx(1.0)
    assert [numbers.cost(one) for one in (None, 0.012345, 12.345, 1234.5)] == [
        "-", "0.0123", "12.3", "1,234",
    ]  # fmt: skip


def priced(finished: RunResult, price: float | None) -> RunResult:
    """The same run, from a recipe with another price of an hour."""
    steps = tuple(
        replace(step, config=step.config.model_copy(update={"price_per_hour": price}))
        if step.stage == "bench"
        else step
        for step in finished.recipe.steps
    )
    return replace(finished, recipe=replace(finished.recipe, steps=steps))


def test_costs_are_of_the_recipe_and_not_of_the_cached_report(
    finished: RunResult, capsys: pytest.CaptureFixture[str]
) -> None:
    from slmc.commands.stage_command import bench_costs, bench_table

    report = finished.artefacts()["bench"]
    timed = json.loads(report.file("metrics.json").read_bytes())["batches"]
    assert "cost of a million" not in page(view_of(finished))
    made = view_of(priced(finished, 0.5))
    expected = {
        (who, int(batch)): cost_per_million(0.5, one[role]["throughput"])
        for batch, one in timed.items()
        for role, who in (("engine", "export"), ("baseline", "teach"))
    }
    assert {(one.who, one.batch): one.per_million for one in made.timings["bench"]} == expected
    cheapest = min(cost for (who, _), cost in expected.items() if who == "export")
    (note,) = [note for note in made.notes if note.startswith("bench: ")]
    assert note.startswith("bench: at 0.5 an hour, a million requests of one history cost ")
    assert f"{numbers.cost(cheapest)} with export (batch " in note and " with teach (batch " in note
    assert "<th>cost of a million</th>" in page(made) and note in page(made)
    config = BenchConfig(price_per_hour=0.5)
    console.show(bench_table(report, config))
    assert "cost of a million" in capsys.readouterr().out
    costs = bench_costs(report, config)["cost_per_million"]
    assert costs["engine"] == {
        str(b): cost for (who, b), cost in expected.items() if who == "export"
    }
    assert bench_costs(report, BenchConfig()) == {}


def test_a_price_leaves_the_key_of_a_bench_as_it_is() -> None:
    keys = [
        key_of("bench", BenchConfig(price_per_hour=price), {}, Outside()).digest
        for price in (None, 0.5)
    ]
    assert keys[0] == keys[1]
    with pytest.raises(ValueError, match="greater than 0"):
        BenchConfig(price_per_hour=0)
