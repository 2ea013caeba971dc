"""Choose the best point and the best seed of a step, and find the copies that belong together.

The best point has the best validation metric, averaged over its seeds; the best seed is the best
of that point. The metric is the recipe's ``select_by``, of all validation users. The test split has
no part in it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from slmc.artefact import Artefact
from slmc.recipe import Recipe
from slmc.recipe.copies import BEST, SAME, agree, matching
from slmc.recipe.steps import COPY, Copy, Step

SOURCE = "source"
"""The model that an engine was made from, as a gate names it."""


@dataclass
class Chooser:
    """Resolves the choices of a recipe as its steps finish."""

    recipe: Recipe
    reports: dict[str, Artefact] = field(default_factory=dict)
    """Id of a copy -> report of its validation."""
    inputs: dict[str, dict[str, str]] = field(default_factory=dict)
    """Id of a step -> role -> id of the copy that is its input; filled by :meth:`inputs_of`."""
    chosen: dict[str, str] = field(default_factory=dict)
    """Name of each choice that was made on validation, ``distill@best`` -> id of the copy."""
    _values: dict[str, float] = field(default_factory=dict)

    def inputs_of(self, step: Step) -> dict[str, str]:
        """Role -> id of the copy that is the input; a choice that cannot be made yet is left out.

        A baseline comes last, since it follows the model that is compared with it.
        """
        if step.id in self.inputs:
            return self.inputs[step.id]
        inputs: dict[str, str] = {}
        for role in sorted(step.inputs, key=lambda role: role == "baseline"):
            taken = self._resolved(step, step.inputs[role], inputs)
            if taken is not None:
                inputs[role] = taken
        inputs = {role: inputs[role] for role in step.inputs if role in inputs}
        if len(inputs) == len(step.inputs):
            self.inputs[step.id] = inputs
        return inputs

    def _resolved(self, step: Step, name: str, others: Mapping[str, str]) -> str | None:
        """The copy that an input of a step names; None if it is not known yet.

        Args:
            step: The step.
            name: Id of a step, or name of a choice.
            others: The inputs of the step that are known.
        """
        if name not in self.recipe.choices:
            return name
        candidates = [self._steps[one] for one in self.recipe.choices[name].candidates]
        before = [*self._ancestry(step), *(c for o in others.values() for c in self.ancestry(o))]
        candidates = [one for one in candidates if _fits(one.copy, before)]
        labels = dict.fromkeys(one.label for one in candidates)
        if len(labels) > 1:
            best = self.best_point(labels)
            candidates = [one for one in candidates if one.label == best]
        if len(candidates) > 1:
            values = {one.id: self.value(one.id) for one in candidates}
            best = _best(values)
            candidates = [one for one in candidates if one.id == best]
        if not candidates:
            return None
        if not name.endswith(f"{COPY}{SAME}"):
            self.chosen[name] = candidates[0].id
        return candidates[0].id

    def best_point(self, labels: Iterable[str]) -> str | None:
        """The label with the best validation, over its seeds; None if not all are ranked."""
        means: dict[str, float | None] = {}
        for label in labels:
            values = [self.value(step.id) for step in self.recipe.steps if step.label == label]
            known = [value for value in values if value is not None]
            means[label] = sum(known) / len(known) if known and len(known) == len(values) else None
        return _best(means)

    def value(self, step_id: str) -> float | None:
        """The validation metric of a copy, larger if better; None if it was not ranked."""
        if step_id not in self.reports:
            return None
        if step_id not in self._values:
            from slmc.evaluation.metrics import LOWER_IS_BETTER

            mean = mean_of(self.reports[step_id], self.recipe.select_by)
            self._values[step_id] = -mean if self.recipe.select_by in LOWER_IS_BETTER else mean
        return self._values[step_id]

    def copies(self, reference: str, beside: Step | None = None) -> list[Step]:
        """The copies that a gate means by ``distill``, ``distill@best`` or ``distill@layers=1``.

        Args:
            reference: As written in the gate.
            beside: A copy that is compared with them: of several points, only the one from which
                it is made counts, and of several seeds its own.

        Returns:
            None of them if the best point is not known.
        """
        written, _, which = reference.partition(COPY)
        copies = self.recipe.copies(written)
        if which == BEST:
            labels = dict.fromkeys(step.label for step in copies)
            best = next(iter(labels)) if len(labels) == 1 else self.best_point(labels)
            copies = [step for step in copies if step.label == best]
        elif which:
            copies = matching(reference, copies)
        if beside is None:
            return copies
        return [step for step in copies if _fits(step.copy, self.ancestry(beside.id))]

    def counterparts(self, copies: Sequence[Step], reference: str) -> list[Step]:
        """The copies with which some copies of a step are compared.

        Args:
            copies: One, or one for each seed.
            reference: As in a gate; ``source`` for the models that the copies were made from.

        Returns:
            One for each copy, or one that all share, or all seeds for a single copy. None of them
            if that is not known, or if several points are meant.
        """
        if reference == SOURCE:
            sources = [self.source(step.id) for step in copies]
            found = [[self._steps[one]] for one in sources if one is not None]
        else:
            found = [self.copies(reference, beside=step) for step in copies]
        if not found:
            return []
        if len(copies) == 1 and len({step.label for step in found[0]}) == 1:
            return found[0]
        others = [some[0] for some in found if len(some) == 1]
        if len(others) < len(copies):
            return []
        return others if len({step.id for step in others}) > 1 else others[:1]

    def source(self, step_id: str) -> str | None:
        """Id of the copy that a step was made from; None if it has none or did not run."""
        return self._known_inputs(self._steps[step_id]).get("model")

    def ancestry(self, step_id: str) -> list[Copy]:
        """The places of a step and of the models that it was made from."""
        step = self._steps.get(step_id)
        return [] if step is None else self._ancestry(step)

    def _ancestry(self, step: Step) -> list[Copy]:
        own = [step.copy] if step.copy is not None else []
        inputs = self._known_inputs(step).values()
        return own + [copy for taken in inputs for copy in self.ancestry(taken)]

    def _known_inputs(self, step: Step) -> dict[str, str]:
        """The inputs of a step without those that are still to be chosen."""
        choices = self.recipe.choices
        named = {role: name for role, name in step.inputs.items() if name not in choices}
        return self.inputs.get(step.id, named)

    @cached_property
    def _steps(self) -> dict[str, Step]:
        return {step.id: step for step in self.recipe.steps}


def mean_of(report: Artefact, metric: str) -> float:
    """The mean of a metric over the users of an evaluation."""
    import polars as pl

    from slmc.evaluation.results import values

    protocol = json.loads(report.file("metrics.json").read_bytes())["protocol"]
    per_user = pl.read_parquet(report.file("per_user.parquet"))
    return float(values(per_user, metric, protocol).mean())


def _fits(copy: Copy | None, others: Iterable[Copy]) -> bool:
    return all(agree(copy, other) for other in others)


def _best(values: Mapping[str, float | None]) -> str | None:
    """The name with the largest value, the first of equal ones; None if a value is missing."""
    known = {name: value for name, value in values.items() if value is not None}
    if not known or len(known) < len(values):
        return None
    return max(known, key=lambda name: known[name])
