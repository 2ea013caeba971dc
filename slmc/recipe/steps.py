"""The steps of a recipe: what each is called, and what it takes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from slmc.artefact import A, Kind
from slmc.config import StageConfig
from slmc.distill.config import DistillConfig, Losses, TeachConfig
from slmc.evaluation.config import EvaluateConfig
from slmc.recipe.checks import checked
from slmc.recipe.faults import Faults, nearest
from slmc.recipe.text import Document, Path, dotted
from slmc.stages import EVALUATIONS, STAGES, evaluation

FIRST = ("sasrec", "baselines")
"""Stages that every recipe has, before all others, whether written or not."""
ELSEWHERE = {"prepare": "data", "evaluate": "evaluate", "evaluate_engine": "evaluate"}
"""Stages that the runner puts in by itself -> key of the recipe that sets them."""
WRITABLE = frozenset(STAGES) - frozenset(ELSEWHERE)
ID = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Step:
    """One stage of a recipe, with its settings and the steps that it takes from."""

    id: str
    stage: str
    config: StageConfig
    inputs: dict[str, str]
    """Role -> id of the step whose artefact is taken in that role."""
    measures: str | None = None
    """Id of the step whose model or engine this step evaluates."""
    control_of: str | None = None
    """Id of the step that this one repeats as its control."""

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
        """Whether it gives a model or an engine, which a gate can judge."""
        return self.gives in EVALUATIONS

    @property
    def is_candidate(self) -> bool:
        """Whether a later step or a gate takes it without naming it: no control, no SASRec."""
        return self.can_rank and self.stage != "sasrec" and not self.is_control


@dataclass(frozen=True)
class Written:
    """A step as it stands in the file, before its inputs are known."""

    id: str
    stage: str
    path: Path
    """Path of its body in the document."""
    config: StageConfig
    named: dict[str, Any] = field(default_factory=dict)
    """Role -> what the file names as the step to take."""


@dataclass(frozen=True)
class StepReader:
    """Reads the steps of a document; what is wrong goes to ``faults``."""

    document: Document
    faults: Faults
    defaults: Mapping[str, Any]
    """Settings of the recipe that stand in for a step's own: seed, device, dtype."""
    reserved: frozenset[str]
    """Names that no step may have: the recipe's own keys."""

    def read(self, prepare: StageConfig) -> list[Step]:
        """All steps in the order in which they run, ``prepare`` and controls among them."""
        listed = self.document.value.get("steps")
        entries = enumerate(listed if isinstance(listed, list) else [])
        written = [one for i, entry in entries if (one := self._entry(i, entry))]
        self._refuse_same_ids(written)
        order = [one for name in FIRST for one in self._first(name, written)]
        order += [one for one in written if one.stage not in FIRST]
        steps = [Step("prepare", "prepare", prepare, {})]
        for i, one in enumerate(order):
            step = self._linked(one, steps, later={w.id for w in order[i + 1 :]})
            steps.extend(with_control(step))
        return steps

    def _entry(self, index: int, entry: Any) -> Written | None:
        path: Path = ("steps", index)
        if not isinstance(entry, dict) or len(entry) != 1:
            self._fault(
                path, dotted(path), "a step is one stage with its settings, as in `export: {}`"
            )
            return None
        stage, body = next(iter(entry.items()))
        path = (*path, stage)
        if stage in ELSEWHERE:
            key = ELSEWHERE[stage]
            self._fault(path, dotted(path[:2]), f"{stage} is no step; it is set by the key {key!r}")
            return None
        if stage not in STAGES:
            what = f"there is no stage {stage!r}.{nearest(stage, WRITABLE)}"
            self._fault(path, dotted(path[:2]), what)
            return None
        if not isinstance(body, (dict, type(None))):
            self._fault(path, stage, "the settings of a step are a mapping")
            return None
        return self._body(stage, dict(body or {}), path)

    def _body(self, stage: str, body: dict[str, Any], path: Path) -> Written:
        roles = set(STAGES[stage].takes) - {"data"}
        step_id = body.pop("id", stage)
        if not isinstance(step_id, str) or not ID.fullmatch(step_id):
            self._fault(
                (*path, "id"), stage, f"id: {step_id!r} is not a word of letters, digits, - and _"
            )
            step_id = stage
        elif step_id in self.reserved:
            self._fault((*path, "id"), stage, f"id: {step_id!r} means something else in a recipe")
        named = {role: body.pop(role) for role in roles & set(body)}
        config = checked(
            self.document,
            self.faults,
            STAGES[stage].config,
            body,
            path,
            key=step_id,
            shared=self.defaults,
            also={"id", *roles},
        )
        return Written(step_id, stage, path, config, named)

    def _refuse_same_ids(self, written: list[Written]) -> None:
        seen: dict[str, Written] = {}
        for one in written:
            if one.id in seen:
                first = self.document.place(seen[one.id].path)
                what = (
                    f"two steps are called {one.id!r} (the first in line {first.line}); "
                    "give one an id"
                )
                self._fault(one.path, one.id, what)
            seen.setdefault(one.id, one)

    def _first(self, stage: str, written: list[Written]) -> list[Written]:
        found = [one for one in written if one.stage == stage]
        return found or [self._body(stage, {}, ("steps", stage))]

    def _linked(self, one: Written, before: list[Step], later: set[str]) -> Step:
        """The step with the steps that it takes from: those named, else the usual ones."""
        stage = STAGES[one.stage]
        inputs = {}
        for role, kind in stage.takes.items():
            if role in one.named:
                taken = self._named(one, role, kind, before, later)
            else:
                taken = usual_input(role, kind, before)
                if taken is None and role not in stage.optional:
                    what = f"needs {A[kind]} as its {role}, and no step before it gives one"
                    self._fault(one.path, one.id, what)
            if taken is not None:
                inputs[role] = taken
        return Step(one.id, one.stage, one.config, inputs)

    def _named(
        self, one: Written, role: str, kind: Kind, before: list[Step], later: set[str]
    ) -> str | None:
        name, known = one.named[role], {step.id: step for step in before}
        if isinstance(name, str) and name in known:
            if known[name].gives == kind:
                return name
            what = f"needs {A[kind]}, and {name!r} gives {A[known[name].gives]}"
        elif name == one.id:
            what = "a step cannot take what it makes itself"
        elif name in later:
            what = f"{name!r} comes after this step"
        else:
            fitting = [step.id for step in before if step.gives == kind]
            what = f"there is no step {name!r}.{nearest(str(name), fitting)}"
        self._fault((*one.path, role), f"{one.id}.{role}", what)
        return None

    def _fault(self, path: Path, key: str, what: str) -> None:
        self.faults.add(self.document.place(path), key, what)


