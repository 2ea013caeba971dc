"""The steps of a recipe: their ids and their inputs."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from slmc.artefact import WITH_ARTICLE, Kind
from slmc.config import Seeded, StageConfig
from slmc.distill.config import TEACHERS, DistillConfig, Losses, TeachConfig
from slmc.evaluation.config import EvaluateConfig
from slmc.recipe.checks import checked
from slmc.recipe.faults import Faults, nearest
from slmc.recipe.seeds import Repeated, seeds_from
from slmc.recipe.text import Document, Path, dotted
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


@dataclass(frozen=True)
class Written:
    """A step as written in the file, before its inputs are resolved."""

    id: str
    stage: str
    path: Path
    """Path of its body in the document."""
    config: StageConfig
    named: dict[str, Any] = field(default_factory=dict)
    """Role -> id of the input step that the file names."""
    keys: dict[str, Path] = field(default_factory=dict)
    """Role -> its path below the body, where that is not the role itself: an entry of a list."""

    def key(self, role: str) -> Path:
        """Path below the body at which the file names the input of a role."""
        return self.keys.get(role, (role,))


@dataclass(frozen=True)
class Repeat:
    """The key ``seeds`` of a step."""

    path: Path
    """Its path in the document."""
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class StepReader:
    """Reads the steps of a document and collects what is wrong in ``faults``."""

    document: Document
    faults: Faults
    defaults: Mapping[str, Any]
    """Defaults of the recipe for its steps: seed, device, dtype, protocol."""
    reserved: frozenset[str]
    """Ids that no step may have: the keys of the recipe."""
    repeats: dict[str, Repeat] = field(default_factory=dict)
    """Id of each step with ``seeds`` -> those seeds; filled while reading."""

    def read(self, prepare: StageConfig) -> list[Step]:
        """All steps in the order of running, with ``prepare`` and the controls."""
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
                path, dotted(path), "a step is one stage with its settings, such as `export: {}`"
            )
            return None
        stage, body = next(iter(entry.items()))
        path = (*path, stage)
        if stage in ELSEWHERE:
            key = ELSEWHERE[stage]
            self._fault(
                path,
                dotted(path[:2]),
                f"{stage} cannot be a step; configure it with the key {key!r}",
            )
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
        lists = STAGES[stage].lists
        roles = writable_roles(stage)
        step_id = body.pop("id", stage)
        if not isinstance(step_id, str) or not ID.fullmatch(step_id):
            self._fault(
                (*path, "id"),
                stage,
                f"id: {step_id!r} may only have letters, digits, - and _, and starts with a letter",
            )
            step_id = stage
        elif step_id in self.reserved:
            self._fault(
                (*path, "id"), stage, f"id: {step_id!r} is a key of recipes; choose another id"
            )
        named = {role: body.pop(role) for role in roles & set(body)}
        raw_seeds = body.pop("seeds", None)
        keys: dict[str, Path] = {}
        for key in lists.keys() & set(body):
            listed = self._listed(
                lists[key], body.pop(key), named, (*path, key), f"{step_id}.{key}"
            )
            named |= listed
            keys |= {role: (key, i) for i, role in enumerate(listed)}
        config = checked(
            self.document,
            self.faults,
            STAGES[stage].config,
            body,
            path,
            key=step_id,
            shared=self.defaults,
            also={"id", "seeds", *roles, *lists},
        )
        if raw_seeds is not None:
            self._repeat(step_id, stage, raw_seeds, config, path)
        return Written(step_id, stage, path, config, named, keys)

    def _listed(
        self, roles: tuple[str, ...], value: Any, named: Mapping[str, Any], path: Path, key: str
    ) -> dict[str, Any]:
        """Role -> id of the inputs that a list names, in order."""
        if not isinstance(value, list) or not 1 <= len(value) <= len(roles):
            self._fault(path, key, f"a list of 1 to {len(roles)} steps, such as [teach, sasrec]")
            return {}
        if roles[0] in named:
            self._fault(path, key, f"{roles[0]} is set too; the list has all of them")
            return {}
        repeated = next((one for i, one in enumerate(value) if one in value[:i]), None)
        if repeated is not None:
            self._fault(path, key, f"{repeated!r} is in the list twice")
            return {}
        return dict(zip(roles, value, strict=False))

    def _repeat(self, step_id: str, stage: str, raw: Any, config: StageConfig, path: Path) -> None:
        """Read the ``seeds`` of a step."""
        if not can_repeat(stage):
            what = f"{stage} trains nothing, so it has no seeds to repeat"
            self._fault((*path, "seeds"), f"{step_id}.seeds", what)
            return
        body = {"seeds": raw}
        repeated = checked(self.document, self.faults, Repeated, body, path, key=step_id)
        own = self.document.value_at((*path, "seed"))
        if isinstance(raw, list) and own is not None:
            what = "leave it out: seeds lists the seeds of this step"
            self._fault((*path, "seed"), f"{step_id}.seed", what)
        seeds = getattr(repeated, "seeds", None)
        if seeds is not None:
            first = getattr(config, "seed", 0)
            self.repeats[step_id] = Repeat((*path, "seeds"), seeds_from(seeds, first))

    def _refuse_same_ids(self, written: list[Written]) -> None:
        seen: dict[str, Written] = {}
        for one in written:
            if one.id in seen:
                first = self.document.place(seen[one.id].path)
                what = (
                    f"two steps have the id {one.id!r} (the first in line {first.line}); "
                    "set `id` for one of them"
                )
                self._fault(one.path, one.id, what)
            seen.setdefault(one.id, one)

    def _first(self, stage: str, written: list[Written]) -> list[Written]:
        listed = [one for one in written if one.stage == stage]
        return listed or [self._body(stage, {}, ("steps", stage))]

    def _linked(self, one: Written, before: list[Step], later: set[str]) -> Step:
        """The step with its input steps: those that the file names, else the defaults."""
        stage = STAGES[one.stage]
        inputs = {}
        which = {}
        for role, kind in stage.takes.items():
            if role in one.named:
                taken, which[role] = self._named(one, role, kind, before, later)
            else:
                taken = default_input(role, kind, before)
                if taken is None and role not in stage.optional:
                    what = (
                        f"needs {WITH_ARTICLE[kind]} as its {role}, but no earlier step makes one"
                    )
                    self._fault(one.path, one.id, what)
            if taken is not None:
                inputs[role] = taken
        which = {role: copy for role, copy in which.items() if copy}
        return Step(one.id, one.stage, one.config, inputs, which=which)

    def _named(
        self, one: Written, role: str, kind: Kind, before: list[Step], later: set[str]
    ) -> tuple[str | None, str]:
        """Id of the step that the file names, and what it writes behind ``@``."""
        known = {step.id: step for step in before}
        name, _, which = str(one.named[role]).partition(COPY)
        if name in known:
            if known[name].gives == kind:
                return name, which
            what = (
                f"needs {WITH_ARTICLE[kind]}, but {name!r} makes {WITH_ARTICLE[known[name].gives]}"
            )
        elif name == one.id:
            what = "a step cannot be its own input"
        elif name in later:
            what = f"{name!r} comes after this step"
        else:
            fitting = [step.id for step in before if step.gives == kind]
            what = f"there is no step {name!r}.{nearest(name, fitting)}"
        self._fault((*one.path, *one.key(role)), f"{one.id}.{dotted(one.key(role))}", what)
        return None, ""

    def _fault(self, path: Path, key: str, what: str) -> None:
        self.faults.add(self.document.place(path), key, what)


def can_repeat(stage: str) -> bool:
    """Whether the stage makes a model with random draws, so that seeds change it."""
    return STAGES[stage].gives == "model" and issubclass(STAGES[stage].config, Seeded)


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
