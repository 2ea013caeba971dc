"""``slmc package ENGINE -o DIR``."""

from pathlib import Path
from typing import Annotated

import typer

from slmc.commands import console, inputs
from slmc.commands.shared import Json, command

app = typer.Typer(add_completion=False)


@command(app)
def package(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="An engine artefact.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The new folder.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a package at --out.")] = False,
    json: Json = False,
) -> None:
    """Write a folder that serves an engine over HTTP without slmc, also as a container."""
    from slmc.package.package import package as write

    made = write(inputs.artefact_at(engine, "engine"), out, force=force)
    if json:
        size = sum(file.stat().st_size for file in made.path.rglob("*") if file.is_file())
        console.result_json({"path": str(made.path), "bytes": size, **made.about})
        return
    console.result(str(made.path))
