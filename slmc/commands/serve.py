"""``slmc serve ENGINE...``."""

from pathlib import Path
from typing import Annotated

import typer

from slmc.commands import console
from slmc.commands.shared import command

app = typer.Typer(add_completion=False)

LIMITS = "Limits"


@command(app)
def serve(
    engines: Annotated[
        list[str],
        typer.Argument(
            metavar="ENGINE...", help="An engine or a run: PATH, or NAME=PATH to name it."
        ),
    ],
    host: Annotated[
        str, typer.Option("--host", help="Address; 0.0.0.0: all of this machine.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="0: any free port.")
    ] = 8000,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Cores to use; default: all.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Reload an engine when its path leads to another one.")
    ] = False,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file", metavar="FILE",
            help="Answer only requests with this token; default: SLMC_TOKEN, if set.",
        ),
    ] = None,
    batch: Annotated[
        int,
        typer.Option(
            "--batch", min=1, help="Largest number of requests in a call.", rich_help_panel=LIMITS
        ),
    ] = 32,
    wait_ms: Annotated[
        float,
        typer.Option(
            "--wait-ms", min=0, rich_help_panel=LIMITS,
            help="Longest wait for others to share a call, while another call is computed.",
        ),
    ] = 2.0,
    queue: Annotated[
        int,
        typer.Option(
            "--queue", min=1, rich_help_panel=LIMITS,
            help="Requests of an engine at a time; others get 429.",
        ),
    ] = 256,
    deadline_ms: Annotated[
        float,
        typer.Option(
            "--deadline-ms", min=1, rich_help_panel=LIMITS, help="Time for an answer; then 504."
        ),
    ] = 2000.0,
    body_bytes: Annotated[
        int,
        typer.Option(
            "--body-bytes", min=1, rich_help_panel=LIMITS, help="Largest body; else 413."
        ),
    ] = 2**20,
    request_s: Annotated[
        float,
        typer.Option(
            "--request-s", min=0.1, rich_help_panel=LIMITS,
            help="Seconds for sending a request, and for reading its answer.",
        ),
    ] = 10.0,
    drain_s: Annotated[
        float,
        typer.Option(
            "--drain-s", min=0.1, rich_help_panel=LIMITS,
            help="Seconds for open requests after SIGTERM.",
        ),
    ] = 8.0,
) -> int:  # fmt: skip
    """Serve engines over HTTP: recommendations, search, metrics, a page to try them."""
    from slmc.server.settings import Settings, check_extra, named, read_token

    settings = Settings(
        host=host, port=port, threads=threads, batch=batch, wait_ms=wait_ms, queue=queue,
        deadline_ms=deadline_ms, body_bytes=body_bytes, request_s=request_s, drain_s=drain_s,
        watch=watch, token=read_token(token_file),
    )  # fmt: skip
    paths = named(engines)
    check_extra()
    from slmc.server.run import serve as run

    return run(paths, settings, _show)


def _show(url: str) -> None:
    console.result(url)
    console.flush()
