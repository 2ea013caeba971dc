"""``slmc data prepare|check|describe``."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slmc.commands import console, inputs, running
from slmc.commands.options import configured
from slmc.commands.shared import Force, Json, Out, command, not_empty
from slmc.data.config import PrepareConfig
from slmc.evaluation.config import EvaluateConfig
from slmc.report.numbers import plain

if TYPE_CHECKING:
    from slmc.data.check import CheckResult

app = typer.Typer(no_args_is_help=True, add_completion=False)

Source = Annotated[
    str,
    typer.Argument(metavar="SOURCE", help="A path, a glob, a URL, or pypi://…", parser=not_empty),
]
Make = Callable[..., PrepareConfig]
SHOWN_MALFORMED = 10
METRIC = "ndcg@10"


@app.callback()
def group() -> None:
    """Prepare, check and describe a dataset."""


@command(app, network=True)
@configured(PrepareConfig, "slmc data prepare", skip=("source",))
def prepare(
    source: Source,
    make: Make,
    out: Out = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Make a dataset of histories from an interaction log."""
    config = make(source=source)
    running.run("prepare", config, {}, out=out, force=force, as_json=json)


@command(app, network=True)
@configured(PrepareConfig, "slmc data check", skip=("source",))
def check(source: Source, make: Make, json: Json = False) -> int:
    """Read a log as `prepare` does, write nothing, and report what its test set can detect."""
    from slmc.data.check import check as check_log
    from slmc.data.check import repeats_line, tie_lines

    config = make(source=source)
    result = check_log(config)
    power = _power(result)
    repeats, problem = repeats_line(result.dataset.repeats), result.problem
    ties = tie_lines(result.metrics, config.ties)
    if json:
        console.result_json(
            {
                "metrics": result.metrics,
                "malformed": result.malformed.head(SHOWN_MALFORMED).to_dicts(),
                "problem": problem.what if problem is not None else None,
                "repeats": repeats,
                "ties": ties,
                "power": power,
            }
        )
    else:
        print_values(result.metrics)
        for row in result.malformed.head(SHOWN_MALFORMED).iter_rows(named=True):
            console.result(f"{row['file']}:{row['line']}: {row['reason']}")
        for line in (repeats, *ties, *power):
            console.result(line)
    if problem is not None:
        raise problem
    return 0


@command(app)
def describe(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A dataset artefact.")],
    json: Json = False,
) -> None:
    """Show the statistics of a dataset."""
    from slmc.data.check import describe as statistics_of
    from slmc.data.check import repeats_line

    statistics = statistics_of(inputs.artefact_at(dataset, "dataset"))
    if json:
        console.result_json(statistics)
    else:
        print_values(statistics)
        console.result(repeats_line(statistics["valid_repeats"]))


def print_values(values: dict[str, Any], indent: str = "") -> None:
    """Print names and values; nested values are indented."""
    for name, value in values.items():
        if isinstance(value, dict):
            console.result(f"{indent}{name}:")
            print_values(value, indent + "  ")
        else:
            console.result(f"{indent}{name}: {plain(value)}")


def _power(result: "CheckResult") -> list[str]:
    """The smallest loss that the test set can detect, from the ranking of a Markov chain."""
    from slmc.evaluation.baselines import measure_markov
    from slmc.evaluation.results import protocol, resolve_auto
    from slmc.report.power import power_line

    data = result.dataset
    config = resolve_auto(EvaluateConfig(metrics=(METRIC, "ce")), data)
    if not data.targets("test").users:
        return ["no user has a test target: there is nothing to rank"]
    ranked = measure_markov(data, config)
    return [power_line(metric, ranked, protocol(config)) for metric in config.metrics]
