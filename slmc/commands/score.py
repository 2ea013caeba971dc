"""``slmc score ENGINE --input FILE --output FILE``."""

import dataclasses
import logging
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from slmc.commands import console
from slmc.commands.shared import Json, command
from slmc.errors import UsageError

log = logging.getLogger("slmc.score")
app = typer.Typer(add_completion=False)

COLUMNS = "Columns and format of the input"


@command(app, network=True)
def score(
    engine: Annotated[
        Path, typer.Argument(metavar="ENGINE", help="An engine, a model, or a run.")
    ],
    input: Annotated[
        str, typer.Option("--input", "-i", metavar="FILE", help="Histories: path, glob, URL or -.")
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="FILE", help="FILE.parquet, .jsonl or .csv, a URL, or -."
        ),
    ],
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Items per user.")] = 10,
    exclude_seen: Annotated[
        bool,
        typer.Option("--exclude-seen/--no-exclude-seen", help="Leave out items of the history."),
    ] = False,
    allow: Annotated[
        str | None, typer.Option("--allow", metavar="FILE", help="The only items to recommend.")
    ] = None,
    deny: Annotated[
        str | None, typer.Option("--deny", metavar="FILE", help="Items never to recommend.")
    ] = None,
    unknown: Annotated[
        Literal["skip", "error"], typer.Option("--unknown", help="Items not in the catalogue.")
    ] = "skip",
    empty: Annotated[
        Literal["popular", "skip", "error"],
        typer.Option("--empty", help="Users without a known item."),
    ] = "popular",
    malformed: Annotated[
        Literal["skip", "error"], typer.Option("--malformed", help="Rows that cannot be read.")
    ] = "error",
    shard: Annotated[
        str, typer.Option("--shard", metavar="I/N", help="Score the I-th of N parts of the users.")
    ] = "1/1",
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="Cores: default all; on Ray one for each worker."),
    ] = None,
    on: Annotated[
        Literal["process", "ray"],
        typer.Option("--on", help="Rank in this process, or on the workers of a Ray cluster."),
    ] = "process",
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Workers on Ray; default: all cores.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    user: Annotated[
        str | None,
        typer.Option("--columns.user", metavar="NAME", help="Users.", rich_help_panel=COLUMNS),
    ] = None,
    items: Annotated[
        str | None,
        typer.Option(
            "--columns.items", metavar="NAME", rich_help_panel=COLUMNS,
            help="Lists of items: one row per user.",
        ),
    ] = None,
    item: Annotated[
        str | None,
        typer.Option(
            "--columns.item", metavar="NAME", rich_help_panel=COLUMNS,
            help="Items: one row per interaction.",
        ),
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(
            "--columns.time", metavar="NAME", rich_help_panel=COLUMNS,
            help="Times; without a column of times, rows are in time order.",
        ),
    ] = None,
    format: Annotated[
        Literal["auto", "csv", "tsv", "jsonl", "parquet", "recbole", "sequences"],
        typer.Option("--format", help="Format of the input.", rich_help_panel=COLUMNS),
    ] = "auto",
    separator: Annotated[
        str | None,
        typer.Option(
            "--separator", metavar="TEXT", help="Separator of columns.", rich_help_panel=COLUMNS
        ),
    ] = None,
    header: Annotated[
        Literal["auto", "true", "false"],
        typer.Option(
            "--header", rich_help_panel=COLUMNS,
            help="Whether the first line names the columns; without, they are numbers from 1.",
        ),
    ] = "auto",
    items_separator: Annotated[
        str | None,
        typer.Option(
            "--items-separator", metavar="TEXT", rich_help_panel=COLUMNS,
            help="Separator of ids in a list that is written as text; default: blanks.",
        ),
    ] = None,
    json: Json = False,
) -> None:  # fmt: skip
    """Recommend to the users of a file, and write the best items of each."""
    from slmc.scoring.score import score as run
    from slmc.scoring.settings import Settings, Shard
    from slmc.serving.frames import Columns
    from slmc.serving.opening import served_at

    if json and output == "-":
        raise UsageError(
            "--json and --output - both write to standard output.", "Leave out one of them."
        )
    settings = Settings(
        input=input, output=output, k=k, exclude_seen=exclude_seen, allow=allow, deny=deny,
        unknown=unknown, empty=empty, malformed=malformed, shard=Shard.parse(shard),
        columns=Columns(user, items, item, time), format=format, separator=separator,
        header=header if header == "auto" else header == "true",
        items_separator=items_separator, threads=threads, force=force, on=on,
        workers=workers,
    )  # fmt: skip
    scored = run(served_at(engine), settings, sys.stdout.write)
    now = scored.users - scored.resumed
    log.info(
        "scored %s users in %s, %s per second; %s without a known item: %s got the popular "
        "items, %s were left out",
        f"{now:,}", console.duration(scored.seconds), f"{now / scored.seconds:,.0f}",
        f"{scored.popular + scored.skipped:,}", f"{scored.popular:,}", f"{scored.skipped:,}",
    )  # fmt: skip
    if json:
        console.result_json(dataclasses.asdict(scored))
    elif output != "-":
        console.result(output)
