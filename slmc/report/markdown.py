"""``summary.md``: the table and the verdicts, for a pull request or a job summary."""

import re
from collections.abc import Iterable, Sequence

from slmc.report import numbers
from slmc.report.targets import TargetTable
from slmc.report.terminal import (
    cells,
    difference_of,
    headings,
    point_cells,
    point_headings,
    points_caption,
)
from slmc.report.view import View

CODE, ESCAPED = re.compile(r"\\`.*?\\`"), re.compile(r"\\(.)")
"""In escaped text: code between backticks, and an escaped character."""
CONTROLS = (
    "A control is the same training, for as many steps, without the teacher or without "
    "pretraining. Changes are paired over users. ce is in nats; lower is better."
)
"""Explains the table of controls."""
TARGETS = "Cold and new items"
"""Title of the table of targets."""


def summary(view: View) -> str:
    """The summary of a run in GitHub's Markdown."""
    state = "failed" if view.failed else "passed" if view.judged else "no gate"
    lines = [f"## {view.name}: {state}", ""]
    lines += [part for line in view.advice for part in (_bold(line), "")]
    lines += [escape(view.description), ""]
    if view.ended is not None:
        lines += [escape(view.state), ""]
    lines += main_table(view)
    if view.points:
        rows = [point_cells(point) for point in view.points]
        lines += [
            "",
            "### Points and seeds",
            "",
            *table(point_headings(view.points, view.select_by), rows),
        ]
        lines += ["", escape(points_caption(view))]
    if view.targets is not None:
        lines += ["", f"### {TARGETS}", "", *target_table(view.targets)]
    if view.judged:
        lines += ["", "### Gates", ""]
        lines += [f"- **{one.label}** {escape(one.verdict.sentence)}" for one in view.judged]
    if view.comparisons:
        lines += ["", "### Controls", "", CONTROLS, "", *comparison_table(view)]
    if view.tied is not None:
        lines += ["", "### Same-time and later targets", ""]
        lines += [*table(view.tied.headings, view.tied.cells), "", escape(view.tied.caption)]
    if view.depths:
        lines += ["", "### Fewer layers", ""]
        lines += [f"- {escape(f'{one.step}: {one.sentence}')}" for one in view.depths]
    notes = [*view.detectable, *view.notes]
    if notes:
        lines += ["", "### What the numbers can show", "", *(f"- {escape(one)}" for one in notes)]
    return "\n".join(line for line in lines if line is not None) + "\n"


def main_table(view: View) -> list[str]:
    """The main table and its caption."""
    rows = [cells(row) for row in view.rows]
    return [*table(headings(view), rows), "", escape(view.caption)]


def target_table(targets: TargetTable) -> list[str]:
    """The metric by how often targets occur in training."""
    lines = table(targets.headings, [[row.step, *row.values] for row in targets.rows])
    return lines + [part for one in targets.sentences for part in ("", escape(one))]


def comparison_table(view: View) -> list[str]:
    """Each step and its control."""
    rows = [
        [
            one.step,
            one.brings,
            one.metric,
            numbers.value(one.value),
            numbers.value(one.control_value),
            difference_of(one),
            one.outcome,
            numbers.count(one.n),
        ]
        for one in view.comparisons
    ]
    heads = ["step", "shows", "metric", "step", "control", "change (95 % interval)", "outcome", "n"]
    return table(heads, rows)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(escape(cell) for cell in line)} |" for line in lines]


def _bold(text: str) -> str:
    """A bold line; text between backticks is code."""
    code = CODE.sub(lambda match: ESCAPED.sub(r"\1", match[0]), escape(text))
    return f"**{code}**"


def escape(text: str) -> str:
    """Text with escaped Markdown characters."""
    for character in "\\|<>[]*_`":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