def usual_input(role: str, kind: Kind, before: list[Step]) -> str | None:
    """Id of the step that is taken in ``role`` where the recipe names none.

    The teacher and the baseline of a comparison are the last ``teach``; a student, and a run
    whose steps are repeated (``like``), are taken only where they are named; anything else is
    the last step of that kind, and never a control.
    """
    if role in ("student", "like"):
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


def evaluation_of(step: Step, config: EvaluateConfig) -> Step:
    """The step that measures the model or engine of ``step``."""
    inputs = {"data": "prepare", step.gives: step.id}
    return Step(f"evaluate.{step.id}", *evaluation(step.gives, config), inputs, measures=step.id)


def with_control(step: Step) -> list[Step]:
    """The step, and after it its control if it asks for one.

    The control is the same training, for the same steps, without what is in question: the
    teacher's terms, or the LLM's own weights. ``control`` itself is then off in both: it says
    nothing about the model, so it must not change its key.
    """
    config = step.config
    if not isinstance(config, (DistillConfig, TeachConfig)) or not config.control:
        return [step]
    alone = config.model_copy(update={"control": False})
    control = alone.model_copy(
        update={"losses": Losses()}
        if isinstance(alone, DistillConfig)
        else {"init": "random", "must_beat": None}
    )
    return [
        replace(step, config=alone),
        replace(
            step,
            id=f"{step.id}.control",
            config=control,
            inputs=step.inputs | {"like": step.id},
            control_of=step.id,
        ),
    ]
