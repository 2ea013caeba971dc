"""A recipe after reading: every setting is resolved, every reference is an existing step."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from slmc.data.config import PrepareConfig
from slmc.errors import RecipeError
from slmc.evaluation.config import EvaluateConfig
from slmc.evaluation.gates import Gate
from slmc.recipe.copies import BEST, Choice
from slmc.recipe.faults import nearest
from slmc.recipe.item_tables import has_texts
from slmc.recipe.paths import to_folder
from slmc.recipe.small_sweep import small_sweep
from slmc.recipe.steps import COPY, Step, as_written, can_repeat
from slmc.recipe.sweep import Sweep
from slmc.recipe.text import dump
from slmc.stages import STAGES

VERSION = 1


@dataclass(frozen=True)
class Recipe:
    """A valid recipe: every setting is resolved, every reference is an existing step."""

    name: str
    description: str
    seed: int
    device: str
    dtype: str
    data: PrepareConfig
    evaluate: EvaluateConfig
    steps: tuple[Step, ...]
    """In the order of running, with ``prepare``, ``sasrec``, ``baselines``, controls, and a copy of
    each repeated step for every point and seed."""
    gates: tuple[Gate, ...]
    """Each with the step that it judges; ``baseline`` is a step, or None if not needed. Both may
    be the id of a step that has several copies."""
    power: Literal["warn", "stop"] = "warn"
    smoke: bool = False
    select_by: str = "ndcg"
    seeds: tuple[int, ...] = ()
    """Seeds of the copies; none if nothing is repeated."""
    seeded: tuple[str, ...] = ()
    """Ids of the steps that have the key ``seeds``; none if the recipe has it."""
    sweep: Sweep = field(default_factory=Sweep)
    written: tuple[Step, ...] = ()
    """The steps as written, at the first point; none if no step has copies."""
    choices: Mapping[str, Choice] = field(default_factory=dict)
    """Name of an input that is known only while the recipe runs -> the copies to choose from."""
    ranked: frozenset[str] = frozenset()
    """Ids as written of the steps whose copies are ranked on validation."""
    command: str = field(default="", compare=False)
    """The command that runs the recipe, for messages."""

    def step(self, step_id: str) -> Step:
        """The step with that id.

        Raises:
            RecipeError: No step has that id.
        """
        for step in self.steps:
            if step.id == step_id:
                return step
        raise RecipeError(
            f"recipe {self.name} has no step {step_id!r}."
            + nearest(step_id, [step.id for step in self.steps]),
            f"See its steps with `{self.command} --plan`.",
        )

    def is_measured(self, step: Step) -> bool:
        """Whether the schedule has an evaluation of the step: each model and engine has one.

        The SASRec of the baselines is evaluated with them, and has its own evaluation only if
        another step uses it as its model, a gate names it, or the recipe sweeps its settings.
        """
        if step.stage != "sasrec" or step.written != self.baseline_sasrec:
            return step.can_rank
        taken = any(_written(other.inputs.get("model")) == step.written for other in self.steps)
        named = {_written(name) for gate in self.gates for name in (gate.on, gate.baseline)}
        return taken or step.written in named | self.ranked

    @property
    def baseline_sasrec(self) -> str:
        """Id, as written, of the SASRec among the baselines, with which reports compare."""
        taken = next(step.inputs["sasrec"] for step in self.steps if step.stage == "baselines")
        return _written(taken) or taken

    def has_texts(self, written: str) -> bool:
        """Whether the item table of a step's model came from texts."""
        steps = self.written or self.steps
        return has_texts(written, {step.id: step for step in steps})

    def copies(self, written: str) -> list[Step]:
        """All copies of the step with that id in the recipe; the step itself if it has none."""
        return [step for step in self.steps if step.written == written]

    def is_binding(self, gate: Gate) -> bool:
        """Whether the gate decides the exit code.

        The models of a smoke run are nearly random. Only gates that make sense for random weights
        are binding in it: sizes, and an engine against its own model.
        """
        return not self.smoke or gate.metric == "size_mb" or self.is_of_same_model(gate)

    def is_of_same_model(self, gate: Gate) -> bool:
        """Whether the gate compares a model or engine with the model that it was made from."""
        if gate.on is None or gate.baseline is None:
            return False
        judged = self.copies(_written(gate.on) or "")
        # A step that is repeated counts with the copy from which the judged model is made.
        sources = {_written(one.inputs.get("model")) for one in judged} - {None}
        own = {"source", *sources, *(f"{source}{COPY}{BEST}" for source in sources)}
        return gate.baseline in own


