"""The key ``sweep`` of a recipe: which settings are tried.

A mapping of settings to lists of values is a grid, of which every combination is a point; a list
has the points one by one:

    sweep: {distill.layers: [1, 2], distill.losses.logits: [0.5, 1]}
    sweep: [{distill.layers: 1, distill.lr: 1e-3}, {distill.layers: 2, distill.lr: 5e-4}]
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from slmc.recipe.faults import Faults, nearest
from slmc.recipe.sets import Keys, bodies, put_setting
from slmc.recipe.steps import COPY, ELSEWHERE, FIRST, Step, as_written
from slmc.recipe.text import Document, Path, dotted

MOST_STEPS = 200
"""Largest number of steps that ``sweep`` and ``seeds`` may make of a recipe's steps."""
WORD = re.compile(r"[A-Za-z0-9._+-]{1,32}")
"""A value that can be part of a step's id."""
LONGEST_NAME = 100
"""Longest name of a point; a longer one is replaced by a number, since ids are file names."""
NUMBERED = "point-"
"""Begins such a number."""
NOT_SWEPT = {
    "id": "an id cannot be swept",
    "control": "control cannot be swept; with `control: true` every point has a control",
    "seed": "a seed cannot be swept; set seeds, such as `seeds: [17, 18, 19]`",
    "seeds": "seeds cannot be swept; they repeat every point",
}


@dataclass(frozen=True)
class Point:
    """Settings that are tried together."""

    settings: dict[str, Any]
    """Key, such as ``distill.layers`` -> value; empty without a sweep."""
    paths: dict[str, Path] = field(compare=False)
    """Key -> its path in the document."""


ALONE = (Point({}, {}),)
"""The only point of a recipe without a sweep."""


@dataclass(frozen=True)
class Sweep:
    """The points of a recipe, all with the same keys."""

    points: tuple[Point, ...] = ALONE

    @property
    def keys(self) -> tuple[str, ...]:
        """The swept keys, in the order of the recipe."""
        return tuple(self.points[0].settings)

    def settings_at(self, point: Point, keys: frozenset[str]) -> dict[str, Any]:
        """The settings of a point under some of the keys."""
        return {key: value for key, value in point.settings.items() if key in keys}

    def name(self, settings: Mapping[str, Any]) -> str:
        """Name of the point with these settings, such as ``layers=1,logits=0.5``."""
        keys = list(settings)
        names = [f"{_short(key, keys)}={self._word(key, value)}" for key, value in settings.items()]
        name = ",".join(names)
        if len(name) <= LONGEST_NAME:
            return name
        same = [i for i, p in enumerate(self.points) if settings.items() <= p.settings.items()]
        return f"{NUMBERED}{1 + same[0]}"

    def _word(self, key: str, value: Any) -> str:
        """The value as a word; its number, such as ``v2``, if not all values are short words."""
        values = [point.settings[key] for point in self.points]
        distinct = list({_text(one): one for one in values}.values())
        words = [_as_word(one) for one in distinct]
        place = [_text(one) for one in distinct].index(_text(value))
        if len({*words}) == len(words) and all(WORD.fullmatch(word) for word in words):
            return words[place]
        return f"v{1 + place}"


def read_sweep(document: Document, faults: Faults, keys: Keys) -> list[Point]:
    """The points of a recipe as written; none without a sweep, or if it has faults.

    Args:
        document: The whole recipe.
        faults: Collects what is wrong.
        keys: The recipe's top-level keys.
    """
    raw, before = document.value.get("sweep"), Faults()
    if not isinstance(raw, dict | list):
        return []  # absent, or a fault of the head
    if not raw:
        before.add(document.place(("sweep",)), "sweep", "is empty; leave it out")
    points = _grid(document, before, raw) if isinstance(raw, dict) else []
    points = _listed(document, before, raw) if isinstance(raw, list) else points
    for key, at in {k: p for point in points for k, p in point.paths.items()}.items():
        if (refusal := _refusal(document, key, keys)) is not None:
            path = at if isinstance(at[-1], str) else at[:-1]
            before.add(document.place(path), dotted(path), refusal)
    if not before:
        _refuse_same_points(document, before, points)
    faults.extend(before)
    return [] if before else points


def with_point(document: Document, point: Point, keys: Keys, faults: Faults) -> Document:
    """A copy of the document with the settings of a point, whose faults are those of the sweep."""
    changed = Document(deepcopy(document.value), dict(document.places))
    for key, value in point.settings.items():
        place = document.place(point.paths[key])
        put_setting(changed, key, deepcopy(value), keys, place, faults)
    return changed


def completed(points: Sequence[Point], steps: Sequence[Step]) -> tuple[Point, ...]:
    """The points with a value for every key; a missing one has the value of the recipe.

    Args:
        points: The points as written.
        steps: The steps without the sweep, without faults.
    """
    keys = {key: point.paths[key] for point in points for key in point.settings}
    known = {step.id: step for step in steps}
    return tuple(
        Point(
            {
                key: point.settings[key] if key in point.settings else _value_of(key, known)
                for key in keys
            },
            keys | point.paths,
        )
        for point in points
    )


