"""``slmc diff A B``: two artefacts, or two runs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from slmc.commands import console
from slmc.commands import inputs as given
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
    found = {
        name: values
        for name, values in differences(flat(pair[0]), flat(pair[1])).items()
        if name != "key"
    }
    if json:
        console.result_json(found)
        return
    for name, (left, right) in found.items():
        console.result(f"{name}: {left} -> {right}")
    if not found:
        console.result("no difference")


def _comparable(*paths: Path) -> list[dict[str, Any]]:
    """The manifests of artefacts, or what runs were and came to.

    Raises:
        UsageError: One is a run and the other is not.
    """
    from slmc.pipeline import past

    runs = [path for path in paths if past.is_run(path)]
    if not runs:
        return [given.taken(path).manifest.model_dump(mode="json") for path in paths]
    if len(runs) < len(paths):
        other = next(path for path in paths if path not in runs)
        raise UsageError(
            f"{runs[0]} is the folder of a run, and {other} is not.",
            "Name two runs, or two artefacts, such as steps of a run.",
        )
    return [past.comparable(past.told(path)) for path in paths]


def flat(value: dict[str, Any], at: str = "") -> dict[str, Any]:
    """Nested mappings as dotted names."""
    found: dict[str, Any] = {}
    for name, inner in value.items():
        path = f"{at}.{name}" if at else name
        found |= flat(inner, path) if isinstance(inner, dict) and inner else {path: inner}
    return found


def differences(first: dict[str, Any], second: dict[str, Any]) -> dict[str, list[Any]]:
    """Name -> the two values, where they differ; None where one has none."""
    names = dict.fromkeys([*first, *second])
    return {
        name: [first.get(name), second.get(name)]
        for name in names
        if first.get(name) != second.get(name)
    }
