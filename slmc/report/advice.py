"""The first lines of a report: what texts bring, and whether the LLM ranks better than SASRec.

A SASRec costs a hundredth of an LLM. If it ranks as well, readers must see that before any table.
If the LLM ranks better, the table is enough. Where item vectors come from texts, the gain of the
texts and that of the LLM are told apart: the LLM is compared with a SASRec with the same texts.
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
    import polars as pl

    from slmc.pipeline import RunResult, StepResult

VERBS = {"same": "does not rank better", "worse": "ranks worse", "better": "ranks better"}
TEXTS = {
    "better": "Texts raise SASRec's {metric} by {size}",
    "worse": "Texts lower SASRec's {metric} by {size}",
    "same": "Texts do not change SASRec's {metric} significantly",
}


@dataclass(frozen=True)
class Against:
    """A model or an engine compared with a SASRec, paired over users."""

    step: str
    kind: str
    sasrec: str
    """Id of the SASRec as written."""
    named: str
    """The SASRec in a sentence: ``SASRec``, or ``SASRec with the same texts``."""
    metric: str
    value: float | None
    other: float | None
    bounds: Bounds
    """The change, relative unless the SASRec's value is 0; two-sided 95 % interval."""
    relative: bool
    n: int
    seeds: int
    """Training seeds over whose mean the two are compared."""

    @property
    def outcome(self) -> Literal["better", "same", "worse"]:
        """The outcome by the interval."""
        return "better" if self.bounds.low > 0 else "worse" if self.bounds.high < 0 else "same"

    @property
    def change(self) -> str:
        """The change with its interval."""
        return numbers.change(self.bounds, relative=self.relative)

    @property
    def size(self) -> str:
        """The change without the sign of its mean, for a sentence that says its direction."""
        return self.change[1:]

    @property
    def values(self) -> str:
        """Metric and both values."""
        pair = f"{numbers.value(self.value)} against {numbers.value(self.other)}"
        return f"{self.metric.upper()} {pair}"

    @property
    def users(self) -> str:
        """Number of users, and of seeds if there are several."""
        return f"n = {self.n:,}" + f", mean over {self.seeds} seeds" * (self.seeds > 1)

    @property
    def numbers(self) -> str:
        """Both values, the change with its interval, and n."""
        return f"{self.values}, {self.change}, {self.users}"


def advice(result: "RunResult") -> list[str]:
    """Sentences for people who read no further: what texts bring, and what the LLM brings.

    There are none for a smoke run. Texts have a sentence if the run has a SASRec with texts and one
    without. The LLM has none if both the teacher and the last model or engine made from it rank
    better than a SASRec on ids by the recipe's first ranking metric (paired over test users,
    two-sided 95 % interval).
    """
    metric, teacher = ranking_metric(result.recipe), teacher_of(result)
    if result.recipe.smoke or metric is None:
        return []
    lines = _of_texts(result, metric)
    llm = _against_sasrec(result, teacher, metric) if teacher is not None else None
    if llm is None:
        return lines
    last = _last_of_llm(result)
    shipped = _against_sasrec(result, last, metric) if last not in (None, teacher) else None
    return lines + _comparison(llm, shipped) + _shipping(result, shipped or llm)


def texts_not_apart(result: "RunResult") -> list[str]:
    """Say which step is missing if the gain of the LLM cannot be told apart from that of texts."""
    teacher = teacher_of(result)
    if teacher is None or result.recipe.smoke or not _has_texts(result, teacher):
        return []
    if with_and_without_texts(result)[0] is not None:
        return []
    return [
        f"the item vectors of {teacher} come from texts and those of SASRec do not: with a step "
        "`sasrec: {id: text, item_embeddings: hybrid, encoder: …}` the report tells apart what the "
        "texts bring and what the LLM brings"
    ]


def with_and_without_texts(result: "RunResult") -> tuple[str | None, str | None]:
    """Ids as written of the SASRec with texts and of the one on ids; None without a measured one.

    The SASRec among the baselines comes first, then the last measured one.
    """
    baseline = result.recipe.baseline_sasrec
    steps = [step.written for step in result.recipe.steps if step.stage == "sasrec"]
    written = dict.fromkeys((baseline, *reversed(steps)))
    measured = [one for one in written if sasrec_tables(result, one)]
    texts = next((one for one in measured if result.recipe.has_texts(one)), None)
    ids = next((one for one in measured if not result.recipe.has_texts(one)), None)
    return texts, ids


def sasrec_tables(result: "RunResult", written: str) -> "list[pl.DataFrame]":
    """Per-user tables of a SASRec, one for each seed; none if it has several points."""
    copies = result.recipe.copies(written)
    return result.tables.of_all(copies) if len({step.label for step in copies}) == 1 else []


