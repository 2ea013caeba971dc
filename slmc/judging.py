"""The gates of a recipe, judged on what a run has measured."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from slmc.artefact import Artefact, size_mb
from slmc.recipe import Recipe

if TYPE_CHECKING:
    from slmc.verdict import Measured, Verdict


@dataclass
class Judgement:
    """What the gates of a recipe say."""

    verdicts: list["Verdict"] = field(default_factory=list)
    advisory: set[int] = field(default_factory=set)
    """Positions in ``verdicts`` that do not decide the exit code."""
    notes: list[str] = field(default_factory=list)


def judge_gates(
    recipe: Recipe, made: Mapping[str, Artefact], evaluations: Mapping[str, Artefact]
) -> Judgement:
    """Judge every gate whose model or engine, and baseline, have been made and measured.

    Args:
        recipe: The recipe.
        made: Step id -> artefact.
        evaluations: Id of a model or engine step -> report of its evaluation.
    """
    from slmc.verdict import judge

    result = Judgement()
    for gate in recipe.gates:
        steps = [step_id for step_id in (gate.on, gate.baseline) if step_id is not None]
        absent = [step_id for step_id in steps if step_id not in evaluations]
        if absent or gate.on is None:
            result.notes.append(
                f"gate {gate.metric} on {gate.on}: not judged; not made in this run: "
                f"{', '.join(absent)}"
            )
            continue
        if not recipe.is_binding(gate):
            result.advisory.add(len(result.verdicts))
            result.notes.append(
                f"gate {gate.metric} on {gate.on}: judged, but not binding in a smoke run, "
                "where models are as good as random"
            )
        measured = [measured_as(s, made[s], evaluations[s]) for s in steps]
        baseline = measured[1] if len(measured) > 1 else None
        result.verdicts.append(judge(gate, measured[0], baseline, seed=recipe.seed))
    return result


def measured_as(name: str, artefact: Artefact, evaluation: Artefact) -> "Measured":
    """What is known of a model or engine: each user's ranks, the protocol, the size.

    Args:
        name: What it is called in a verdict.
        artefact: The model or engine.
        evaluation: The report of its evaluation.
    """
    import polars as pl

    from slmc.verdict import Measured

    summary = json.loads(evaluation.file("metrics.json").read_bytes())
    size = artefact.manifest.metrics.get("size_mb")
    return Measured(
        name=name,
        kind="engine" if artefact.manifest.kind == "engine" else "model",
        per_user=pl.read_parquet(evaluation.file("per_user.parquet")),
        protocol=summary["protocol"],
        size_mb=float(size if size is not None else size_mb(artefact, ("",))),
    )


def described(verdict: "Verdict") -> dict[str, Any]:
    """A verdict as JSON-able data; a number that is not finite is null."""
    fields = {f.name: getattr(verdict, f.name) for f in dataclasses.fields(verdict)}
    plain = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in fields.items()
        if name != "gate"
    }
    gate = verdict.gate.model_dump(mode="json")
    return {"gate": gate, **plain, "failed": verdict.failed, "sentence": verdict.sentence}
