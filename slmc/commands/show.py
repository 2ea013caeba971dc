"""``slmc show ARTEFACT…``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from slmc import console
from slmc.artefact import Artefact
from slmc.commands import inputs as given
from slmc.commands.data import tell
from slmc.commands.shared import Json, command

app = typer.Typer(add_completion=False)


@command(app)
def show(
    artefacts: Annotated[list[Path], typer.Argument(metavar="ARTEFACT", help="Directories.")],
    json: Json = False,
) -> None:
    """Tell what artefacts are and how they were made."""
    found = [given.taken(path) for path in artefacts]
    if json:
        manifests = [
            {"path": str(a.path), "digest": a.digest, **a.manifest.model_dump(mode="json")}
            for a in found
        ]
        console.result_json(manifests)
        return
    for number, artefact in enumerate(found):
        console.result("\n" * bool(number) + str(artefact.path))
        tell(summary(artefact), "  ")


def summary(artefact: Artefact) -> dict[str, Any]:
    """What a reader wants to know of an artefact, in order; hashes shortened."""
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
        "code of a model repository was run": manifest.remote_code,
        "bytes": sizes,
    }
