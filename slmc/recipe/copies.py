"""Repeat the steps of a recipe for every point of its sweep and every seed.

A copy of a step is made for each combination of the settings and seeds that reach it. They reach
the step that they belong to, its control, and every later step that makes a model from it. An
export takes the best model, chosen on validation, unless the recipe names another:

    distill@layers=1         with this point
    distill@layers=1@18      and this seed
    distill@best             the best point, and of its seeds the best
    distill@each             every copy, so that the later step is repeated too

Letters: a reach is the set of swept keys, and :data:`SEED` if the seeds reach the step.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from slmc.config import Seeded
from slmc.recipe.faults import Faults, nearest
from slmc.recipe.steps import COPY, Copy, Step, can_repeat
from slmc.recipe.sweep import MOST_STEPS, Sweep
from slmc.recipe.text import Document, Path

BEST, EACH, SAME = "best", "each", "same"
SEED = "seed"
"""Stands for the seeds in a reach; no swept key has this name, since keys have dots."""
TAKES_BEST = {("export", "model"), ("bench", "baseline")}
"""Stage and role of the inputs that are one copy, unless the recipe names ``each``."""

Reach = frozenset[str]


@dataclass(frozen=True)
class Choice:
    """One of several copies of a step, known only while the recipe runs."""

    candidates: tuple[str, ...]
    """Ids of the copies, in their order."""


@dataclass(frozen=True)
class Copies:
    """All copies of all steps."""

    steps: tuple[Step, ...] = ()
    """In the order of running: the copies of a step follow each other."""
    choices: dict[str, Choice] = field(default_factory=dict)
    """Name of an input that is chosen while the recipe runs, such as ``distill@best``."""
    ranked: frozenset[str] = frozenset()
    """Ids as written of the steps whose copies are ranked on validation."""
    lineage: dict[str, Reach] = field(default_factory=dict)
    """Id as written -> everything that tells the models apart from which the step is made."""


@dataclass
class Copier:
    """Makes the copies of all steps of a recipe."""

    document: Document
    faults: Faults
    sweep: Sweep
    seeds: tuple[int, ...]
    origins: frozenset[str]
    """Ids of the steps at which the seeds begin."""
    readings: Sequence[Sequence[Step]]
    """The steps as written, for each point of the sweep."""
    paths: Mapping[str, Path]
    """Id of each written step -> path of its settings in the document."""
    reach: dict[str, Reach] = field(default_factory=dict)
    lineage: dict[str, Reach] = field(default_factory=dict)
    copies: dict[str, list[Step]] = field(default_factory=dict)
    choices: dict[str, Choice] = field(default_factory=dict)
    ranked: set[str] = field(default_factory=set)

    def all(self) -> Copies:
        """The copies of all steps; faults are collected."""
        for variants in zip(*self.readings, strict=True):
            self.reach[variants[0].id] = self._reach(variants)
        if not self._few_enough():
            return Copies(tuple(self.readings[0]))
        for variants in zip(*self.readings, strict=True):
            self.copies[variants[0].id] = list(self._copies(variants))
        steps = tuple(step for copies in self.copies.values() for step in copies)
        swept = {key.partition(".")[0] for key in self.sweep.keys}
        swept = {one for one in swept if self.readings[0] and self._is_model(one)}
        return Copies(steps, self.choices, frozenset(self.ranked | swept), self.lineage)

    def _is_model(self, step_id: str) -> bool:
        return self.copies[step_id][0].gives == "model"

    def _reach(self, variants: Sequence[Step]) -> Reach:
        """What the copies of a step differ in; its variants are those of the points."""
        step = variants[0]
        own = step.control_of or step.id
        reach = {key for key in self.sweep.keys if key.startswith(f"{own}.")}
        reach |= {SEED} if self.seeds and own in self.origins else set()
        for one in variants:
            for role, taken in one.inputs.items():
                which = one.which.get(role)
                if which == EACH or (which is None and (one.stage, role) not in TAKES_BEST):
                    reach |= self.reach[taken]
        return frozenset(reach)

    def _few_enough(self) -> bool:
        """Check the number of copies before they are made."""
        counts = {
            step.id: len(self._points(step.id)) * len(self._seeds(step.id))
            for step in self.readings[0]
        }
        if sum(counts.values()) <= MOST_STEPS or not self._is_repeated():
            return True
        most = max(counts, key=lambda one: counts[one])
        what = (
            f"makes {sum(counts.values())} steps ({counts[most]} copies of {most!r}); at most "
            f"{MOST_STEPS} are allowed. Sweep fewer values, or repeat fewer steps with `seeds`"
        )
        path: Path = ("sweep",)
        if not self.sweep.keys:
            own = [(*self.paths[one], "seeds") for one in self.origins if one in self.paths]
            own = [one for one in own if self.document.value_at(one) is not None]
            path = own[0] if own else ("seeds",)
        self.faults.add(self.document.place(path), str(path[-1]), what)
        return False

    def _is_repeated(self) -> bool:
        return len(self.sweep.points) > 1 or bool(self.seeds)

    def _points(self, step_id: str) -> list[tuple[int, dict[str, object]]]:
        """The different points of a step: number of the first full point, and the settings."""
        keys = self.reach[step_id] - {SEED}
        points: list[tuple[int, dict[str, object]]] = []
        for i, point in enumerate(self.sweep.points):
            settings = self.sweep.settings_at(point, keys)
            if not any(settings == other for _, other in points):
                points.append((i, settings))
        return points

    def _seeds(self, step_id: str) -> tuple[int | None, ...]:
        return self.seeds if SEED in self.reach[step_id] else (None,)

    def _copies(self, variants: Sequence[Step]) -> Iterator[Step]:
        for number, settings in self._points(variants[0].id):
            for seed in self._seeds(variants[0].id):
                yield self._copy(variants[number], settings, seed)

    def _copy(self, step: Step, settings: dict[str, object], seed: int | None) -> Step:
        copy = Copy(step.id, self.sweep.name(settings), settings, seed)
        alone = not settings and seed is None
        copied = step if alone else replace(step, id=copy.id, copy=copy)
        if seed is not None and can_repeat(step.stage) and isinstance(step.config, Seeded):
            self._refuse_own_seed(step)
            copied = replace(copied, config=step.config.model_copy(update={"seed": seed}))
        # A baseline comes last: it follows the model that is compared with it.
        known, inputs = self.reach[step.id], {}
        for role in sorted(step.inputs, key=lambda role: role == "baseline"):
            inputs[role] = self._input(step, copy, role, known)
            known |= self.lineage[step.inputs[role]]
        self.lineage[step.id] = known
        control_of = step.control_of and replace(copy, of=step.control_of).id
        return replace(
            copied, inputs={r: inputs[r] for r in step.inputs}, control_of=control_of, which={}
        )

    def _refuse_own_seed(self, step: Step) -> None:
        """A seed of its own has no effect where seeds repeat the step, unless they start there."""
        own = step.control_of or step.id
        path = self.paths.get(own)
        if path is None or self.document.value_at((*path, "seed")) is None:
            return
        if self.document.value_at((*path, "seeds")) is None:
            what = "has no effect, since seeds repeat this step; leave it out"
            self.faults.add(self.document.place((*path, "seed")), f"{own}.seed", what)

    def _input(self, step: Step, copy: Copy, role: str, known: Reach) -> str:
        """The copy that is the input of a copy in a role, or the name of a choice.

        Args:
            step: The step as written.
            copy: Its copy.
            role: Of the input.
            known: What the inputs before it already decide.
        """
        taken, which = step.inputs[role], step.which.get(role)
        among = self.copies[taken]
        if len(among) == 1 and which in (None, BEST, EACH):
            return among[0].id
        named = among if which in (None, BEST, EACH) else self._named(step, role, among)
        fits = [one for one in named if agree(one.copy, copy)]
        if len(fits) <= 1:
            return fits[0].id if fits else among[0].id
        follows = which is None and self.reach[taken] <= known
        self.ranked |= set() if follows else {taken}
        choice = Choice(tuple(one.id for one in fits))
        name = f"{taken}{COPY}{SAME}" if follows else _best_of(fits)
        number = 2
        while self.choices.setdefault(name, choice) != choice:  # the same name for other copies
            name, number = f"{name.partition('~')[0]}~{number}", number + 1
        return name

    def _named(self, step: Step, role: str, among: Sequence[Step]) -> list[Step]:
        """The copies that the recipe names behind ``@``."""
        reference = f"{step.inputs[role]}{COPY}{step.which[role]}"
        fits = matching(reference, among)
        if not fits:
            own = step.control_of or step.id
            what = no_copy(reference, among, also=(BEST, EACH))
            place = self.document.place((*self.paths[own], role))
            self.faults.add(place, f"{own}.{role}", what)
        return fits


def _best_of(fits: Sequence[Step]) -> str:
    """Name of the best of some copies: ``distill@best``, ``distill@layers=1@best``."""
    points = {one.label for one in fits}
    seeds = {one.copy.seed for one in fits if one.copy is not None}
    name = f"{fits[0].label if len(points) == 1 else fits[0].written}{COPY}{BEST}"
    return name if len(seeds) > 1 else f"{name}{COPY}{seeds.pop()}" if seeds != {None} else name


def agree(one: Copy | None, other: Copy | None) -> bool:
    """Whether two copies have the same settings and seed, as far as both have them."""
    if one is None or other is None:
        return True
    common = one.settings.keys() & other.settings.keys()
    same = all(one.settings[key] == other.settings[key] for key in common)
    return same and (one.seed is None or other.seed is None or one.seed == other.seed)


def matching(reference: str, copies: Sequence[Step]) -> list[Step]:
    """The copies that a reference without ``best`` means: ``distill``, ``distill@18``."""
    if COPY not in reference:
        return list(copies)
    return [one for one in copies if reference in (one.id, one.label)]


def no_copy(reference: str, copies: Sequence[Step], also: Sequence[str] = (BEST,)) -> str:
    """The message about a reference to a copy that does not exist."""
    written = reference.partition(COPY)[0]
    if len(copies) == 1:
        return f"{written!r} is not repeated, so there is no {reference!r}"
    names = dict.fromkeys([*(one.label for one in copies), *(one.id for one in copies)])
    known = [name for name in names if name != written]
    known += [f"{written}{COPY}{one}" for one in also]
    return f"there is no {reference!r}.{nearest(reference, known)}"
