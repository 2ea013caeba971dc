"""Judge the gates of a recipe on the evaluations of a run."""

import dataclasses
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from slmc.artefact import Artefact, size_mb
from slmc.config import parse_budget
from slmc.errors import RecipeError
from slmc.evaluation.gates import Gate
from slmc.pipeline.choosing import Chooser
from slmc.recipe import Recipe
from slmc.recipe.copies import BEST
from slmc.recipe.steps import COPY, Step

if TYPE_CHECKING:
    from slmc.evaluation.results import Evaluation
    from slmc.evaluation.verdict import Verdict

log = logging.getLogger("slmc.pipeline.judging")


@dataclass
class Judgement:
    """The verdicts on the gates of a recipe."""

    verdicts: list["Verdict"] = field(default_factory=list)
    advisory: set[int] = field(default_factory=set)
    """Positions in ``verdicts`` that do not decide the exit code."""
    notes: list[str] = field(default_factory=list)


def judge_gates(
    recipe: Recipe,
    artefacts: Mapping[str, Artefact],
    evaluations: Mapping[str, Artefact],
    chooser: Chooser,
) -> Judgement:
    """Judge every gate whose model or engine, and whose baseline, have an evaluation.

    A step that is repeated with several seeds is judged by the mean over the seeds.

    Args:
        recipe: The recipe.
        artefacts: Step id -> artefact.
        evaluations: Id of a model or engine step -> report of its evaluation.
        chooser: The copies that belong together.
    """
    from slmc.evaluation.judge import judge_over_seeds

    result = Judgement()
    for gate in recipe.gates:
        judged = chooser.copies(gate.on) if gate.on is not None else []
        others = chooser.counterparts(judged, gate.baseline) if gate.baseline is not None else []
        absent = _absent(gate.on, judged, evaluations)
        if gate.baseline is not None and judged:
            absent += _absent(gate.baseline, others, evaluations)
        if absent or gate.on is None:
            result.notes.append(
                f"gate {gate.metric} on {gate.on}: not judged; steps that did not run: "
                f"{', '.join(absent)}"
            )
            continue
        if not recipe.is_binding(gate):
            result.advisory.add(len(result.verdicts))
            result.notes.append(
                f"gate {gate.metric} on {gate.on}: judged, but not binding: the models of a smoke "
                "run are nearly random"
            )
        candidates, baselines = (
            [measured_as(_name(steps), artefacts[s.id], evaluations[s.id]) for s in steps]
            for steps in (judged, others)
        )
        verdict = judge_over_seeds(
            gate,
            candidates,
            baselines,
            seed=recipe.seed,
            of_same_model=recipe.is_of_same_model(gate),
        )
        chosen = gate.on.endswith(f"{COPY}{BEST}") and len(recipe.sweep.points) > 1
        result.verdicts.append(dataclasses.replace(verdict, chosen=chosen))
    return result


def _absent(
    reference: str | None, steps: Sequence[Step], evaluations: Mapping[str, Artefact]
) -> list[str]:
    """The steps that a gate needs and that were not evaluated."""
    return [s.id for s in steps if s.id not in evaluations] if steps else [str(reference)]


def _name(steps: Sequence[Step]) -> str:
    """Name of one copy, or of all seeds of a point."""
    return steps[0].id if len(steps) == 1 else steps[0].label


def check_power(recipe: Recipe, baselines: Artefact) -> list[str]:
    """Report, before the long steps, the gates for which the test set is too small.

    The estimate uses the variance of Markov-1's values over users, and assumes a correlation of
    0.9 between candidate and baseline. An engine and its own model have a correlation of about 1,
    so their gates are skipped; so are gates that are not binding.

    Args:
        recipe: The recipe.
        baselines: Report of the stage ``baselines``.

    Returns:
        A note for each gate that a candidate as good as its baseline would likely fail.

    Raises:
        RecipeError: There is such a gate, and the recipe has ``power: stop``.
    """
    notes = [
        note
        for gate in recipe.gates
        if gate.max_drop is not None
        and recipe.is_binding(gate)
        and not recipe.is_of_same_model(gate)
        and (note := _power_note(gate, recipe, baselines))
    ]
    if notes and recipe.power == "stop":
        raise RecipeError(
            "\n".join(notes),
            "Raise max_drop or use a log with more users; with `power: warn` the run continues.",
        )
    for note in notes:
        log.warning("%s", note)
    return notes


def _power_note(gate: Gate, recipe: Recipe, baselines: Artefact) -> str | None:
    import polars as pl

    from slmc.evaluation.power import ASSUMED_CORRELATION, POWER, detectable_drop, pass_chance
    from slmc.evaluation.results import segment_mask, values

    split = recipe.evaluate.split
    users = pl.read_parquet(baselines.file(f"markov/{split}.parquet"))
    ranked = protocol_of(baselines, split)
    numbers = values(users, gate.metric, ranked)[segment_mask(users, gate.segment)]
    budget, relative = parse_budget(gate.max_drop or 0.0)
    chance = pass_chance(budget, numbers, relative=relative, confidence=gate.confidence)
    if chance >= POWER:
        return None
    drop = detectable_drop(numbers, confidence=gate.confidence, power=POWER)
    return (
        f"gate {gate.metric} on {gate.on}, max_drop {gate.max_drop}: the smallest drop that "
        f"{numbers.size} users can detect is about {100 * drop:.1f} %; a candidate as good as its "
        f"baseline would pass with a probability of {100 * chance:.0f} % (assumed correlation "
        f"between the two: {ASSUMED_CORRELATION:g})"
    )


def protocol_of(baselines: Artefact, split: str) -> dict[str, Any]:
    """Ranking protocol of a baselines report, and so of its run, on a split."""
    protocol: dict[str, Any] = baselines.manifest.metrics["markov"][split]["protocol"]
    return protocol


def measured_as(name: str, artefact: Artefact, evaluation: Artefact) -> "Evaluation":
    """The evaluation of a model or engine: ranks per user, protocol, size.

    Args:
        name: Its name in verdicts.
        artefact: The model or engine.
        evaluation: The report of its evaluation.
    """
    import polars as pl

    from slmc.evaluation.results import Evaluation

    size = artefact.manifest.metrics.get("size_mb")
    return Evaluation(
        name=name,
        per_user=pl.read_parquet(evaluation.file("per_user.parquet")),
        protocol=summary_of(evaluation)["protocol"],
        size_mb=float(size if size is not None else size_mb(artefact, ("",))),
    )


def summary_of(evaluation: Artefact) -> dict[str, Any]:
    """Protocol, n and every metric with its standard error, from an evaluation report."""
    summary: dict[str, Any] = json.loads(evaluation.file("metrics.json").read_bytes())
    return summary


def described(verdict: "Verdict") -> dict[str, Any]:
    """A verdict as JSON data; a number that is not finite is null."""
    fields = {f.name: getattr(verdict, f.name) for f in dataclasses.fields(verdict)}
    plain = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in fields.items()
        if name != "gate"
    }
    gate = verdict.gate.model_dump(mode="json")
    return {"gate": gate, **plain, "failed": verdict.failed, "sentence": verdict.sentence}
