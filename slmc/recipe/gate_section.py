"""The gates of a recipe: the step that each judges, and its baseline."""

from typing import Any

from slmc.config import CROSS_ENTROPIES
from slmc.evaluation.gates import Gate
from slmc.recipe.checks import checked
from slmc.recipe.copies import BEST, Copies, matching, no_copy
from slmc.recipe.faults import Faults, nearest
from slmc.recipe.steps import COPY, Step
from slmc.recipe.text import Document, dotted


def read_gates(
    document: Document, faults: Faults, copies: Copies
) -> tuple[list[Gate], frozenset[str]]:
    """The gates of a document, and the steps whose best point a gate names.

    Args:
        document: The whole recipe.
        faults: Collects what is wrong.
        copies: The recipe's steps.
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
    reader = _GateReader(document, faults, copies)
    gates = [gate for i, entry in enumerate(listed) if (gate := reader.gate(entry, i))]
    names = {name for gate in gates for name in (gate.on, gate.baseline) if name is not None}
    best = {name.partition(COPY)[0] for name in names if name.endswith(f"{COPY}{BEST}")}
    return gates, frozenset(one for one in best if len(reader.points(one)) > 1)


class _GateReader:
    """Reads gates and collects what is wrong in ``faults``."""

    def __init__(self, document: Document, faults: Faults, copies: Copies) -> None:
        self.document, self.faults, self.lineage = document, faults, copies.lineage
        self.copies: dict[str, list[Step]] = {}
        for step in copies.steps:
            self.copies.setdefault(step.written, []).append(step)

    def gate(self, raw: Any, index: int) -> Gate | None:
        """The gate of an entry, with its step and its baseline; None if there is none to judge."""
        path = ("gates", index)
        if not isinstance(raw, dict):
            self.faults.add(self.document.place(path), dotted(path), "should be a mapping")
            return None
        gate = checked(self.document, self.faults, Gate, raw, path)
        # Read from the raw mapping, so that the steps of a gate with another fault are checked too.
        on, baseline = raw.get("on"), raw.get("baseline")
        if on is None:
            candidates = [name for name, some in self.copies.items() if some[0].is_candidate]
            on = candidates[-1] if candidates else None
        if on is None:
            self._fault(index, "on", "no step makes a model or an engine to judge")
            return None
        if (what := self._wrong(on) or self._unclear(on)) is not None:
            self._fault(index, "on", what)
            return None
        if baseline == "source":
            baseline = self._source(on, index)
        elif baseline is not None:
            what = self._wrong(baseline, "source") or self._unclear(baseline, beside=on)
            if what is not None:
                self._fault(index, "baseline", what)
        return gate.model_copy(update={"on": on, "baseline": baseline})

    def points(self, written: str) -> list[str]:
        """Labels of the points of a step, in order."""
        return list(dict.fromkeys(step.label for step in self.copies[written]))

    def _source(self, on: str, index: int) -> str | None:
        """The model that an engine is made from; ``source`` if it is known only in the run."""
        judged = self.copies[on.partition(COPY)[0]]
        source = judged[0].inputs.get("model")
        if source is None:
            self._fault(index, "baseline", f"{on!r} has no source model; name a step")
        return source if len(judged) == 1 and source in self.copies else source and "source"

    def _wrong(self, name: Any, *also: str) -> str | None:
        """What is wrong with the name of a step."""
        written = str(name).partition(COPY)[0]
        if written not in self.copies or not self.copies[written][0].can_rank:
            if written in self.copies:
                return f"{name!r} makes no model or engine, so it cannot be judged"
            judged = [one for one, some in self.copies.items() if some[0].can_rank]
            return f"there is no step {name!r}.{nearest(str(name), [*judged, *also])}"
        if name == f"{written}{COPY}{BEST}" or matching(name, self.copies[written]):
            return None
        return no_copy(name, self.copies[written])

    def _unclear(self, name: str, beside: str | None = None) -> str | None:
        """Why it is not clear which point of a step is meant, ``beside`` the judged step."""
        if COPY in name or len(points := self.points(name)) == 1:
            return None
        if beside is not None:
            reach = {key for step in self.copies[name] if step.copy for key in step.copy.settings}
            if reach <= self.lineage[beside.partition(COPY)[0]]:
                return None  # the copy from which the judged model is made
        return f"{name!r} has {len(points)} points; name one, such as {points[0]}, or {name}@best"

    def _fault(self, index: int, key: str, what: str) -> None:
        path = ("gates", index, key)
        self.faults.add(self.document.place(path), dotted(path), what)
