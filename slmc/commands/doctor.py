"""``slmc doctor``."""

from typing import Annotated

import typer

from slmc.commands import console
from slmc.commands.shared import Json, command
from slmc.errors import MissingError

app = typer.Typer(add_completion=False)


@command(app)
def doctor(
    hub: Annotated[
        bool, typer.Option("--hub", help="Also check the connection to the Hugging Face hub.")
    ] = False,
    json: Json = False,
) -> int:
    """Show what can run on this machine."""
    from rich.table import Table
    from rich.text import Text

    from slmc.commands.diagnosis import examine

    findings = examine(hub=hub)
    bad = any(one.state == "missing" for one in findings)
    if json:
        console.result_json([vars(one) for one in findings])
        return MissingError.exit_code if bad else 0
    colours = {"ok": "green", "missing": "red", "without": "yellow"}
    table = Table("what", "", "result", box=None, pad_edge=False)
    for one in findings:
        # Text, since rich would read the brackets of pip install 'slmc[onnx]' as markup.
        table.add_row(one.what, Text(one.state, style=colours[one.state]), Text(one.found))
    console.show(table)
    return MissingError.exit_code if bad else 0
