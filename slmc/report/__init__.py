"""The report of a run: tables, HTML, JUnit, Markdown, a model card.

Read ``view`` (the contents of every form), ``tables`` and ``numbers``, then the forms: ``html``,
``markdown``, ``junit``, ``terminal``, ``model_card``, ``tradeoff`` and ``curves``. ``advice``,
``power`` and ``training`` write the sentences. Imported by ``commands``.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from slmc.system import write_whole

if TYPE_CHECKING:
    from slmc.pipeline import RunResult


def write(result: "RunResult") -> list[Path]:
    """Write the report of a run into its folder; returns the files.

    ``report.html`` for people, ``summary.md`` for a pull request, ``junit.xml`` for CI,
    ``model-card.md`` for the last model or engine, and ``tradeoff.svg`` if there are several
    engines to compare.
    """
    from slmc.report import html, junit, markdown, tradeoff
    from slmc.report import model_card as card
    from slmc.report.view import view_of

    view = view_of(result)
    texts = {
        "report.html": html.page(view),
        "summary.md": markdown.summary(view),
        "junit.xml": junit.suites(view),
        "model-card.md": card.card(view),
        "tradeoff.svg": tradeoff.picture(view.rows, view.metric),
    }
    files = []
    for name, text in texts.items():
        if text is not None:
            files.append(result.run_dir / name)
            write_whole(files[-1], text)
    return files
