"""Read, override and check a recipe: one YAML file with all steps and their settings.

    version: 1
    name: movies
    data:  {source: ratings.csv}
    steps:
      - teach:   {backbone: HuggingFaceTB/SmolLM2-135M, layers: 8}
      - distill: {layers: 4, control: true}
      - export:
    gates:
      - {metric: ndcg@10, baseline: teach, max_drop: 3%}

Checking needs no torch: names, types, values and inputs are all known from the configs. One error
lists all faults, each with its line.
"""

import logging
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field, field_validator

from slmc.config import Placed, Protocol, StageConfig, TrainConfig, check_select_by
from slmc.data.config import PrepareConfig, of_another_source
from slmc.errors import RecipeError
from slmc.evaluation.config import EvaluateConfig
from slmc.recipe.checks import checked
from slmc.recipe.compatibility import check_compatibility
from slmc.recipe.copies import Copier, Copies
from slmc.recipe.faults import Faults, Place, nearest
from slmc.recipe.gate_section import read_gates
from slmc.recipe.paths import check_files, check_heads, from_folder
from slmc.recipe.reading import Repeat, StepReader
from slmc.recipe.resolved import VERSION, Recipe
from slmc.recipe.seeds import Seeds, seeds_from
from slmc.recipe.sets import apply_sets, bodies
from slmc.recipe.smoke import shrunk, small_steps
from slmc.recipe.steps import Step
from slmc.recipe.sweep import ALONE, Sweep, completed, read_sweep, with_point
from slmc.recipe.text import Document, parse

Config = TypeVar("Config", bound=StageConfig)

log = logging.getLogger("slmc.recipe")

NAME = "[A-Za-z0-9][A-Za-z0-9._-]*"
SUFFIXES = (".yaml", ".yml")
CONFIGS: dict[str, type[BaseModel] | None] = {"data": PrepareConfig, "evaluate": EvaluateConfig}


class Head(Placed):
    """The keys at the top of a recipe; ``data``, ``evaluate``, steps and gates as written."""

    version: int
    """Version of the recipe format: 1."""
    name: str = Field(pattern=f"^{NAME}$")
    """Name of the recipe, and of its folder under runs/."""
    description: str = ""
    """Purpose of the recipe, in one line."""
    seed: int = Field(17, ge=0)
    """Seed of every step that sets none."""
    seeds: Seeds | None = None
    """Repeat all training with several seeds: their number, counted from the seed, or a list. A
    step can have its own instead."""
    sweep: dict[str, Any] | list[Any] | None = None
    """Settings of steps to try: lists of values by key, such as {distill.layers: [1, 2]}, of which
    every combination is a point; or a list of points."""
    select_by: str = "ndcg"
    """Validation metric that chooses the best weights of a training and decides its early stopping,
    and that chooses the best point of a sweep and the best seed: ndcg (without a cutoff, the least
    noisy), ndcg@K, hr@K, mrr or ce."""
    data: dict[str, Any]
    """The interaction log and how it is prepared."""
    evaluate: dict[str, Any] = Field(default_factory=dict)
    """How every model and engine is evaluated."""
    steps: list[Any] = Field(min_length=1)
    """The steps, in order; each is a mapping of one stage to its settings."""
    gates: list[Any] = Field(default_factory=list)
    """What the results must reach."""
    power: Literal["warn", "stop"] = "warn"
    """What to do, before the long steps, if the test set is too small for a gate."""

    _known_metric = field_validator("select_by")(check_select_by)


KEYS: dict[str, type[BaseModel] | None] = {name: CONFIGS.get(name) for name in Head.model_fields}


