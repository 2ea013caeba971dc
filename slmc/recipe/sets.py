"""``--set distill.layers=2``: override a value of a recipe on the command line."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from slmc.recipe.checks import is_text
from slmc.recipe.faults import Faults, Place, nearest
from slmc.recipe.steps import ELSEWHERE, FIRST
from slmc.recipe.text import NULL, Document, Path, dotted, parse, scalar
from slmc.stages import STAGES

Keys = Mapping[str, type[BaseModel] | None]
"""Top-level keys of a recipe -> config class of the value; None if it has none."""
TEXTS = frozenset({"name", "description"})
"""Top-level keys whose value is text."""


def apply_sets(document: Document, sets: Sequence[str], keys: Keys, faults: Faults) -> None:
    """Apply each ``KEY=VALUE`` to the document and collect what is wrong in ``faults``.

    Args:
        document: The recipe; changed in place.
        sets: ``KEY=VALUE``, where KEY starts with a top-level key or the id of a step. VALUE is
            a number, a word, ``[a list]`` or ``{a: mapping}``. The value of a text setting is
            taken literally, with or without quotes.
        keys: The recipe's top-level keys.
        faults: Collects what is wrong.
    """
    for text in sets:
        place = Place(f"--set {text}", 0)
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            faults.add(place, "", "expected KEY=VALUE, such as distill.layers=2")
            continue
        parts = key.strip().split(".")
        if len(parts) == 1 and parts[0] in bodies(document):
            faults.add(place, key, f"add a setting of the step, such as {key}.seed=3")
            continue
        start = _start(document, parts, keys)
        if start is None:
            known = {*bodies(document), *keys, *FIRST}
            what = f"there is no step or key {parts[0]!r}.{nearest(parts[0], known)}"
            faults.add(place, parts[0], what)
            continue
        path, model = start
        # Of the top-level keys only data and evaluate have a config class.
        text_only = is_text(model, tuple(parts[1:])) or key.strip() in TEXTS
        wrong = Faults()
        read = _value(value, text_only, place, wrong)
        if wrong:
            faults.add(place, key, f"{value!r} is not valid YAML")
            continue
        _put(document, (*path, *parts[1:]), len(path), read, model, place, faults)


def put_setting(
    document: Document, key: str, value: Any, keys: Keys, place: Place, faults: Faults
) -> None:
    """Set ``STEP.SETTING`` of a document to a value.

    Args:
        document: The recipe; changed in place.
        key: The id of a step of the document and the keys below it, with dots.
        value: Plain data.
        keys: The recipe's top-level keys.
        place: Where the value is from, for the messages about it.
        faults: Collects what is wrong.
    """
    parts = key.split(".")
    start = _start(document, parts, keys)
    assert start is not None, f"{key} is not the setting of a step"
    path, model = start
    _put(document, (*path, *parts[1:]), len(path), value, model, place, faults)


def _value(text: str, text_only: bool, place: Place, faults: Faults) -> Any:
    """The value of a change; comments, anchors and tags are not special in it."""
    opens, closes = text[:1], text[-1:]
    quoted = len(text) > 1 and opens == closes and opens in "\"'"
    if quoted or (opens in ("[", "{") and not text_only):
        return parse(text, place.source, {}, faults).value
    if text_only:
        return text if NULL.fullmatch(text) is None else None
    return scalar(text.strip())


def bodies(document: Document) -> dict[str, tuple[Path, type[BaseModel]]]:
    """Id of each step -> path of its settings, and their config class."""
    steps = document.value.get("steps")
    bodies_by_id: dict[str, tuple[Path, type[BaseModel]]] = {}
    for i, entry in enumerate(steps if isinstance(steps, list) else []):
        for stage, body in entry.items() if isinstance(entry, dict) else ():
            if stage in STAGES:
                name = body.get("id", stage) if isinstance(body, dict) else stage
                bodies_by_id.setdefault(str(name), (("steps", i, stage), STAGES[stage].config))
    return bodies_by_id


def _start(
    document: Document, parts: list[str], keys: Keys
) -> tuple[Path, type[BaseModel] | None] | None:
    first = parts[0]
    steps = bodies(document)
    if first in steps:
        return steps[first]
    if first in FIRST and len(parts) > 1 and isinstance(document.value.get("steps"), list):
        # The recipe has this step by default: now write it out.
        document.value["steps"].append({first: {}})
        return ("steps", len(document.value["steps"]) - 1, first), STAGES[first].config
    name = ELSEWHERE.get(first, first)
    return ((name,), keys[name]) if name in keys else None


def _put(
    document: Document,
    path: Path,
    depth: int,
    value: Any,
    model: type[BaseModel] | None,
    place: Place,
    faults: Faults,
) -> None:
    """Set the value at ``path``, whose first ``depth`` parts are the path of ``model``."""
    node: Any = document.value
    way: list[str | int] = []
    for i, part in enumerate(path):
        if isinstance(node, list):
            index = int(part) if str(part).isdigit() else -1
            if not 0 <= index < len(node):
                what = f"there is no entry {part!r}; the list has {len(node)}, counted from 0"
                faults.add(place, dotted(tuple(way)), what)
                return
            part = index
        way.append(part)
        if i == len(path) - 1:
            node[part] = value
            continue
        if not isinstance(node, list) and part not in node:
            node[part] = None
        if not isinstance(node[part], dict | list):
            # A mapping that is absent gets its defaults, of which one value changes.
            node[part] = _default(model, path[depth : i + 1])
        node = node[part]
    set_path = tuple(way)
    for old in [known for known in document.places if known[: len(set_path)] == set_path]:
        del document.places[old]
    document.places[set_path] = place


def _default(model: type[BaseModel] | None, path: Path) -> dict[str, Any]:
    default: Any = None
    for part in path:
        known = model.model_fields.get(str(part)) if model else None
        default = known.get_default(call_default_factory=True) if known else None
        model = type(default) if isinstance(default, BaseModel) else None
    if not isinstance(default, BaseModel):
        return {}
    return default.model_dump(mode="json", exclude_none=True)
