"""A part of a recipe against its config: what pydantic refuses, in the words of the recipe."""

import json
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, NamedTuple, TypeVar, cast, get_args, get_origin

from pydantic import BaseModel, ValidationError

from slmc.config import StageConfig
from slmc.recipe.faults import Faults, nearest
from slmc.recipe.text import Document, Path, dotted

Config = TypeVar("Config", bound=StageConfig)
Model = TypeVar("Model", bound=BaseModel)

LONGEST_SHOWN = 40
SHAPES = {
    "model_type": "mapping",
    "model_attributes_type": "mapping",
    "dict_type": "mapping",
    "list_type": "list",
    "tuple_type": "list",
}


def checked(
    document: Document,
    faults: Faults,
    config: type[Config],
    raw: Any,
    path: Path,
    *,
    key: str | None = None,
    shared: Mapping[str, Any] | None = None,
    also: Iterable[str] = (),
) -> Config:
    """The validated part of a recipe; where it has faults, an unchecked one, to read on with.

    Args:
        document: The whole recipe.
        faults: Collects what is wrong.
        config: What the part has to be.
        raw: What was written there.
        path: Where it stands in the document.
        key: What the part is called in messages, if not by its path.
        shared: Settings of the recipe that stand in for those that are not written.
        also: Keys that are valid beside the config's own, for the nearest name.
    """
    if not isinstance(raw, dict):
        # The head of the recipe has told already that the part is missing or no mapping.
        return cast(Config, config.model_construct())
    defaults = {k: v for k, v in (shared or {}).items() if k in config.model_fields}
    made, wrong = reasons(config, {**defaults, **raw}, also)
    for reason in wrong:
        name = dotted((*(path if key is None else (key,)), *reason.path))
        faults.add(document.place((*path, *reason.path)), name, reason.what)
    return cast(Config, config.model_construct()) if made is None else made


class Reason(NamedTuple):
    """One fault of a mapping that a pydantic model refused."""

    path: tuple[str | int, ...]
    """Keys from the mapping to the value that is wrong."""
    what: str


def reasons(
    model: type[Model], raw: Mapping[str, Any], also: Iterable[str] = ()
) -> tuple[Model | None, list[Reason]]:
    """Validate ``raw``; give the model, or else every reason against it.

    Args:
        model: The pydantic model.
        raw: What was written.
        also: Keys that are valid beside the model's own, for the nearest name.
    """
    try:
        made = model.model_validate(dict(raw))
    except ValidationError as error:
        found: dict[tuple[str | int, ...], list[str]] = {}
        for one in error.errors(include_url=False):
            path = _written(one["loc"], raw, missing=one["type"] == "missing")
            what = _worded(one, model, path, also)
            if what not in found.setdefault(path, []):
                found[path].append(what)
        return None, [Reason(path, ", or ".join(what)) for path, what in found.items()]
    wrong = [Reason(path, "should be a number, not a truth value") for path in _truths(made, raw)]
    return (None if wrong else made), wrong


def _written(
    loc: tuple[str | int, ...], raw: Mapping[str, Any], *, missing: bool
) -> tuple[str | int, ...]:
    """The part of pydantic's location that the writer knows: without the names of union arms."""
    path: list[str | int] = []
    node: Any = raw
    for i, part in enumerate(loc):
        listed = isinstance(node, list) and isinstance(part, int) and part < len(node)
        if listed or (isinstance(node, Mapping) and part in node):
            node = node[part]
        elif not (missing and i == len(loc) - 1):
            continue
        path.append(part)
    return tuple(path)


def _worded(
    error: Any, model: type[BaseModel], path: tuple[str | int, ...], also: Iterable[str]
) -> str:
    kind, said = error["type"], error["msg"]
    if kind == "extra_forbidden":
        known = keys_at(model, path[:-1])
        name = str(path[-1])
        return f"there is no key {name!r}." + nearest(
            name, known if len(path) > 1 else {*known, *also}
        )
    if kind == "missing":
        return "must be given"
    if kind in SHAPES:
        said = f"Input should be a {SHAPES[kind]}"
    said = said.removeprefix("Value error, ")
    if said.startswith("Input should"):
        shown = json.dumps(error["input"], default=str)
        said = said.removeprefix("Input ")
        return f"{said}, not {shown}" if len(shown) <= LONGEST_SHOWN else said
    return str(said)


def keys_at(model: type[BaseModel], path: tuple[str | int, ...]) -> set[str]:
    """Keys that a mapping at ``path`` below ``model`` may have."""
    return {name for found in models_at(model, path) for name in found.model_fields}


def models_at(model: type[BaseModel], path: tuple[str | int, ...]) -> list[type[BaseModel]]:
    """Models that may stand at ``path`` below ``model``: several where a union has several."""
    models = [model]
    for part in path:
        if isinstance(part, int):
            continue
        fields = [m.model_fields[part] for m in models if part in m.model_fields]
        models = [inner for field in fields for inner in _models_in(field.annotation)]
    return models


def is_text(model: type[BaseModel] | None, path: tuple[str | int, ...]) -> bool:
    """Whether the setting at ``path`` below ``model`` is text whatever it looks like."""
    holders = models_at(model, path[:-1]) if model is not None and path else []
    fields = [m.model_fields[str(path[-1])] for m in holders if path[-1] in m.model_fields]
    kinds = {kind for field in fields for kind in members(field.annotation)}
    return bool(kinds) and kinds <= {str, type(None)} and str in kinds


def members(annotation: Any) -> list[Any]:
    """The types that a value may have: the members of a union, seen through ``Annotated``."""
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) in (typing.Union, types.UnionType):
        return [arm for part in get_args(annotation) for arm in members(part)]
    return [annotation]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [inner for part in get_args(annotation) for inner in _models_in(part)]


def _truths(made: BaseModel, raw: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Paths where a truth value was taken for a number: pydantic reads true as 1."""
    found: list[tuple[str, ...]] = []
    for name, value in raw.items():
        got = getattr(made, name, None)
        if isinstance(value, bool) and not isinstance(got, bool):
            found.append((name,))
        elif isinstance(value, Mapping) and isinstance(got, BaseModel):
            found.extend((name, *inner) for inner in _truths(got, value))
    return found