def load(
    name_or_path: str | Path,
    *,
    sets: Sequence[str] = (),
    smoke: bool = False,
    env: Mapping[str, str] | None = None,
    files: bool = False,
) -> Recipe:
    """Read and check a recipe.

    Relative paths in a recipe file start at the file's folder; those of ``sets`` and of packaged
    recipes start at the working directory.

    Args:
        name_or_path: Name of a packaged recipe, or path of a YAML file.
        sets: Overrides ``KEY=VALUE``, such as ``distill.layers=2`` or ``data.users=100``.
        smoke: Make everything small: a random backbone, few users, one epoch.
        env: Variables for ``${NAME:-default}``; the process's own if left out.
        files: Also check that the local files of the recipe exist.

    Raises:
        RecipeError: The file cannot be read, or it has faults; the error lists all.
    """
    text, source = _text(str(name_or_path))
    faults = Faults()
    document = parse(text, source, os.environ if env is None else env, faults)
    name = shlex.quote(str(name_or_path))
    if not isinstance(document.value, dict):
        if not faults:
            faults.add(
                Place(source, 1), "", "a recipe is a mapping; `slmc recipe schema` lists its keys"
            )
        faults.stop(name)
    if _is_newer(document, faults):
        faults.stop(name)
    if (path := _path_of(str(name_or_path))) is not None:
        from_folder(document.value, path.parent)
    apply_sets(document, sets, KEYS, faults)
    recipe = _read(document, faults, name, files=files)
    options = [f"--set {shlex.quote(one)}" for one in sets] + ["--smoke"] * smoke
    command = " ".join(["slmc run", name, *options])
    recipe = replace(recipe, command=command)
    return _smoke(recipe) if smoke else recipe


def packaged() -> list[str]:
    """Names of the recipes that ship with slmc."""
    files = (Path(entry.name) for entry in resources.files("slmc.recipes").iterdir())
    return sorted(path.stem for path in files if path.suffix in SUFFIXES)


def text_of(name_or_path: str | Path) -> str:
    """The YAML text of a recipe as written; raises as :func:`load`."""
    return _text(str(name_or_path))[0]


def renamed(text: str, before: str, file: Path) -> str:
    """The text of a recipe with the name of a copy, also in the commands of its comments.

    Args:
        text: The recipe as written.
        before: Its name or path on the command line.
        file: Path of the copy. If its stem is not a valid recipe name, the text stays the same.
    """
    if not re.fullmatch(NAME, file.stem):
        return text
    text = re.sub(r"^name:.*$", lambda _: f"name: {file.stem}", text, count=1, flags=re.MULTILINE)
    command = rf"(?<=slmc run ){re.escape(before)}(?=\s)"
    return re.sub(command, lambda _: shlex.quote(str(file)), text)


def _text(name_or_path: str) -> tuple[str, str]:
    """The text of a recipe and the name of its file."""
    path = _path_of(name_or_path)
    content: Path | Traversable
    if path is not None:
        content, source = path, name_or_path
    elif name_or_path in packaged():
        content, source = (
            resources.files("slmc.recipes") / f"{name_or_path}.yaml",
            f"{name_or_path}.yaml",
        )
    else:
        raise RecipeError(
            f"there is no packaged recipe {name_or_path!r}.{nearest(name_or_path, packaged())}",
            "`slmc recipe ls` lists them; name your own recipe by a path that ends in .yaml.",
        )
    try:
        return content.read_text(encoding="utf-8"), source
    except UnicodeDecodeError:
        raise RecipeError(
            f"{source} is not a recipe: it is not UTF-8 text.",
            "Name a YAML file; `slmc recipe show quickstart` prints one.",
        ) from None
    except OSError as error:
        raise RecipeError(
            f"{source} cannot be read: {error.strerror}.",
            "Name a YAML file or a packaged recipe; `slmc recipe ls` lists the packaged ones.",
        ) from None


def _path_of(name_or_path: str) -> Path | None:
    """The path of a recipe; None for the name of a packaged one."""
    path = Path(name_or_path)
    return path if path.suffix in SUFFIXES or len(path.parts) > 1 else None


def _is_newer(document: Document, faults: Faults) -> bool:
    """Whether the recipe has another format, so that its other faults mean nothing."""
    version = document.value.get("version")
    if type(version) is not int or version == VERSION:
        return False
    what = f"unknown recipe format {version}; this slmc reads format {VERSION}"
    faults.add(document.place(("version",)), "version", what)
    return True