def resolved_yaml(recipe: Recipe, folder: Path = Path()) -> str:
    """The YAML of the recipe with every setting; reading it returns the same recipe.

    Args:
        recipe: The recipe.
        folder: Folder of the file, at which its relative paths start.
    """
    if recipe.smoke and recipe.sweep.keys:
        recipe = _with_small_sweep(recipe)
    written = recipe.written or recipe.steps
    repeated = {one.written for one in recipe.steps if one.copy and one.copy.seed is not None}
    controls = {step.control_of for step in written}
    steps: list[dict[str, Any]] = []
    for step in written:
        if step.stage == "prepare" or step.is_control:
            continue
        body = {"id": step.id, **_roles(step, recipe), **step.config.model_dump(mode="json")}
        if step.id in repeated and can_repeat(step.stage):
            del body["seed"]
        if step.id in recipe.seeded:
            body["seeds"] = list(recipe.seeds)
        if step.id in controls:
            body["control"] = True
        steps.append({step.stage: body})
    whole = {
        "version": VERSION,
        "name": recipe.name,
        "description": recipe.description,
        "seed": recipe.seed,
        **_repeats(recipe),
        "select_by": recipe.select_by,
        "device": recipe.device,
        "dtype": recipe.dtype,
        "power": recipe.power,
        "data": recipe.data.model_dump(mode="json"),
        "evaluate": recipe.evaluate.model_dump(mode="json"),
        "steps": steps,
        "gates": [gate.model_dump(mode="json") for gate in recipe.gates],
    }
    to_folder(whole, folder)
    return dump(whole)


def _with_small_sweep(recipe: Recipe) -> Recipe:
    """The recipe of a smoke run with the sweep, and the names of points, of its small steps."""
    small = small_sweep(recipe.sweep, recipe.steps)

    def renamed(step: Step) -> Step:
        which = {role: small.reference(f"{COPY}{one}")[1:] for role, one in step.which.items()}
        return replace(step, which=which)

    def regated(gate: Gate) -> Gate:
        named = {"on": gate.on, "baseline": gate.baseline}
        return gate.model_copy(
            update={role: name and small.reference(name) for role, name in named.items()}
        )

    return replace(
        recipe,
        sweep=small.sweep,
        written=tuple(renamed(step) for step in recipe.written),
        gates=tuple(regated(gate) for gate in recipe.gates),
    )


def _roles(step: Step, recipe: Recipe) -> dict[str, Any]:
    """The inputs of a step as a recipe names them; those of a list that is swept are left out."""
    lists = STAGES[step.stage].lists
    swept = {
        role
        for key, roles in lists.items()
        if f"{step.id}.{key}" in recipe.sweep.keys
        for role in roles
    }
    named = {
        role: COPY.join(filter(None, (taken, step.which.get(role))))
        for role, taken in step.inputs.items()
        if role != "data" and role not in swept
    }
    return as_written(step.stage, named)


def _repeats(recipe: Recipe) -> dict[str, Any]:
    """The keys ``seeds`` and ``sweep`` of a recipe that has them."""
    keys: dict[str, Any] = {}
    if recipe.seeds and not recipe.seeded:
        keys["seeds"] = list(recipe.seeds)
    if recipe.sweep.keys:
        keys["sweep"] = [dict(point.settings) for point in recipe.sweep.points]
    return keys


def _written(reference: str | None) -> str | None:
    """Id as written of the step that a reference such as ``distill@best`` means."""
    return reference and reference.partition(COPY)[0]
