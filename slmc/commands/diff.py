"""``slmc diff A B``: two artefacts, or two runs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from slmc.commands import console, inputs
from slmc.commands.shared import Json, command
from slmc.errors import UsageError

app = typer.Typer(add_completion=False)


@command(app)
def diff(
    first: Annotated[
        Path, typer.Argument(metavar="A", help="An artefact, or the folder of a run.")
    ],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another.")],
    json: Json = False,
) -> None:
    """Show how two artefacts differ."""
    pair = _comparable(first, second)
    changes = {
        name: values
        for name, values in differences(flat(pair[0]), flat(pair[1])).items()
        if name != "key"
    }
    if json:
        console.result_json(changes)
        return
    for name, (left, right) in changes.items():
        console.result(f"{name}: {left} -> {right}")
    if not changes:
        console.result("no difference")


def _comparable(*paths: Path) -> list[dict[str, Any]]:
    """The manifests of two artefacts, or the settings and results of two runs.

    Raises:
        UsageError: One is a run and the other is not.
    """
    from slmc.pipeline import saved_run

    runs = [path for path in paths if saved_run.is_run(path)]
    if not runs:
        return [inputs.artefact_at(path).manifest.model_dump(mode="json") for path in paths]
    if len(runs) < len(paths):
        other = next(path for path in paths if path not in runs)
        raise UsageError(
            f"{runs[0]} is the folder of a run, but {other} is not.",
            "Name two runs, or two artefacts, such as steps of a run.",
        )
    return [saved_run.comparable(saved_run.read(path)) for path in paths]


def flat(value: dict[str, Any], at: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted names."""
    flattened: dict[str, Any] = {}
    for name, inner in value.items():
        path = f"{at}.{name}" if at else name
        flattened |= flat(inner, path) if isinstance(inner, dict) and inner else {path: inner}
    return flattened


def differences(first: dict[str, Any], second: dict[str, Any]) -> dict[str, list[Any]]:
    """Name -> the two values, for values that differ; None for a missing value."""
    names = dict.fromkeys([*first, *second])
    return {
        name: [first.get(name), second.get(name)]
        for name in names
        if first.get(name) != second.get(name)
    }
