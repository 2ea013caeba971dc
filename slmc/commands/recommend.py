"""``slmc recommend ENGINE ID ID…``."""

from pathlib import Path
from typing import Annotated

import typer

from slmc.commands import console, inputs
from slmc.commands.shared import Json, command

app = typer.Typer(add_completion=False)


@command(app)
def recommend(
    engine: Annotated[
        Path, typer.Argument(metavar="ENGINE", help="An engine, or a run: its last one.")
    ],
    ids: Annotated[
        list[str], typer.Argument(metavar="ID", help="Items of the history, oldest first.")
    ],
    k: Annotated[int, typer.Option("-k", min=1, help="How many items.")] = 10,
    exclude_seen: Annotated[
        bool, typer.Option("--exclude-seen", help="Leave out the items of the history.")
    ] = False,
    json: Json = False,
) -> None:
    """Print the best items for one history."""
    from rich.table import Table

    from slmc.pipeline import saved_run
    from slmc.recommend import recommend as best
    from slmc.serving.opening import last_served

    path = last_served(engine) if saved_run.is_run(engine) else engine
    recommendations = best(inputs.artefact_at(path, "engine"), ids, k, exclude_seen)
    if json:
        rows = [{"item": r.item, "title": r.title, "score": r.score} for r in recommendations]
        console.result_json(rows)
        return
    table = Table("", "item", "title", "score", box=None, pad_edge=False)
    for place, one in enumerate(recommendations, start=1):
        table.add_row(str(place), str(one.item), one.title or "", f"{one.score:.3f}")
    console.show(table)
