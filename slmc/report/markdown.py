"""``summary.md``: the table and the verdicts, for a pull request or a job summary."""

from collections.abc import Iterable, Sequence

from slmc.report import numbers
from slmc.report.terminal import cells, headings
from slmc.report.view import View


def summary(view: View) -> str:
    """The summary of a run in GitHub's Markdown."""
    state = "failed" if view.failed else "passed" if view.judged else "no gate"
    lines = [f"## {view.name}: {state}", "", escape(view.description), ""]
    if view.ended is not None:
        lines += [escape(view.state), ""]
    lines += main_table(view)
    if view.judged:
        lines += ["", "### Gates", ""]
        lines += [f"- **{one.label}** {escape(one.verdict.sentence)}" for one in view.judged]
    if view.comparisons:
        lines += ["", "### Student against its control (the same training without a teacher)", ""]
        lines += comparison_table(view)
    notes = [*view.sees, *view.notes]
    if notes:
        lines += ["", "### What the numbers can show", "", *(f"- {escape(one)}" for one in notes)]
    return "\n".join(line for line in lines if line is not None) + "\n"


def main_table(view: View) -> list[str]:
    """The main table and its caption."""
    rows = [cells(row) for row in view.rows]
    return [*table(headings(view), rows), "", escape(view.caption)]


def comparison_table(view: View) -> list[str]:
    """Each student beside its control."""
    rows = [
        [
            one.student,
            one.metric,
            numbers.value(one.student_value),
            numbers.value(one.control_value),
            numbers.change(one.change, relative=False),
            numbers.count(one.n),
        ]
        for one in view.comparisons
    ]
    heads = ["student", "metric", "student", "control", "difference (95 % interval)", "n"]
    return table(heads, rows)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(escape(cell) for cell in line)} |" for line in lines]


def escape(text: str) -> str:
    """Text that Markdown shows as it is."""
    for character in "\\|<>[]*_`":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