def _of_texts(result: "RunResult", metric: str) -> list[str]:
    """What texts bring to SASRec."""
    texts, ids = with_and_without_texts(result)
    if texts is None or ids is None:
        return []
    tables = sasrec_tables(result, texts), sasrec_tables(result, ids)
    change = _compared(result, *tables, metric, step=texts, kind="model", sasrec=ids, named="")
    if change is None:
        return []
    start = TEXTS[change.outcome].format(metric=metric.upper(), size=change.size)
    middle = f" ({change.change})" if change.outcome == "same" else ""
    pair = f"{numbers.value(change.value)} ({texts}) against {numbers.value(change.other)} ({ids})"
    return [f"{start}{middle}: {pair}, {change.users}."]


def _comparison(llm: Against, shipped: Against | None) -> list[str]:
    of_llm = f"LLM ({llm.step}) {VERBS[llm.outcome]} than {llm.named}: {llm.numbers}."
    if llm.outcome == "better" and llm.named != "SASRec":
        of_llm = f"LLM ({llm.step}) adds {llm.size} to {llm.named}: {llm.values}, {llm.users}."
    if shipped is None or (llm.outcome == shipped.outcome == "better"):
        if llm.outcome == "better":
            return [] if llm.named == "SASRec" else [f"The {of_llm}"]
        return [f"On this log the {of_llm}"]
    name = f"last {shipped.kind} of this run ({shipped.step})"
    of_shipped = f"{name} {VERBS[shipped.outcome]} than {shipped.named}: {shipped.numbers}."
    if llm.outcome != "better":
        return [f"On this log the {of_llm}", f"The {of_shipped}"]
    return [f"On this log the {of_shipped}", f"The {of_llm}"]


def _shipping(result: "RunResult", ours: Against) -> list[str]:
    """What to ship instead if SASRec ranks as well or better."""
    written = {step.id: step.written for step in result.recipe.steps}
    sasrec = next((step for step in result.steps if written.get(step.id) == ours.sasrec), None)
    if ours.outcome == "better" or sasrec is None:
        return []
    size = numbers.megabytes(sasrec.artefact.manifest.metrics.get("size_mb"))
    ranks = "better" if ours.outcome == "worse" else "as well"
    engine = next((s for s in result.steps if _is_engine_of(result, s, ours.sasrec)), None)
    how = f"`slmc export {_folder(result, sasrec)}`"
    if engine is not None:
        how = f"{engine.id}, its engine, is `{_folder(result, engine)}`"
    return [f"A SASRec of {size} MB ranks {ranks}. Consider shipping it instead: {how}."]


def _against_sasrec(result: "RunResult", label: str | None, metric: str) -> Against | None:
    """A model or engine compared with its SASRec; None if one of the two was not measured.

    A model whose item table came from texts is compared with a SASRec with texts if there is one.
    """
    steps = measured_steps(result).get(label or "", [])
    if not steps or label is None:
        return None
    texts, _ = with_and_without_texts(result)
    sasrec, named = result.recipe.baseline_sasrec, "SASRec"
    if texts is not None and result.recipe.has_texts(steps[0].written):
        sasrec, named = texts, "SASRec with the same texts"
    own = result.tables.of_all(result.chooser.counterparts(steps, sasrec))
    return _compared(
        result,
        user_tables(result, label),
        own or sasrec_tables(result, sasrec),
        metric,
        step=label,
        kind=result.artefacts()[steps[0].id].manifest.kind,
        sasrec=sasrec,
        named=named,
    )


def _compared(
    result: "RunResult",
    ours: "list[pl.DataFrame]",
    theirs: "list[pl.DataFrame]",
    metric: str,
    *,
    step: str,
    kind: str,
    sasrec: str,
    named: str,
) -> Against | None:
    interval = change_between(ours, theirs, metric, result)
    if interval is None:
        return None
    return Against(
        step=step,
        kind=kind,
        sasrec=sasrec,
        named=named,
        metric=metric,
        value=mean_of(ours, metric, result),
        other=mean_of(theirs, metric, result),
        bounds=interval.relative or interval.absolute,
        relative=interval.relative is not None,
        n=ours[0].height,
        seeds=max(len(ours), len(theirs)),
    )


def _has_texts(result: "RunResult", label: str) -> bool:
    steps = measured_steps(result).get(label, [])
    return bool(steps) and result.recipe.has_texts(steps[0].written)


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


def _is_engine_of(result: "RunResult", step: "StepResult", sasrec: str) -> bool:
    source = result.chooser.source(step.id) if step.stage == "export" else None
    return source is not None and result.recipe.step(source).written == sasrec


def _folder(result: "RunResult", step: "StepResult") -> str:
    """The run's link to the artefact of a step."""
    number = [one.id for one in result.steps].index(step.id) + 1
    return str(result.run_dir / f"{number:02d}-{step.id}")
