"""The contents of a report, collected once for all its forms."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from slmc.artefact import Artefact
from slmc.pipeline.points import PointResult, ranking_metric
from slmc.report import depth
from slmc.report.advice import advice, texts_not_apart
from slmc.report.costs import costs, price_of
from slmc.report.curves import Curves, curves_of
from slmc.report.depth import DepthResult
from slmc.report.power import detectable
from slmc.report.same_time import TiedTargets, tied_targets
from slmc.report.tables import (
    Comparison,
    Row,
    Timing,
    compare_controls,
    rows_of,
    teacher_of,
    timings,
)
from slmc.report.targets import TargetTable, target_table
from slmc.report.training import encoder_layers, unfinished

if TYPE_CHECKING:
    from slmc.evaluation.verdict import Verdict
    from slmc.pipeline import RunResult


@dataclass(frozen=True)
class Judged:
    """A verdict, and whether it decides the exit code."""

    verdict: "Verdict"
    binding: bool

    @property
    def label(self) -> str:
        """``pass``, ``regression`` or ``inconclusive``, with a mark if it is not binding."""
        mark = ", anomalous" if self.verdict.anomalous else ""
        return f"{self.verdict.outcome}{mark}{'' if self.binding else ' (not binding)'}"


@dataclass(frozen=True)
class RanStep:
    """A step of the run."""

    id: str
    stage: str
    status: str
    seconds: float | None
    """Seconds that the step took, in this run or an earlier one."""
    key: str


@dataclass(frozen=True)
class View:
    """Everything that a report shows."""

    name: str
    advice: list[str]
    """First lines, if SASRec ranks as well as the models of the run."""
    description: str
    command: str
    smoke: bool
    seed: int
    metric: str
    """Metric in the main table."""
    protocol: str
    n: int
    teacher: str | None
    rows: list[Row]
    points: list[PointResult]
    """The repeated steps at each point, over their seeds; none without ``seeds`` and ``sweep``."""
    select_by: str
    """Validation metric that chose the best point and the best seed."""
    chosen: dict[str, str]
    """Name of each choice, such as ``distill@best`` -> id of the copy that was taken."""
    judged: list[Judged]
    comparisons: list[Comparison]
    timings: dict[str, list[Timing]]
    """Id of a bench step -> its timings."""
    machines: dict[str, dict[str, Any]]
    timed_how: str
    """Method of the timings, in words."""
    parity: dict[str, dict[str, Any]]
    """Id of an engine step -> its parity report."""
    data: dict[str, Any]
    versions: dict[str, str]
    steps: list[RanStep]
    targets: TargetTable | None
    """The metric by how often targets occur in training; None if there is nothing to show."""
    curves: list[Curves]
    tied: TiedTargets | None
    """The metric on targets with the time of the item before, and on later ones; None without."""
    depths: list[DepthResult]
    detectable: list[str]
    """Sentences on the smallest loss that the test set can detect."""
    notes: list[str] = field(default_factory=list)
    ended: tuple[str, str] | None = None
    """Step that ended the run early, and the message of its check."""
    last: Artefact | None = None
    """The last model or engine that was measured."""
    last_step: str = ""
    """Id of its step."""
    last_source: str | None = None
    """Id of the model that it was made from, if that was chosen on validation."""

    @property
    def failed(self) -> bool:
        """Whether a binding gate failed, or the run ended early."""
        gates = any(one.binding and one.verdict.failed for one in self.judged)
        return gates or self.ended is not None

    @property
    def state(self) -> str:
        """Outcome of the run, in a sentence."""
        if self.ended is not None:
            step, why = self.ended
            return f"The run ended at step {step}. {why}"
        if self.failed:
            return "A gate failed."
        return "All binding gates passed." if self.judged else "There was no gate to judge."

    @property
    def caption(self) -> str:
        """Explains the numbers of the main table."""
        against = (
            f" Changes are relative to {self.teacher}, for the same users (paired bootstrap)."
            if self.teacher
            else ""
        )
        over = (
            " Steps that are repeated have the mean over their seeds, with intervals for new users "
            "and new seeds."
        ) * any(point.seeds for point in self.points)
        unfinished = any(row.still_improving for row in self.rows)
        return (
            f"{self.metric.upper()}: {self.protocol}, n = {self.n:,} users.{against} "
            f"Intervals are two-sided 95 %; ± is half their width.{over}"
            + unfinished
            * " * ranking still improved when training ended."
        )


def view_of(result: "RunResult") -> View:
    """Collect the contents of a report from a finished run."""
    from slmc.evaluation.results import summary_text

    recipe = result.recipe
    artefacts = result.artefacts()
    summaries = {
        step_id: json.loads(report.file("metrics.json").read_bytes())
        for step_id, report in result.evaluations.items()
    }
    first: Mapping[str, Any] = next(iter(summaries.values()), {})
    repeats: float = artefacts["prepare"].manifest.metrics["valid_repeats"] if first else 0.0
    metric = ranking_metric(recipe) or recipe.evaluate.metrics[0]
    teacher = teacher_of(result)
    last_step = next(reversed(result.evaluations), "")
    source = result.chooser.source(last_step) if last_step else None
    benches = [step for step in recipe.steps if step.stage == "bench" and step.id in artefacts]
    bench = {step.id: _read(artefacts[step.id], "metrics.json") for step in benches}
    taken = {step.id: result.chooser.inputs_of(step) for step in benches}
    times = {s.id: timings(artefacts[s.id], taken[s.id], price_of(s)) for s in benches}
    judged = [Judged(v, i not in result.advisory) for i, v in enumerate(result.verdicts)]
    comparisons = compare_controls(result)
    rows = rows_of(result, metric=metric, teacher=teacher, timed=times)
    engines = [s for s in result.evaluations if artefacts[s].manifest.kind == "engine"]
    return View(
        name=recipe.name,
        advice=advice(result),
        description=recipe.description,
        command=recipe.command,
        smoke=recipe.smoke,
        seed=recipe.seed,
        metric=metric,
        protocol=summary_text(first, repeats) if first else "nothing was measured",
        n=int(first["n"]) if first else 0,
        teacher=teacher,
        rows=rows,
        points=result.points,
        select_by=recipe.select_by,
        chosen=result.chooser.chosen,
        judged=judged,
        comparisons=comparisons,
        timings=times,
        machines={
            s: report["machine"] | {"threads": report["threads"]} for s, report in bench.items()
        },
        timed_how=next((report["protocol"] for report in bench.values()), ""),
        parity={s: _read(artefacts[s], "parity.json") for s in engines},
        data=_data(result),
        versions=_versions(result),
        steps=[RanStep(s.id, s.stage, s.status, s.seconds, s.key.digest) for s in result.steps],
        tied=tied_targets(result, metric, [row.step for row in rows]),
        targets=target_table(result, metric, rows),
        curves=curves_of(result.run_dir / "log.jsonl"),
        depths=[depth.result(s.id, s.artefact) for s in result.steps if s.stage == "depth"],
        detectable=detectable(result, teacher, rows),
        notes=[
            *costs(benches, times),
            *texts_not_apart(result),
            *encoder_layers(result),
            *unfinished(result),
            *result.notes,
        ],
        ended=(ended.step, ended.error.what) if (ended := result.ended) is not None else None,
        last=artefacts.get(last_step),
        last_step=last_step,
        last_source=source if source in result.chooser.chosen.values() else None,
    )


def _read(artefact: Artefact, name: str) -> dict[str, Any]:
    if name not in artefact.manifest.files:
        return {}
    content = json.loads((artefact.path / name).read_bytes())
    return content if isinstance(content, dict) else {}


def _data(result: "RunResult") -> dict[str, Any]:
    prepared = next((s.artefact for s in result.steps if s.stage == "prepare"), None)
    if prepared is None:
        return {}
    settings = prepared.manifest.config
    chosen = {name: settings.get(name) for name in ("source", "core", "history", "split", "users")}
    # A cached dataset may have been made from the same files at another path.
    return chosen | {"source": result.recipe.data.source} | prepared.manifest.metrics


def _versions(result: "RunResult") -> dict[str, str]:
    versions: dict[str, str] = {}
    for step in result.steps:
        versions |= step.artefact.manifest.versions
    return versions
