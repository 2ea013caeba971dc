"""The first lines of a report: a warning if the LLM does not rank better than SASRec.

A SASRec costs a hundredth of an LLM. If it ranks as well, readers must see that before any table.
If the LLM ranks better, the table is enough and there is no advice.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from slmc.evaluation.bootstrap import Bounds
from slmc.pipeline.points import ranking_metric
from slmc.report import numbers
from slmc.report.tables import (
    best_label,
    change_between,
    mean_of,
    measured_steps,
    teacher_of,
    user_tables,
)

if TYPE_CHECKING:
    from slmc.pipeline import RunResult, StepResult

VERBS = {"same": "does not rank better", "worse": "ranks worse", "better": "ranks better"}


@dataclass(frozen=True)
class AgainstSasrec:
    """A model or an engine compared with SASRec, paired over users."""

    step: str
    kind: str
    outcome: Literal["better", "same", "worse"]
    numbers: str
    """Both values, the change with its two-sided 95 % interval, and n."""


def advice(result: "RunResult") -> list[str]:
    """Sentences for people who read no further: how the LLM compares with SASRec.

    There are none for a smoke run, for a run without a teacher, and if both the teacher and the
    last model or engine made from it rank better than SASRec by the recipe's first ranking metric
    (paired over test users, two-sided 95 % interval).
    """
    metric, teacher = ranking_metric(result.recipe), teacher_of(result)
    if result.recipe.smoke or metric is None or teacher is None:
        return []
    llm = _against_sasrec(result, teacher, metric)
    if llm is None:
        return []
    last = _last_of_llm(result)
    shipped = _against_sasrec(result, last, metric) if last not in (None, teacher) else None
    return _comparison(llm, shipped) + _shipping(result, shipped or llm)


def _comparison(llm: AgainstSasrec, shipped: AgainstSasrec | None) -> list[str]:
    of_llm = f"LLM ({llm.step}) {VERBS[llm.outcome]} than SASRec: {llm.numbers}."
    if shipped is None:
        return [] if llm.outcome == "better" else [f"On this log the {of_llm}"]
    name = f"last {shipped.kind} of this run ({shipped.step})"
    of_shipped = f"{name} {VERBS[shipped.outcome]} than SASRec: {shipped.numbers}."
    if llm.outcome != "better":
        return [f"On this log the {of_llm}", f"The {of_shipped}"]
    return [] if shipped.outcome == "better" else [f"On this log the {of_shipped}", f"The {of_llm}"]


def _shipping(result: "RunResult", ours: AgainstSasrec) -> list[str]:
    """What to ship instead if SASRec ranks as well or better."""
    sasrec = next((step for step in result.steps if step.stage == "sasrec"), None)
    if ours.outcome == "better" or sasrec is None:
        return []
    size = numbers.megabytes(sasrec.artefact.manifest.metrics.get("size_mb"))
    ranks = "better" if ours.outcome == "worse" else "as well"
    engine = next((s for s in result.steps if _is_engine_of_sasrec(result, s)), None)
    how = f"`slmc export {_folder(result, sasrec)}`"
    if engine is not None:
        how = f"{engine.id}, its engine, is `{_folder(result, engine)}`"
    return [f"A SASRec of {size} MB ranks {ranks}. Consider shipping it instead: {how}."]


def _against_sasrec(result: "RunResult", label: str | None, metric: str) -> AgainstSasrec | None:
    """A model or engine compared with its SASRec; None if one of the two was not measured."""
    steps = measured_steps(result).get(label or "", [])
    if not steps or label is None:
        return None
    sasrec = result.tables.of_all(result.chooser.counterparts(steps, "sasrec"))
    ours, theirs = user_tables(result, label), sasrec or user_tables(result, "sasrec")
    value, other = (mean_of(tables, metric, result) for tables in (ours, theirs))
    interval = change_between(ours, theirs, metric, result)
    if interval is None:
        return None
    bounds = interval.relative or interval.absolute
    change = numbers.change(bounds, relative=interval.relative is not None)
    seeds = max(len(ours), len(theirs))
    over = f", mean over {seeds} seeds" if seeds > 1 else ""
    pair = f"{numbers.value(value)} against {numbers.value(other)}"
    return AgainstSasrec(
        step=label,
        kind=result.artefacts()[steps[0].id].manifest.kind,
        outcome=_outcome(bounds),
        numbers=f"{metric.upper()} {pair}, {change}, n = {ours[0].height:,}{over}",
    )


def _outcome(bounds: Bounds) -> Literal["better", "same", "worse"]:
    """The outcome by the two-sided 95 % interval in the sentence."""
    return "better" if bounds.low > 0 else "worse" if bounds.high < 0 else "same"


def _last_of_llm(result: "RunResult") -> str | None:
    """The last measured model or engine that was not made from SASRec, at its best point."""
    for steps in reversed(measured_steps(result).values()):
        if steps[0].is_candidate and not _is_from_sasrec(result, steps[0].id):
            return best_label(result, steps[0].written)
    return None


def _is_from_sasrec(result: "RunResult", step_id: str) -> bool:
    source = result.chooser.source(step_id)
    is_sasrec = result.recipe.step(step_id).stage == "sasrec"
    return is_sasrec or (source is not None and _is_from_sasrec(result, source))


def _is_engine_of_sasrec(result: "RunResult", step: "StepResult") -> bool:
    source = result.chooser.source(step.id) if step.stage == "export" else None
    return source is not None and result.recipe.step(source).stage == "sasrec"


def _folder(result: "RunResult", step: "StepResult") -> str:
    """The run's link to the artefact of a step."""
    number = [one.id for one in result.steps].index(step.id) + 1
    return str(result.run_dir / f"{number:02d}-{step.id}")
