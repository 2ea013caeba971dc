"""``--set distill.layers=2``: change one value of a recipe from the command line."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from slmc.recipe.checks import is_text
from slmc.recipe.faults import Faults, Place, nearest
from slmc.recipe.steps import ELSEWHERE, FIRST
from slmc.recipe.text import NULL, Document, Path, dotted, parse, scalar
from slmc.stages import STAGES

Keys = Mapping[str, type[BaseModel] | None]
"""Top-level keys of a recipe -> the config that stands there, if one does."""
TEXTS = frozenset({"name", "description"})
"""Top-level keys whose value is text."""


def apply_sets(document: Document, sets: Sequence[str], keys: Keys, faults: Faults) -> None:
    """Put each ``KEY=VALUE`` into the document; what is wrong goes to ``faults``.

    Args:
        document: The recipe; changed in place.
        sets: ``KEY=VALUE``, where KEY starts with a top-level key or the id of a step. VALUE is
            a number, a word, ``[a list]`` or ``{a: mapping}``; of a setting that is text it is
            taken as it stands, and may be in quotes.
        keys: The recipe's top-level keys.
        faults: Collects what is wrong.
    """
    for text in sets:
        place = Place(f"--set {text}", 0)
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            faults.add(place, "", "is not of the form KEY=VALUE, as in distill.layers=2")
            continue
        parts = key.strip().split(".")
        if len(parts) == 1 and parts[0] in bodies(document):
            faults.add(place, key, f"name a setting of the step too, as in {key}.seed=3")
            continue
        start = _start(document, parts, keys)
        if start is None:
            known = {*bodies(document), *keys, *FIRST}
            what = f"there is no step or key {parts[0]!r}.{nearest(parts[0], known)}"
            faults.add(place, parts[0], what)
            continue
        path, model = start
        # At the top of a recipe only data and evaluate have a config of their own.
        text_only = is_text(model, tuple(parts[1:])) or key.strip() in TEXTS
        wrong = Faults()
        read = _value(value, text_only, place, wrong)
        if wrong:
            faults.add(place, key, f"{value!r} is not a value that YAML knows")
            continue
        _put(document, (*path, *parts[1:]), len(path), read, model, place, faults)


def _value(text: str, text_only: bool, place: Place, faults: Faults) -> Any:
    """What the text of a change means; nothing in it is a comment, an anchor or a tag."""
    opens, closes = text[:1], text[-1:]
    quoted = len(text) > 1 and opens == closes and opens in "\"'"
    if quoted or (opens in ("[", "{") and not text_only):
        return parse(text, place.source, {}, faults).value
    if text_only:
        return text if NULL.fullmatch(text) is None else None
    return scalar(text.strip())


def bodies(document: Document) -> dict[str, tuple[Path, type[BaseModel]]]:
    """Id of each step that can be told apart -> the path of its settings, and their model."""
    steps = document.value.get("steps")
    found: dict[str, tuple[Path, type[BaseModel]]] = {}
    for i, entry in enumerate(steps if isinstance(steps, list) else []):
        for stage, body in entry.items() if isinstance(entry, dict) else ():
            if stage in STAGES:
                name = body.get("id", stage) if isinstance(body, dict) else stage
                found.setdefault(str(name), (("steps", i, stage), STAGES[stage].config))
    return found


def _start(
    document: Document, parts: list[str], keys: Keys
) -> tuple[Path, type[BaseModel] | None] | None:
    first = parts[0]
    steps = bodies(document)
    if first in steps:
        return steps[first]
    if first in FIRST and len(parts) > 1 and isinstance(document.value.get("steps"), list):
        # These steps are there without being written; now this one is.
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
    """Set the value at ``path``; of it, the first ``depth`` parts lead to ``model``'s mapping."""
    node: Any = document.value
    way: list[str | int] = []
    for i, part in enumerate(path):
        if isinstance(node, list):
            index = int(part) if str(part).isdigit() else -1
            if not 0 <= index < len(node):
                what = f"there is no entry {part!r}; there are {len(node)}, counted from 0"
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
            # A mapping that is not written has its defaults: they stay but for one value.
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
