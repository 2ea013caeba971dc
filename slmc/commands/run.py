"""``slmc run RECIPE``."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slmc import processes
from slmc.commands import console
from slmc.commands.shared import Json, command
from slmc.config import size_text

if TYPE_CHECKING:
    from slmc.pipeline import PlannedStep, RunResult, StepResult

log = logging.getLogger("slmc.run")
app = typer.Typer(add_completion=False)

STATUS = {"hit": "in the cache", "resume": "resuming", "run": "running"}


@command(app, "run", network=True)
def run(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A packaged name or a path.")],
    lines: console.JsonLines,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override a value, such as distill.layers=2."
        ),
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="STEP", help="Stop after this step.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show what would run and why; run nothing.")
    ] = False,
    smoke: Annotated[
        bool,
        typer.Option("--smoke", help="Run on a random backbone and few users, in under a minute."),
    ] = False,
    runs: Annotated[Path, typer.Option("--runs", help="Folder for the folders of runs.")] = Path(
        "runs"
    ),
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder of this run; default: RUNS/NAME.")
    ] = None,
    json: Json = False,
) -> int:
    """Run a recipe: every stage, the gates, the report."""
    from slmc import pipeline, report
    from slmc.recipe import load

    loaded = load(recipe, sets=sets or (), smoke=smoke)
    folder = out or runs / pipeline.default_run_dir(loaded).name
    if plan:
        _print_plan(pipeline.plan(loaded, run_dir=folder, until=until), as_json=json)
        return 0

    def watch(step: "PlannedStep | StepResult") -> None:
        lines.open(folder / "log.jsonl")
        lines.step = step.id
        _log_step(step)

    if not processes.is_main():
        return pipeline.exit_code(pipeline.join(loaded, until=until))
    result = pipeline.run(loaded, run_dir=folder, until=until, on_step=watch, report=report.write)
    _print_result(result, as_json=json)
    return pipeline.exit_code(result)


def _log_step(step: "PlannedStep | StepResult") -> None:
    from slmc.pipeline import StepResult

    if not isinstance(step, StepResult):
        detail = f" (changed: {', '.join(step.changed)})" if step.changed else ""
        log.info("%s: %s%s", step.id, STATUS[step.status], detail if step.status != "hit" else "")
    elif step.status != "hit" and step.seconds is not None:
        log.info("%s: done in %s", step.id, console.duration(step.seconds))


def _print_plan(steps: "list[PlannedStep]", *, as_json: bool) -> None:
    from rich.table import Table

    if as_json:
        rows = [
            {
                "id": step.id,
                "stage": step.stage,
                "key": step.key.digest if step.key else None,
                "status": step.status,
                "changed": step.changed,
                "states_bytes": step.states_bytes,
            }
            for step in steps
        ]
        console.result_json(rows)
        return
    table = Table("step", "plan", "key", "changed since the last run", box=None, pad_edge=False)
    for step in steps:
        key = step.key.digest[:12] if step.key else "not known yet"
        table.add_row(step.id, step.status, key, ", ".join(step.changed))
    console.show(table)
    for step in steps:
        if step.states_bytes:
            log.info("%s: the teacher's states take %s", step.id, size_text(step.states_bytes))


def _print_result(result: "RunResult", *, as_json: bool) -> None:
    from slmc import pipeline
    from slmc.report.advice import advice
    from slmc.report.terminal import run_table
    from slmc.report.view import view_of

    if as_json:
        files = [str(file) for file in result.files]
        console.result_json(
            {
                "run_dir": str(result.run_dir),
                "advice": advice(result),
                "exit_code": pipeline.exit_code(result),
                "files": files,
                **pipeline.summary(result),
            }
        )
        return
    console.show(run_table(view_of(result)), aside=True)
    for file in result.files:
        log.info("wrote %s", file)
    console.result(str(result.run_dir))