def _read(document: Document, faults: Faults, name: str, *, files: bool) -> Recipe:
    raw = document.value
    head = checked(document, faults, Head, raw, ())
    shared = {name: getattr(head, name) for name in ("seed", "device", "dtype")}
    data = checked(document, faults, PrepareConfig, raw.get("data"), ("data",), shared=shared)
    evaluate = checked(
        document, faults, EvaluateConfig, raw.get("evaluate", {}), ("evaluate",), shared=shared
    )
    protocol = {name: getattr(evaluate, name) for name in Protocol.model_fields}
    defaults = shared | protocol | {"select_by": head.select_by}
    reading = _read_steps(document, faults, data, defaults)
    if not faults:
        for at_point, steps in zip(reading.documents, reading.steps, strict=True):
            check_compatibility(at_point, faults, steps)
    if files:
        for at_point in reading.documents:
            check_files(at_point, faults)
        if not faults:
            check_heads(document, faults, data)
    seeds, origins = _seeds(document, faults, head, reading)
    copies = Copies(tuple(reading.steps[0]))
    if not faults:
        copies = _copies(reading, faults, seeds, origins)
    gates, ranked = read_gates(document, faults, copies)
    faults.stop(name)
    _warn_of_another_source(document)
    is_repeated = len(copies.steps) > len(reading.steps[0])
    return Recipe(
        head.name,
        head.description,
        head.seed,
        head.device,
        head.dtype,
        data,
        evaluate,
        copies.steps,
        tuple(gates),
        head.power,
        select_by=head.select_by,
        seeds=seeds,
        seeded=tuple(reading.repeats),
        sweep=reading.sweep,
        written=tuple(reading.steps[0]) if is_repeated else (),
        choices=copies.choices,
        ranked=copies.ranked | ranked,
    )


@dataclass(frozen=True)
class _Reading:
    """The steps of a recipe as written, at each point of its sweep."""

    sweep: Sweep
    documents: list[Document]
    """The document with the settings of each point."""
    steps: list[list[Step]]
    repeats: dict[str, Repeat]


def _read_steps(
    document: Document, faults: Faults, data: PrepareConfig, defaults: Mapping[str, Any]
) -> _Reading:
    repeats: dict[str, Repeat] = {}

    def read(one: Document) -> list[Step]:
        reserved = frozenset(KEYS) | {"source", "prepare"}
        return StepReader(one, faults, defaults, reserved, repeats).read(data)

    points = read_sweep(document, faults, KEYS)
    if len({frozenset(point.settings) for point in points}) > 1:
        alone = read(document)
        points = [] if faults else list(completed(points, alone))
    sweep = Sweep(tuple(points) or ALONE)
    documents = [with_point(document, point, KEYS, faults) for point in sweep.points]
    return _Reading(sweep, documents, [read(one) for one in documents], repeats)


def _seeds(
    document: Document, faults: Faults, head: Head, reading: _Reading
) -> tuple[tuple[int, ...], frozenset[str]]:
    """The seeds of a recipe, and the steps at which they begin."""
    trained = {step.id for step in reading.steps[0] if isinstance(step.config, TrainConfig)}
    all_seeds = getattr(head, "seeds", None)
    for step_id, repeat in reading.repeats.items():
        first_id, first = next(iter(reading.repeats.items()))
        what = ""
        if all_seeds is not None:
            what = "the recipe has seeds too; set them in one place"
        elif repeat.seeds != first.seeds:
            what = f"all steps are repeated with the same seeds, and {first_id!r} has others"
        if what:
            faults.add(document.place(repeat.path), f"{step_id}.seeds", what)
    if all_seeds is not None:
        return seeds_from(all_seeds, head.seed), frozenset(trained)
    seeds = next((repeat.seeds for repeat in reading.repeats.values()), ())
    return seeds, frozenset(reading.repeats)


def _copies(
    reading: _Reading, faults: Faults, seeds: tuple[int, ...], origins: frozenset[str]
) -> Copies:
    document = reading.documents[0]
    paths = {step_id: path for step_id, (path, _) in bodies(document).items()}
    return Copier(document, faults, reading.sweep, seeds, origins, reading.steps, paths).all()


def _warn_of_another_source(document: Document) -> None:
    data = document.value["data"]
    for key, of in of_another_source(data).items():
        log.warning(
            "%s: data.%s is ignored: it is for a source whose name contains %r, but data.source is "
            "%s",
            document.place(("data", key)), key, of, data["source"],
        )  # fmt: skip


def _smoke(recipe: Recipe) -> Recipe:
    """The recipe with the same steps on a random backbone and few users."""
    return replace(
        recipe,
        data=shrunk(recipe.data),
        evaluate=shrunk(recipe.evaluate),
        steps=small_steps(recipe.steps),
        written=small_steps(recipe.written),
        smoke=True,
    )
