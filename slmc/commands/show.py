"""``slmc show ARTEFACT…``, ``slmc show RUN``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from slmc.artefact import Artefact
from slmc.commands import console, inputs
from slmc.commands.data import print_values
from slmc.commands.shared import Json, command

app = typer.Typer(add_completion=False)


@command(app)
def show(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="ARTEFACT", help="Artefacts, or folders of runs (runs/NAME)."),
    ],
    json: Json = False,
) -> None:
    """Show what artefacts are and how they were made."""
    from slmc.pipeline import saved_run
    from slmc.pipeline.inventory import register_moved

    for path in paths:
        register_moved(path)
    contents = [
        saved_run.read(path) if saved_run.is_run(path) else inputs.artefact_at(path)
        for path in paths
    ]
    if json:
        console.result_json(
            [as_json(one) if isinstance(one, Artefact) else one for one in contents]
        )
        return
    for number, one in enumerate(contents):
        console.result("\n" * bool(number) + str(paths[number]))
        if isinstance(one, Artefact):
            print_values(summary(one), "  ")
        else:
            print_run(one)


def as_json(artefact: Artefact) -> dict[str, Any]:
    """Path, digest and manifest."""
    manifest = artefact.manifest.model_dump(mode="json")
    return {"path": str(artefact.path), "digest": artefact.digest, **manifest}


def print_run(run: dict[str, Any]) -> None:
    """Print the steps, evaluations and verdicts of a run."""
    from rich.table import Table

    from slmc.pipeline.points import read_point
    from slmc.report import numbers
    from slmc.report.terminal import metric_table, points_table

    ended = run["ended"]
    if ended:
        console.result(f"  ended at step {ended['step']}: {ended['why']}")
    elif not run["complete"]:
        console.result("  did not finish; the results are those of an earlier run")
    table = Table("step", "stage", "s to make", "MB", "key", box=None, pad_edge=False)
    for name, step in run["steps"].items():
        seconds = numbers.NONE if step["seconds"] is None else f"{step['seconds']:.1f}"
        size = numbers.megabytes(run["sizes"].get(name))
        table.add_row(name, step["stage"], seconds, size, step["key"][:12])
    console.show(table)
    if run["evaluations"]:
        names = run["recipe"]["evaluate"]["metrics"]
        console.show(metric_table(run["evaluations"], names, run["valid_repeats"]))
    if run["points"]:
        points = [read_point(one) for one in run["points"]]
        console.show(points_table(points, run["recipe"]["select_by"]))
    for name, copy in (run["chosen"] or {}).items():
        console.result(f"chosen on validation: {name} is {copy}")
    for verdict in run["verdicts"] or ():
        binding = "" if verdict["binding"] else " (not binding)"
        console.result(f"gate {verdict['sentence']}{binding}")
    for note in run["notes"] or ():
        console.result(f"note {note}")


def summary(artefact: Artefact) -> dict[str, Any]:
    """The manifest of an artefact in the order of reading, with short hashes."""
    manifest = artefact.manifest
    sizes = {name: (artefact.path / name).stat().st_size for name in manifest.files}
    return {
        "kind": manifest.kind,
        "stage": manifest.stage,
        "digest": artefact.digest[:12],
        "made from": {role: digest[:12] for role, digest in manifest.parents.items()},
        "config": manifest.config,
        "metrics": manifest.metrics,
        "versions": manifest.versions,
        "device": manifest.device,
        "bytes": sizes,
    }
