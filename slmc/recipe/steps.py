"""The steps of a recipe: their ids, their inputs and their copies."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from slmc.artefact import Kind
from slmc.config import Seeded, StageConfig
from slmc.distill.config import TEACHERS, DistillConfig, Losses, TeachConfig
from slmc.evaluation.config import EvaluateConfig
from slmc.stages import EVALUATIONS, STAGES, evaluation

FIRST = ("sasrec", "baselines")
"""Stages that every recipe runs first, even if it does not list them."""
ELSEWHERE = {"prepare": "data", "evaluate": "evaluate", "evaluate_engine": "evaluate"}
"""Stages that the runner adds by itself -> key of the recipe that configures them."""
WRITABLE = frozenset(STAGES) - frozenset(ELSEWHERE)
ID = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
COPY = "@"
"""Separates the id of a step from the point and the seed of a copy."""


@dataclass(frozen=True)
class Copy:
    """What tells a copy of a step from the other copies, made by ``sweep`` and ``seeds``."""

    of: str
    """Id of the step as written."""
    point: str = ""
    """Name of the point, such as ``layers=1,logits=0.5``; empty without a sweep."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Swept keys that reach the step, such as ``distill.layers`` -> value."""
    seed: int | None = None
    """Seed of its training and of those before it; None if they are not repeated."""

    @property
    def label(self) -> str:
        """Name of all its seeds: ``distill@layers=1``."""
        return COPY.join(filter(None, (self.of, self.point)))

    @property
    def id(self) -> str:
        """Id of the copy: ``distill@layers=1@18``."""
        return self.label if self.seed is None else f"{self.label}{COPY}{self.seed}"


@dataclass(frozen=True)
class Step:
    """One stage of a recipe, with its settings and its input steps."""

    id: str
    stage: str
    config: StageConfig
    inputs: dict[str, str]
    """Role -> id of the step whose artefact is the input in that role."""
    measures: str | None = None
    """Id of the step whose model or engine this step evaluates."""
    control_of: str | None = None
    """Id of the step that this one repeats as its control."""
    copy: Copy | None = None
    """Its place in a sweep or among seeds; None if it is the only copy."""
    validates: str | None = None
    """Id of the step whose model this step ranks on validation, to choose the best copy."""
    which: dict[str, str] = field(default_factory=dict)
    """Before the copies are made: role -> what the recipe writes behind ``@``, such as best."""

    @property
    def written(self) -> str:
        """Id of the step as written, without point and seed."""
        return self.copy.of if self.copy is not None else self.id

    @property
    def label(self) -> str:
        """Id without the seed: all seeds of a point have the same label."""
        return self.copy.label if self.copy is not None else self.id

    @property
    def gives(self) -> Kind:
        """Kind of the step's artefact."""
        return STAGES[self.stage].gives

    @property
    def is_control(self) -> bool:
        """Whether it is the control of another step."""
        return self.control_of is not None

    @property
    def can_rank(self) -> bool:
        """Whether its artefact is a model or an engine, which a gate can judge."""
        return self.gives in EVALUATIONS

    @property
    def is_candidate(self) -> bool:
        """Whether it can be a default input of later steps and gates: not a control, not SASRec."""
        return self.can_rank and self.stage != "sasrec" and not self.is_control


def can_repeat(stage: str) -> bool:
    """Whether the stage makes a model with random draws, so that seeds change it."""
    return STAGES[stage].gives == "model" and issubclass(STAGES[stage].config, Seeded)


def default_depth(config: StageConfig, teacher: str | None, before: list[Step]) -> str | None:
    """Id of the depth step whose report a distill step uses if the recipe names none.

    It is the last one of the same teacher, if the layers are chosen by influence. With
    ``layers: {from: ID}`` the recipe names it.
    """
    if not isinstance(config, DistillConfig) or config.select != "influence":
        return None
    fitting = [s for s in before if s.stage == "depth" and s.inputs.get("teacher") == teacher]
    return fitting[-1].id if fitting else None


