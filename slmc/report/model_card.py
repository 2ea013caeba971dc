"""``model-card.md``: the last model or engine of a run, with the results of the run."""

from slmc.artefact import Artefact
from slmc.recipe.text import dump
from slmc.report import markdown
from slmc.report.numbers import plain
from slmc.report.view import View


def card(view: View) -> str | None:
    """The model card in the form of the Hugging Face hub; None if the run made no model."""
    if view.last is None:
        return None
    manifest = view.last.manifest
    head = {
        "library_name": "slmc",
        "pipeline_tag": "other",
        "tags": ["recommendation", "sequential-recommendation", manifest.kind],
    }
    lines = ["---", dump(head).rstrip(), "---", "", f"# {view.name}: {view.last_step}", ""]
    if view.description:
        lines += [markdown.escape(view.description), ""]
    lines += [_made(view, view.last), "", "## Measured", "", *markdown.main_table(view), ""]
    if view.smoke:
        lines += ["This was a smoke run: its numbers only show that the recipe runs.", ""]
    if view.judged:
        lines += [f"- {markdown.escape(one.verdict.sentence)}" for one in view.judged]
        lines.append("")
    lines += ["## Data", ""]
    shown = {name: plain(value) for name, value in view.data.items() if value is not None}
    lines += [f"- {name}: {markdown.escape(value)}" for name, value in shown.items()]
    lines += ["", "## Use", "", *_use(manifest.kind)]
    return "\n".join(lines) + "\n"


def _made(view: View, artefact: Artefact) -> str:
    manifest = artefact.manifest
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    chosen = f" from `{view.last_source}`, chosen on validation" if view.last_source else ""
    article = "An" if manifest.kind == "engine" else "A"
    return (
        f"{article} {manifest.kind} of stage `{manifest.stage}`, made by `{view.command}` with "
        f"seed {view.seed}{chosen} ({versions}); digest `{artefact.digest[:12]}`."
    )


def _use(kind: str) -> list[str]:
    if kind == "engine":
        return ["```", "slmc recommend ENGINE ITEM-ID ITEM-ID", "```"]
    return [
        "```python",
        "import slmc.model.loading  # registers the model type with transformers",
        "from transformers import AutoModel",
        "",
        'model = AutoModel.from_pretrained("PATH")',
        "```",
    ]
