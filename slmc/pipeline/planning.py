"""Plan a run: the steps in order, the key of each, and whether the cache has its result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from slmc.artefact import Artefact
from slmc.distill.config import DistillConfig
from slmc.errors import RecipeError
from slmc.pipeline import store
from slmc.pipeline.choosing import Chooser
from slmc.pipeline.keys import Key, Outside, key_of
from slmc.pipeline.preflight import check_extras
from slmc.pipeline.rundir import RunDir
from slmc.pipeline.store import Status
from slmc.recipe import Recipe
from slmc.recipe.faults import nearest
from slmc.recipe.steps import Step, evaluation_of, validation_of


@dataclass(frozen=True)
class PlannedStep:
    """A step and what the run will do with it."""

    id: str
    stage: str
    key: Key | None
    """None if an earlier step has to run first, so that the digest of an input is unknown."""
    status: Status
    changed: list[str] = field(default_factory=list)
    """Parts of the key that differ from the last run of the recipe, such as ``config.layers``."""
    states_bytes: int | None = None
    """Size of the teachers' states that the step stores in the cache, if its inputs are there."""


def default_run_dir(recipe: Recipe) -> Path:
    """``runs/NAME``, or ``runs/NAME-smoke`` for a smoke run."""
    return Path("runs") / f"{recipe.name}{'-smoke' if recipe.smoke else ''}"


def schedule(recipe: Recipe) -> list[Step]:
    """All steps in the order of running, with an evaluation after each model and engine.

    The copies from which the best is chosen are also evaluated on validation.
    """
    order: list[Step] = []
    for step in recipe.steps:
        order.append(step)
        if recipe.is_measured(step):
            order.append(evaluation_of(step, recipe.evaluate))
        if step.copy is not None and step.written in recipe.ranked:
            order.append(validation_of(step, recipe.evaluate))
    return order


def up_to(order: list[Step], until: str | None, recipe: Recipe) -> list[Step]:
    """The steps up to ``until`` and its evaluation; all of them if ``until`` is None.

    Args:
        order: All steps of the recipe, as :func:`schedule` returns them.
        until: Id of the last step to run; of a step with several copies, or of a point with
            several seeds, all of them run.
        recipe: The recipe, for the error message.

    Raises:
        RecipeError: No step has the id ``until``.
    """
    if until is None:
        return order
    known = {step.id: step for step in order}
    last = [i for i, step in enumerate(order) if until in _names(step, known)]
    if not last:
        raise RecipeError(
            f"--until {until}: there is no such step.{nearest(until, [s.id for s in order])}",
            f"See the steps with `{recipe.command} --plan`.",
        )
    return order[: last[-1] + 1]


def _names(step: Step, known: Mapping[str, Step]) -> set[str]:
    """The names by which ``--until`` can mean a step or what it evaluates."""
    evaluated = step.measures or step.validates
    both = [step] if evaluated is None else [step, known[evaluated]]
    return {name for one in both for name in (one.id, one.label, one.written)}


def plan(
    recipe: Recipe, *, run_dir: Path | None = None, until: str | None = None
) -> list[PlannedStep]:
    """Plan every step of a recipe, without running any.

    Raises:
        SlmcError: The recipe cannot run: an extra or a source is missing.
    """
    order = up_to(schedule(recipe), until, recipe)
    check_extras(order)
    locked, chooser = RunDir(run_dir or default_run_dir(recipe)).locked(), Chooser(recipe)
    steps = plan_steps(order, chooser, locked, Outside())
    keys = {step.id: step.key for step in steps}
    # A choice that is not made yet keeps its name, which has no key.
    known = [replace(s, inputs={**s.inputs, **chooser.inputs_of(s)}) for s in order]
    return [
        replace(planned, states_bytes=_states_bytes(step, keys))
        if planned.status != "hit"
        else planned
        for step, planned in zip(known, steps, strict=True)
    ]


def _states_bytes(step: Step, keys: Mapping[str, Key | None]) -> int | None:
    """Size of the teachers' states of a distillation; None if an input is not in the cache."""
    if not isinstance(step.config, DistillConfig):
        return None
    inputs: dict[str, Artefact] = {}
    for role, taken in step.inputs.items():
        key = keys.get(taken)
        artefact = None if key is None else store.look(key.digest)
        if artefact is None:
            return None
        inputs[role] = artefact
    # Imported here: reading the data takes time that most plans do not need.
    from slmc.distill.sizes import states_bytes

    return states_bytes(step.config, inputs)


def plan_steps(
    order: Sequence[Step], chooser: Chooser, locked: Mapping[str, Any], outside: Outside
) -> list[PlannedStep]:
    """Plan the steps.

    Args:
        order: Steps, each after its inputs.
        chooser: Chooses the best copies, as far as their validation is in the cache.
        locked: Step id -> entry of the last run's lock.
        outside: Inputs outside of the recipe.
    """
    digests: dict[str, str] = {}
    steps: list[PlannedStep] = []
    for step in order:
        taken = chooser.inputs_of(step)
        unknown = sorted(role for role in step.inputs if taken.get(role) not in digests)
        if unknown:
            changed = [f"inputs.{role}" for role in unknown] if step.id in locked else []
            steps.append(PlannedStep(step.id, step.stage, None, "run", changed))
            continue
        inputs = {role: digests[name] for role, name in taken.items()}
        key = key_of(step.stage, outside.resolved(step.config), inputs, outside)
        cached = store.look(key.digest)
        if cached is not None:
            digests[step.id] = cached.digest
            if step.validates is not None:
                chooser.reports[step.validates] = cached
        changed = key.changed(locked[step.id]["parts"]) if step.id in locked else []
        steps.append(PlannedStep(step.id, step.stage, key, store.status(key.digest), changed))
    return steps
