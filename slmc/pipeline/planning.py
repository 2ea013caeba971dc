"""What a run would come to: the steps in order, the key of each, and what the cache has of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slmc.errors import RecipeError
from slmc.pipeline import store
from slmc.pipeline.keys import Outside, key_of
from slmc.pipeline.preflight import check_extras
from slmc.pipeline.rundir import RunDir
from slmc.pipeline.store import Status
from slmc.recipe import Recipe
from slmc.recipe.faults import nearest
from slmc.recipe.steps import Step


@dataclass(frozen=True)
class PlannedStep:
    """What a step would come to."""

    id: str
    stage: str
    key: str | None
    """None where a step before it has to run first, so that its inputs are not known yet."""
    status: Status
    changed: list[str] = field(default_factory=list)
    """Parts of the key that differ from the last run of the recipe, as ``config.layers``."""


def default_run_dir(recipe: Recipe) -> Path:
    """``runs/NAME``, and apart from it ``runs/NAME-smoke``."""
    return Path("runs") / f"{recipe.name}{'-smoke' if recipe.smoke else ''}"


def schedule(recipe: Recipe, until: str | None = None) -> list[Step]:
    """The steps in the order of running, an evaluation after each model and engine.

    Args:
        recipe: The recipe.
        until: Id of the last step that is wanted, or None for all.

    Raises:
        RecipeError: ``until`` is no step.
    """
    order: list[Step] = []
    for step in recipe.steps:
        order.append(step)
        if recipe.is_measured(step):
            role = "engine" if step.gives == "engine" else "model"
            stage = "evaluate_engine" if role == "engine" else "evaluate"
            inputs = {"data": recipe.steps[0].id, role: step.id}
            order.append(Step(f"evaluate.{step.id}", stage, recipe.evaluate, inputs))
    if until is None:
        return order
    ids = [step.id for step in order]
    if until not in ids:
        raise RecipeError(
            f"--until {until}: there is no such step.{nearest(until, ids)}",
            f"See the steps with `{recipe.command} --plan`.",
        )
    last = max(i for i, name in enumerate(ids) if name in (until, f"evaluate.{until}"))
    return order[: last + 1]


def plan(
    recipe: Recipe, *, run_dir: Path | None = None, until: str | None = None
) -> list[PlannedStep]:
    """What each step would come to, without running any.

    Raises:
        SlmcError: The recipe cannot run: an extra, a source is missing.
    """
    order = schedule(recipe, until)
    check_extras(order)
    return plan_steps(order, RunDir(run_dir or default_run_dir(recipe)).locked(), Outside())


def plan_steps(
    order: Sequence[Step], locked: Mapping[str, Any], outside: Outside
) -> list[PlannedStep]:
    """Plan the steps.

    Args:
        order: Steps, each after those that it takes from.
        locked: Step id -> entry of the last run's lock.
        outside: What lies outside the recipe.
    """
    digests: dict[str, str] = {}
    steps: list[PlannedStep] = []
    for step in order:
        unknown = sorted(role for role, taken in step.inputs.items() if taken not in digests)
        if unknown:
            changed = [f"inputs.{role}" for role in unknown] if step.id in locked else []
            steps.append(PlannedStep(step.id, step.stage, None, "run", changed))
            continue
        inputs = {role: digests[taken] for role, taken in step.inputs.items()}
        key = key_of(step.stage, outside.resolved(step.config), inputs, outside)
        there = store.look(key.digest)
        if there is not None:
            digests[step.id] = there.digest
        changed = key.changed(locked[step.id]["parts"]) if step.id in locked else []
        steps.append(
            PlannedStep(step.id, step.stage, key.digest, store.status(key.digest), changed)
        )
    return steps
