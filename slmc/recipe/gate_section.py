"""The gates of a recipe: the step that each judges, and its baseline."""

from collections.abc import Mapping, Sequence
from typing import Any

from slmc.config import CROSS_ENTROPIES
from slmc.evaluation.gates import Gate
from slmc.recipe.checks import checked
from slmc.recipe.faults import Faults, nearest
from slmc.recipe.steps import Step
from slmc.recipe.text import Document, dotted


def read_gates(document: Document, faults: Faults, steps: Sequence[Step]) -> list[Gate]:
    """The gates of a document, each with the ids of its step and of its baseline.

    Args:
        document: The whole recipe.
        faults: Collects what is wrong.
        steps: The recipe's steps.
    """
    listed = document.value.get("gates")
    listed = listed if isinstance(listed, list) else []
    metrics = {entry.get("metric") for entry in listed if isinstance(entry, dict)}
    quality = metrics - {"size_mb"}
    if quality and quality <= CROSS_ENTROPIES:
        what = (
            "a gate on ce alone can pass a model that ranks worse; add one on ndcg@K, hr@K, mrr "
            "or overlap@K"
        )
        faults.add(document.place(("gates",)), "gates", what)
    entries = enumerate(listed)
    return [gate for i, entry in entries if (gate := _gate(document, faults, entry, i, steps))]


def _gate(
    document: Document, faults: Faults, raw: Any, index: int, steps: Sequence[Step]
) -> Gate | None:
    path = ("gates", index)

    def fault(key: str, what: str) -> None:
        faults.add(document.place((*path, key)), dotted((*path, key)), what)

    if not isinstance(raw, dict):
        faults.add(document.place(path), dotted(path), "should be a mapping")
        return None
    gate = checked(document, faults, Gate, raw, path)
    known = {step.id: step for step in steps}
    judged = [step.id for step in steps if step.can_rank]
    # Read from the raw mapping, so that the steps of a gate with another fault are checked too.
    on, baseline = raw.get("on"), raw.get("baseline")
    if on is None:
        on = next((step.id for step in reversed(steps) if step.is_candidate), None)
    if on is None:
        fault("on", "no step makes a model or an engine to judge")
        return None
    if on not in known or not known[on].can_rank:
        fault("on", _not_judged(on, known, judged))
        return None
    if baseline == "source":
        baseline = known[on].inputs.get("model")
        if baseline is None:
            fault("baseline", f"{on!r} has no source model; name a step")
    elif baseline is not None and (baseline not in known or not known[baseline].can_rank):
        fault("baseline", _not_judged(baseline, known, [*judged, "source"]))
    return gate.model_copy(update={"on": on, "baseline": baseline})


def _not_judged(name: str, known: Mapping[str, Step], judged: Sequence[str]) -> str:
    if name in known:
        return f"{name!r} makes no model or engine, so it cannot be judged"
    return f"there is no step {name!r}.{nearest(name, judged)}"
