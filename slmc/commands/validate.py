"""``slmc validate CANDIDATE --baseline B --max-drop ndcg@10=1%``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from slmc.artefact import Artefact, is_key
from slmc.commands import console, inputs
from slmc.commands.options import configured
from slmc.commands.shared import Data, Json, command
from slmc.errors import UndecidedError, UsageError
from slmc.evaluation.config import EvaluateConfig
from slmc.evaluation.gates import Gate
from slmc.recipe.checks import reasons
from slmc.recipe.text import scalar
from slmc.stages import EVALUATIONS, evaluation

app = typer.Typer(add_completion=False)

COMMAND = "slmc validate"
DEFAULT_METRIC = "ndcg@10"
GATES = "Gates"
ROLES = ("candidate", "baseline")


def _gate(name: str, metavar: str, text: str) -> Any:
    return typer.Option(name, metavar=metavar, help=text, rich_help_panel=GATES)


@command(app, "validate")
@configured(EvaluateConfig, COMMAND)
def validate(
    candidate: Annotated[
        Path, typer.Argument(metavar="CANDIDATE", help="The engine or model to judge.")
    ],
    config: EvaluateConfig,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", help="The engine or model to compare with.")
    ] = None,
    max_drop: Annotated[
        list[str] | None, _gate("--max-drop", "METRIC=BUDGET", "Largest loss, such as ndcg@10=1%.")
    ] = None,
    min: Annotated[
        list[str] | None, _gate("--min", "METRIC=VALUE", "Smallest value, such as overlap@10=0.9.")
    ] = None,
    max: Annotated[
        list[str] | None, _gate("--max", "METRIC=VALUE", "Largest value, such as size_mb=64.")
    ] = None,
    confidence: Annotated[
        str | None, _gate("--confidence", "SHARE", r"One-sided confidence.  \[default: 0.95]")
    ] = None,
    segment: Annotated[
        str | None,
        _gate(
            "--segment",
            "NAME",
            "Users to count: all, cold-users, tail-items, long-histories, new-items, same-time or "
            "later.",
        ),
    ] = None,
    anomalous: Annotated[
        str | None,
        _gate(
            "--anomalous", "warn|fail", "What to do if an engine is 5 % better than its own model."
        ),
    ] = None,
    data: Data = None,
    json: Json = False,
) -> int:
    """Judge a model or an engine against a baseline; exit 1 if it fails."""
    shared = {"confidence": confidence, "segment": segment, "anomalous": anomalous}
    bounds = {"max_drop": max_drop, "min": min, "max": max}
    gates = [
        _read(bound, text, candidate, baseline, shared)
        for bound, texts in bounds.items()
        for text in texts or ()
    ]
    if not gates:
        raise UndecidedError(
            "there is no gate, so there is nothing to decide.",
            "Add a gate such as --max-drop ndcg@10=1% or --max size_mb=64.",
        )
    judged = inputs.artefact_at(candidate)
    against = inputs.artefact_at(baseline) if baseline is not None else None
    dataset = inputs.dataset_for(judged, data)
    reports = [(a, measure(a, dataset, config)) for a in (judged, against) if a is not None]
    made_from = judged.manifest.parents.get("model")
    of_same_model = against is not None and made_from == against.digest
    return _judge(
        gates,
        reports,
        config.seed,
        of_same_model=of_same_model,
        valid_repeats=dataset.manifest.metrics.get("valid_repeats"),
        as_json=json,
    )


def _read(
    bound: str, text: str, candidate: Path, baseline: Path | None, shared: dict[str, str | None]
) -> Gate:
    """The gate of ``METRIC=VALUE``; ``--max-drop`` has a default metric."""
    option = f"--{bound.replace('_', '-')}"
    metric, equals, value = text.rpartition("=")
    if not equals and bound == "max_drop":
        metric = DEFAULT_METRIC
    compares = bound == "max_drop" or metric.startswith("overlap@")
    if not metric or (compares and baseline is None):
        what = "expected METRIC=VALUE" if not metric else "needs a --baseline to compare with"
        raise UsageError(f"{option} {text}: {what}.", f"See `{COMMAND} --help`.")
    raw = {"metric": metric, "on": str(candidate), bound: scalar(value)}
    raw |= {"baseline": str(baseline)} if compares else {}
    raw |= {name: scalar(value) for name, value in shared.items() if value is not None}
    gate, wrong = reasons(Gate, raw)
    if gate is None:
        faults = [
            f"--{one.path[0]}: {one.what}" if one.path and one.path[0] in shared else one.what
            for one in wrong
        ]
        raise UsageError(f"{option} {text}: {'; '.join(faults)}", f"See `{COMMAND} --help`.")
    return gate


def measure(artefact: Artefact, dataset: Artefact, config: EvaluateConfig) -> Artefact:
    """The evaluation report of a model or an engine, from the cache if possible."""
    from slmc.pipeline import run_stage

    kind = artefact.manifest.kind
    if kind not in EVALUATIONS:
        raise UsageError(
            f"{artefact.path} is a {kind}, which cannot rank items.",
            "Name a model or an engine.",
        )
    return run_stage(*evaluation(kind, config), {"data": dataset, kind: artefact})


def label(artefact: Artefact) -> str:
    """Name of an artefact in messages: its path, or in the cache its stage and key."""
    name = artefact.path.name
    return f"{artefact.manifest.stage} {name[:12]}" if is_key(name) else str(artefact.path)


def _judge(
    gates: Sequence[Gate],
    reports: Sequence[tuple[Artefact, Artefact]],
    seed: int,
    *,
    of_same_model: bool,
    valid_repeats: float | None,
    as_json: bool,
) -> int:
    from slmc.evaluation.judge import judge
    from slmc.pipeline.judging import described, measured_as, summary_of
    from slmc.report.power import power_lines
    from slmc.report.terminal import metric_table, verdict_table

    measured = [measured_as(label(judged), judged, report) for judged, report in reports]
    candidate, baseline = measured[0], measured[1] if len(measured) > 1 else None
    verdicts = [
        judge(gate, candidate, baseline, seed=seed, of_same_model=of_same_model) for gate in gates
    ]
    failed = any(verdict.failed for verdict in verdicts)
    power = power_lines(gates, candidate, baseline) if baseline is not None else []
    if as_json:
        rows = [described(verdict) for verdict in verdicts]
        summaries = dict(zip(ROLES, (summary_of(report) for _, report in reports), strict=False))
        console.result_json(
            {"passed": not failed, "verdicts": rows, "power": power, "measured": summaries}
        )
        return int(failed)
    named = zip(ROLES, reports, strict=False)
    summaries = {f"{role}: {label(a)}": summary_of(report) for role, (a, report) in named}
    names = reports[0][1].manifest.config["metrics"]
    console.show(metric_table(summaries, names, valid_repeats))
    console.show(verdict_table(verdicts))
    for text in [*(verdict.sentence for verdict in verdicts), *power]:
        console.result(text)
    return int(failed)
