"""The first lines of a report: whether what a run has made ranks better than a SASRec.

A SASRec costs a hundredth of an LLM. Where it ranks as well, whoever decides what is shipped has
to read that before any table; where the LLM ranks better, the table says all there is to say.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from slmc.evaluation.bootstrap import Bounds
from slmc.report import numbers
from slmc.report.tables import change_between, mean_of, ranking_metric, teacher_of, user_table

if TYPE_CHECKING:
    from slmc.pipeline import RunResult, StepResult

SAYS = {"same": "does not rank better", "worse": "ranks worse", "better": "ranks better"}


@dataclass(frozen=True)
class Beside:
    """A model or an engine beside SASRec, paired over users."""

    step: str
    kind: str
    outcome: Literal["better", "same", "worse"]
    numbers: str
    """Both values, the change with its two-sided 95 % interval, and n."""


def advice(result: "RunResult") -> list[str]:
    """What a run says of SASRec, in sentences for people who read no further.

    Nothing of a smoke run, of one that has no teacher (yet), and where both the teacher and the
    last model or engine that comes from it rank better than SASRec by the recipe's first ranking
    metric (paired over test users, two-sided 95 % interval).
    """
    metric, teacher = ranking_metric(result.recipe), teacher_of(result)
    if result.recipe.smoke or metric is None or teacher is None:
        return []
    llm = _beside(result, teacher, metric)
    if llm is None:
        return []
    last = _last_of_llm(result)
    shipped = _beside(result, last, metric) if last not in (None, teacher) else None
    return _said(llm, shipped) + _shipping(result, shipped or llm)


def _said(llm: Beside, shipped: Beside | None) -> list[str]:
    of_llm = f"LLM ({llm.step}) {SAYS[llm.outcome]} than SASRec: {llm.numbers}."
    if shipped is None:
        return [] if llm.outcome == "better" else [f"On this log the {of_llm}"]
    name = f"last {shipped.kind} of this run ({shipped.step})"
    of_shipped = f"{name} {SAYS[shipped.outcome]} than SASRec: {shipped.numbers}."
    if llm.outcome != "better":
        return [f"On this log the {of_llm}", f"The {of_shipped}"]
    return [] if shipped.outcome == "better" else [f"On this log the {of_shipped}", f"The {of_llm}"]


def _shipping(result: "RunResult", ours: Beside) -> list[str]:
    """What to ship instead of a model or an engine that SASRec is as good as."""
    made = next((step for step in result.steps if step.stage == "sasrec"), None)
    if ours.outcome == "better" or made is None:
        return []
    size = numbers.megabytes(made.artefact.manifest.metrics.get("size_mb"))
    ranks = "better" if ours.outcome == "worse" else "as well"
    engine = next((s for s in result.steps if _engine_of(result, s) == made.id), None)
    how = f"`slmc export {_folder(result, made)}`"
    if engine is not None:
        how = f"{engine.id}, its engine, is `{_folder(result, engine)}`"
    return [f"A SASRec of {size} MB ranks {ranks}: consider shipping that: {how}."]


def _beside(result: "RunResult", step_id: str | None, metric: str) -> Beside | None:
    """A step's model or engine beside SASRec; None where one was not measured so."""
    if step_id is None:
        return None
    ours, theirs = user_table(result, step_id), user_table(result, "sasrec")
    if ours is None or theirs is None:
        return None
    value, other = (mean_of(table, metric, result) for table in (ours, theirs))
    interval = change_between(ours, theirs, metric, result)
    if interval is None:
        return None
    bounds = interval.relative or interval.absolute
    change = numbers.change(bounds, relative=interval.relative is not None)
    pair = f"{numbers.value(value)} against {numbers.value(other)}"
    return Beside(
        step=step_id,
        kind=result.artefacts()[step_id].manifest.kind,
        outcome=_outcome(bounds),
        numbers=f"{metric.upper()} {pair}, {change}, n = {ours.height:,}",
    )


def _outcome(bounds: Bounds) -> Literal["better", "same", "worse"]:
    """What the interval that is shown (95 %, two-sided) says."""
    return "better" if bounds.low > 0 else "worse" if bounds.high < 0 else "same"


def _last_of_llm(result: "RunResult") -> str | None:
    """The last model or engine that was measured, of those that are not made of SASRec."""
    for step_id in reversed(list(result.evaluations)):
        if result.recipe.step(step_id).is_candidate and not _is_of_sasrec(result, step_id):
            return step_id
    return None


def _is_of_sasrec(result: "RunResult", step_id: str) -> bool:
    step = result.recipe.step(step_id)
    made_of = step.inputs.get("model")
    return step.stage == "sasrec" or (made_of is not None and _is_of_sasrec(result, made_of))


def _engine_of(result: "RunResult", step: "StepResult") -> str | None:
    """Id of the model that a step made an engine of; None if it made none."""
    if step.stage != "export":
        return None
    return result.recipe.step(step.id).inputs.get("model")


def _folder(result: "RunResult", step: "StepResult") -> str:
    """Where the run links to what a step has made."""
    number = [one.id for one in result.steps].index(step.id) + 1
    return str(result.run_dir / f"{number:02d}-{step.id}")