def default_input(role: str, kind: Kind, before: list[Step]) -> str | None:
    """Id of the step that is the input in ``role`` if the recipe names none.

    For ``teacher`` and ``baseline`` it is the last ``teach``. ``student``, ``like`` and further
    teachers have no default. For other roles it is the last step of that kind, not a control.
    """
    if role in ("student", "like", *TEACHERS[1:]):
        return None
    if role == "data":
        fitting = [step for step in before if step.gives == "dataset"]
    elif role in FIRST:
        fitting = [step for step in before if step.stage == role]
    elif role in ("teacher", "baseline"):
        fitting = [step for step in before if step.stage == "teach" and not step.is_control]
    else:
        fitting = [step for step in before if step.is_candidate and step.gives == kind]
    return fitting[-1].id if fitting else None


def is_sasrec(name: str, known: Mapping[str, Step]) -> bool:
    """Return whether a step's model is a SASRec: trained as one, or distilled into one."""
    step = known[name]
    if step.stage == "sasrec":
        return True
    return (
        step.stage == "distill"
        and "student" in step.inputs
        and is_sasrec(step.inputs["student"], known)
    )


def writable_roles(stage: str) -> set[str]:
    """Roles of a stage that a recipe names one by one: not the dataset, not those of a list."""
    listed = {role for roles in STAGES[stage].lists.values() for role in roles[1:]}
    return set(STAGES[stage].takes) - {"data"} - listed


def as_written(stage: str, inputs: Mapping[str, str]) -> dict[str, Any]:
    """The inputs of a step as a recipe names them: several of one kind are a list.

    Args:
        stage: Name of the stage.
        inputs: Role -> id of a step.
    """
    written: dict[str, Any] = dict(inputs)
    for key, roles in STAGES[stage].lists.items():
        listed = [role for role in roles if role in written]
        if len(listed) > 1:
            written = {key: [written.pop(role) for role in listed]} | written
    return written


def evaluation_of(step: Step, config: EvaluateConfig) -> Step:
    """The step that measures the model or engine of ``step``."""
    inputs = {"data": "prepare", step.gives: step.id}
    copy = step.copy and replace(step.copy, of=f"evaluate.{step.copy.of}")
    stage, settings = evaluation(step.gives, config)
    return Step(f"evaluate.{step.id}", stage, settings, inputs, measures=step.id, copy=copy)


def validation_of(step: Step, config: EvaluateConfig) -> Step:
    """The step that ranks the model of ``step`` on validation, to choose the best copy."""
    inputs = {"data": "prepare", step.gives: step.id}
    copy = step.copy and replace(step.copy, of=f"valid.{step.copy.of}")
    on_valid = config.model_copy(update={"split": "valid"})
    stage, settings = evaluation(step.gives, on_valid)
    return Step(f"valid.{step.id}", stage, settings, inputs, validates=step.id, copy=copy)


def with_control(step: Step) -> list[Step]:
    """The step, followed by its control if ``control`` is set.

    The control is the same training, for as many optimizer steps, without the teacher's losses
    (``distill``) or without the pretrained weights (``teach``). Both get ``control: false``, since
    the setting does not change the model and so must not change the key.
    """
    config = step.config
    if not isinstance(config, (DistillConfig, TeachConfig)) or not config.control:
        return [step]
    alone = config.model_copy(update={"control": False})
    control = alone.model_copy(
        update={"losses": Losses(), "keep_heads": False}
        if isinstance(alone, DistillConfig)
        else {"init": "random", "must_beat": None}
    )
    # The first teacher gives a control its LLM and item table; the others only give losses.
    inputs = {role: taken for role, taken in step.inputs.items() if role not in TEACHERS[1:]}
    return [
        replace(step, config=alone),
        replace(
            step,
            id=f"{step.id}.control",
            config=control,
            inputs=inputs | {"like": step.id},
            control_of=step.id,
        ),
    ]
