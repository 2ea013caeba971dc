"""The sweep of a smoke run with the settings of its small steps, for ``recipe.resolved.yaml``.

A smoke run keeps the names of the points of its recipe: ``distill@layers=8`` is a student of two
layers in it. The resolved recipe has the small settings. Points that are the same with them are
one point, and references to a point have its new name.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from slmc.recipe.steps import COPY, Step
from slmc.recipe.sweep import Point, Sweep


@dataclass(frozen=True)
class SmallSweep:
    """The small points, and how references to the points change."""

    sweep: Sweep
    names: Mapping[str, str]
    """Name of a point in the recipe, such as ``layers=8`` -> its name with the small settings."""

    def reference(self, name: str) -> str:
        """A reference such as ``distill@layers=8@18``, with the new name of the point."""
        first, *rest = name.split(COPY)
        return COPY.join([first, *(self.names.get(one, one) for one in rest)])


def small_sweep(sweep: Sweep, steps: tuple[Step, ...]) -> SmallSweep:
    """The sweep of a recipe with the settings that its steps have.

    Args:
        sweep: As the recipe has it.
        steps: All copies of all steps, with small settings.
    """
    points: dict[str, Point] = {}
    for point in sweep.points:
        small = {key: _small(key, point.settings, steps) for key in point.settings}
        points.setdefault(json.dumps(small, sort_keys=True), replace(point, settings=small))
    smaller = Sweep(tuple(points.values()))
    names = {
        step.copy.point: smaller.name(
            {key: _small(key, step.copy.settings, steps) for key in step.copy.settings}
        )
        for step in steps
        if step.copy is not None and step.copy.point
    }
    return SmallSweep(smaller, names)


def _small(key: str, settings: Mapping[str, Any], steps: tuple[Step, ...]) -> Any:
    """The value of a swept key in the config of a copy with these settings.

    The ids of input steps, which no config has, stay as they are.
    """
    step_id, _, rest = key.partition(".")
    value: Any = next(
        step.config.model_dump(mode="json")
        for step in steps
        if step.written == step_id and step.copy and step.copy.settings.items() <= settings.items()
    )
    for part in rest.split("."):
        if not isinstance(value, dict) or part not in value:
            return settings[key]
        value = value[part]
    names_step = isinstance(settings[key], dict) and "from" in settings[key]
    return settings[key] if names_step else value