def _value_of(key: str, known: Mapping[str, Step]) -> Any:
    """The value of a setting that the recipe has without the sweep."""
    step_id, _, rest = key.partition(".")
    step = known[step_id]
    inputs = {r: COPY.join(filter(None, (i, step.which.get(r)))) for r, i in step.inputs.items()}
    if rest in (named := as_written(step.stage, inputs)):
        return named[rest]
    value: Any = step.config.model_dump(mode="json")
    for part in rest.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _grid(document: Document, faults: Faults, raw: Mapping[str, Any]) -> list[Point]:
    """The points of a grid; the last key varies fastest."""
    axes: dict[str, tuple[list[Any], Path]] = {}
    for key, values, path in _axes(document, faults, raw, (), ("sweep",)):
        if key in axes:
            faults.add(document.place(path), dotted(path), f"{key} is swept twice")
        axes[key] = values, path
        if len({_text(value) for value in values}) < len(values):
            faults.add(document.place(path), dotted(path), "a value is listed twice")
    if (count := math.prod(len(values) for values, _ in axes.values())) > MOST_STEPS:
        what = f"is a grid of {count} points; at most {MOST_STEPS} steps are allowed"
        faults.add(document.place(("sweep",)), "sweep", what)
        return []
    return [
        Point(
            dict(zip(axes, values, strict=True)),
            {
                key: (*path, axis.index(value))
                for (key, (axis, path)), value in zip(axes.items(), values, strict=True)
            },
        )
        for values in product(*(values for values, _ in axes.values()))
    ]


def _axes(
    document: Document, faults: Faults, node: Mapping[str, Any], parts: Path, path: Path
) -> Iterator[tuple[str, list[Any], Path]]:
    """Every key of a grid with its values; keys may be nested or written with dots."""
    for name, inner in node.items():
        key, at = (*parts, name), (*path, name)
        if isinstance(inner, dict) and inner:
            yield from _axes(document, faults, inner, key, at)
        elif isinstance(inner, list) and inner:
            yield dotted(key), inner, at
        else:
            what = "should be a list of values, such as [1, 2]"
            faults.add(document.place(at), dotted(at), what)


def _listed(document: Document, faults: Faults, raw: Sequence[Any]) -> list[Point]:
    """The points of a list."""
    if len(raw) > MOST_STEPS:
        what = f"has {len(raw)} points; at most {MOST_STEPS} steps are allowed"
        faults.add(document.place(("sweep",)), "sweep", what)
        return []
    points = []
    for i, entry in enumerate(raw):
        path: Path = ("sweep", i)
        if not isinstance(entry, dict) or not entry:
            what = "a point is a mapping of settings to values, such as {distill.layers: 1}"
            faults.add(document.place(path), dotted(path), what)
            continue
        point = Point({}, {})
        for name, value in entry.items():
            nested = "." not in name and isinstance(value, dict)
            for rest, inner in value.items() if nested else [("", value)]:
                key = f"{name}.{rest}" if nested else name
                point.settings[key] = inner
                point.paths[key] = (*path, name, rest) if nested else (*path, name)
        points.append(point)
    return points


def _refusal(document: Document, key: str, keys: Keys) -> str | None:
    """Why a key cannot be swept; None if it can, as far as its step is concerned."""
    step, _, rest = key.partition(".")
    known = {*bodies(document), *FIRST}
    if step == "baselines" or (step not in known and (step in keys or step in ELSEWHERE)):
        return (
            f"{step} must be the same for all points, so that they can be compared; run the "
            "recipe once for each value and compare the runs with `slmc diff`"
        )
    if step not in known:
        return f"there is no step {step!r}.{nearest(step, known - {'baselines'})}"
    if not rest:
        return f"name a setting of the step, such as {step}.lr"
    return NOT_SWEPT.get(rest)


def _refuse_same_points(document: Document, faults: Faults, points: Sequence[Point]) -> None:
    seen: dict[str, int] = {}
    for i, point in enumerate(points):
        first = seen.setdefault(_text(dict(sorted(point.settings.items()))), i)
        if first != i:
            place = document.place(("sweep", i))
            faults.add(place, f"sweep.{i}", f"is the same point as sweep.{first}")


def _text(value: Any) -> str:
    """A value as text; equal values of one type have equal texts."""
    return json.dumps(value, sort_keys=True, default=str)


def _short(key: str, keys: Sequence[str]) -> str:
    """The last parts of a key, as many as tell it from the other keys."""
    parts = key.split(".")
    for count in range(1, len(parts)):
        end = ".".join(parts[-count:])
        if sum(f".{other}".endswith(f".{end}") for other in keys) == 1:
            return end
    return key


def _as_word(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(_as_word(one) for one in value)
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return value if isinstance(value, str) else json.dumps(value)
