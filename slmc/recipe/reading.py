"""Read the steps of a recipe: their settings and their inputs, written or not."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from slmc.artefact import WITH_ARTICLE, Kind
from slmc.config import StageConfig
from slmc.recipe.checks import checked
from slmc.recipe.faults import Faults, nearest
from slmc.recipe.seeds import Repeated, seeds_from
from slmc.recipe.steps import (
    COPY,
    ELSEWHERE,
    FIRST,
    ID,
    WRITABLE,
    Step,
    can_repeat,
    default_depth,
    default_input,
    with_control,
    writable_roles,
)
from slmc.recipe.text import Document, Path, dotted
from slmc.stages import STAGES


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
    """Role -> its path below the body, where that is not the role itself: an entry of a list, or
    ``layers.from``."""

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
        if "depth" in roles and isinstance(layers := body.get("layers"), dict) and "from" in layers:
            # `layers: {from: ID}` names the step; the config only says that there is one.
            body["layers"] = {**layers, "from": "depth"}
            if "depth" not in named:
                named["depth"], keys["depth"] = layers["from"], ("layers", "from")
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
        inputs: dict[str, str] = {}
        which = {}
        for role, kind in stage.takes.items():
            if role in one.named:
                taken, which[role] = self._named(one, role, kind, before, later)
            elif role == "depth":
                taken = default_depth(one.config, inputs.get("teacher"), before)
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
        stages = {"depth"} if role == "depth" else STAGES.keys()
        fitting = [step.id for step in before if step.gives == kind and step.stage in stages]
        if name in known:
            if name in fitting:
                return name, which
            step = known[name]
            made = WITH_ARTICLE[step.gives] if step.gives != kind else f"a report of {step.stage}"
            needed = WITH_ARTICLE[kind] if role != "depth" else "a report of depth"
            what = f"needs {needed}, but {name!r} makes {made}"
        elif name == one.id:
            what = "a step cannot be its own input"
        elif name in later:
            what = f"{name!r} comes after this step"
        else:
            what = f"there is no step {name!r}.{nearest(name, fitting)}"
        if role == "depth":
            what += "" if what[-1] in ".?" else "."
            what += " Put a step `- depth: {}` before this one."
        self._fault((*one.path, *one.key(role)), f"{one.id}.{dotted(one.key(role))}", what)
        return None, ""

    def _fault(self, path: Path, key: str, what: str) -> None:
        self.faults.add(self.document.place(path), key, what)
