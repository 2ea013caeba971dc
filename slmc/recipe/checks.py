"""Validate a part of a recipe against its config, with messages in terms of the recipe."""

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
    """The validated part of a recipe; if it has faults, an unvalidated one to continue with.

    Args:
        document: The whole recipe.
        faults: Collects what is wrong.
        config: Config class of the part.
        raw: The part as written.
        path: Its path in the document.
        key: Its name in messages; its path if left out.
        shared: Values of the recipe for settings that the part leaves out.
        also: Further valid keys, for "Did you mean".
    """
    if not isinstance(raw, dict):
        # The head of the recipe has reported a missing part or one that is not a mapping.
        return cast(Config, config.model_construct())
    defaults = {k: v for k, v in (shared or {}).items() if k in config.model_fields}
    valid, wrong = reasons(config, {**defaults, **raw}, also)
    for reason in wrong:
        name = dotted((*(path if key is None else (key,)), *reason.path))
        faults.add(document.place((*path, *reason.path)), name, reason.what)
    return cast(Config, config.model_construct()) if valid is None else valid


class Reason(NamedTuple):
    """One fault of a mapping that a pydantic model rejects."""

    path: tuple[str | int, ...]
    """Keys from the mapping to the wrong value."""
    what: str


def reasons(
    model: type[Model], raw: Mapping[str, Any], also: Iterable[str] = ()
) -> tuple[Model | None, list[Reason]]:
    """Validate ``raw``; return the validated model, or None and every fault.

    Args:
        model: The pydantic model.
        raw: The mapping as written.
        also: Further valid keys, for "Did you mean".
    """
    try:
        valid = model.model_validate(dict(raw))
    except ValidationError as error:
        by_path: dict[tuple[str | int, ...], list[str]] = {}
        for one in error.errors(include_url=False):
            path = _written(one["loc"], raw, missing=one["type"] == "missing")
            what = _message(one, model, path, also)
            if what not in by_path.setdefault(path, []):
                by_path[path].append(what)
        return None, [Reason(path, ", or ".join(what)) for path, what in by_path.items()]
    wrong = [Reason(path, "should be a number, not true or false") for path in _truths(valid, raw)]
    return (None if wrong else valid), wrong


def _written(
    loc: tuple[str | int, ...], raw: Mapping[str, Any], *, missing: bool
) -> tuple[str | int, ...]:
    """Pydantic's location without the names of union members, which are not in the recipe."""
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


def _message(
    error: Any, model: type[BaseModel], path: tuple[str | int, ...], also: Iterable[str]
) -> str:
    kind, text = error["type"], error["msg"]
    if kind == "extra_forbidden":
        known = keys_at(model, path[:-1])
        name = str(path[-1])
        return f"there is no key {name!r}." + nearest(
            name, known if len(path) > 1 else {*known, *also}
        )
    if kind == "missing":
        return "is required"
    if kind in SHAPES:
        text = f"Input should be a {SHAPES[kind]}"
    text = text.removeprefix("Value error, ")
    if text.startswith("Input should"):
        shown = json.dumps(error["input"], default=str)
        text = text.removeprefix("Input ")
        return f"{text}, not {shown}" if len(shown) <= LONGEST_SHOWN else text
    return str(text)


def keys_at(model: type[BaseModel], path: tuple[str | int, ...]) -> set[str]:
    """Keys that a mapping at ``path`` below ``model`` may have."""
    return {name for inner in models_at(model, path) for name in inner.model_fields}


def models_at(model: type[BaseModel], path: tuple[str | int, ...]) -> list[type[BaseModel]]:
    """Models that the value at ``path`` below ``model`` may have; several for a union."""
    models = [model]
    for part in path:
        if isinstance(part, int):
            continue
        fields = [m.model_fields[part] for m in models if part in m.model_fields]
        models = [inner for field in fields for inner in _models_in(field.annotation)]
    return models


def is_text(model: type[BaseModel] | None, path: tuple[str | int, ...]) -> bool:
    """Whether the setting at ``path`` below ``model`` is always text."""
    holders = models_at(model, path[:-1]) if model is not None and path else []
    fields = [m.model_fields[str(path[-1])] for m in holders if path[-1] in m.model_fields]
    kinds = {kind for field in fields for kind in members(field.annotation)}
    return bool(kinds) and kinds <= {str, type(None)} and str in kinds


def members(annotation: Any) -> list[Any]:
    """The types that a value may have: the members of a union, without ``Annotated``."""
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) in (typing.Union, types.UnionType):
        return [arm for part in get_args(annotation) for arm in members(part)]
    return [annotation]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [inner for part in get_args(annotation) for inner in _models_in(part)]


def _truths(valid: BaseModel, raw: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Paths where pydantic has read true or false as a number."""
    paths: list[tuple[str, ...]] = []
    for name, value in raw.items():
        parsed = getattr(valid, name, None)
        if isinstance(value, bool) and not isinstance(parsed, bool):
            paths.append((name,))
        elif isinstance(value, Mapping) and isinstance(parsed, BaseModel):
            paths.extend((name, *inner) for inner in _truths(parsed, value))
    return paths
