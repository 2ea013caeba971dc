"""The reference of recipe keys: ``python benchmarks/reference.py``.

Prints docs/reference.md, which ``--write FILE`` puts there. Names, types, defaults and texts come
from the config classes; a test fails while the file differs from what this prints.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slmc.config import Placed, Protocol, Seeded, StageConfig, TrainConfig
from slmc.data.config import PrepareConfig
from slmc.evaluation.config import EvaluateConfig
from slmc.evaluation.gates import Gate
from slmc.recipe.loading import Head
from slmc.recipe.schema import schema
from slmc.recipe.steps import FIRST, WRITABLE, can_repeat
from slmc.stages import STAGES

SHARED = (*(Seeded.model_fields | Placed.model_fields | Protocol.model_fields), "select_by")
"""Keys that a step takes from the recipe unless it sets them itself."""
ORDER = ("sasrec", "baselines", "teach", "depth", "distill", "prune", "quantize", "export", "bench")
"""Stages in the order of a recipe."""
TYPES = {
    "integer": "integer",
    "number": "number",
    "string": "text",
    "boolean": "true, false",
    "null": "null",
    "array": "list",
    "object": "mapping",
}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
HEAD = """# Reference of recipe keys

Made from the config classes by `python benchmarks/reference.py --write docs/reference.md`.
[Recipes and cache](recipes.md) explains how a recipe works; `slmc recipe schema` prints the same
keys as a JSON Schema for editors.

- A nested key is written with dots here and in `--set`: `columns.user` is
  `columns: {user: …}` in a recipe.
- The default of a mapping is that of its nested keys.
- A nested key is required only where its mapping is written; `split.valid` and `split.test` only
  with `by: time`.
- ° marks a key that is not part of the step's cache key: it does not change the result, or a
  fingerprint of what it names is in the key instead.
"""
TOP = """
## The recipe

`data`, `evaluate`, `steps` and `gates` have their own sections below;
[Recipes](recipes.md#several-seeds) explains `seeds` and `sweep`.
"""
TRAINING = """
## Training

Keys of every step that trains. The defaults differ by stage:
"""


@dataclass(frozen=True)
class Key:
    """One key of a config."""

    name: str
    type: str
    default: str
    """As a recipe writes it, or ``required``; empty for a mapping."""
    text: str
    in_cache_key: bool


def keys(config: type[StageConfig]) -> list[Key]:
    """Every key of a config, nested ones after the key that holds them."""
    whole = config.model_json_schema()
    return list(_keys(whole, whole.get("$defs", {}), {}, ""))


def _keys(
    model: Mapping[str, Any], defs: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str
) -> Iterator[Key]:
    """The keys of one object of a JSON Schema; ``defaults`` replace those of its properties."""
    for name, field in model["properties"].items():
        default = defaults.get(name, field.get("default", {}))
        is_required = name in model.get("required", ()) and name not in defaults
        yield Key(
            name=prefix + name,
            type=_type(field, defs),
            default="required" if is_required else _written(default),
            text=" ".join(field.get("description", "").split()),
            in_cache_key=field.get("key") is not False,
        )
        nested = default if isinstance(default, dict) else {}
        rows: dict[str, Key] = {}
        for inner in _models(field, defs):
            for key in _keys(inner, defs, nested, f"{prefix}{name}."):
                # Two alternatives can share a key: `split.by` has a value of each.
                first = rows.get(key.name)
                both = replace(first, type=f"{first.type}, {key.type}") if first else key
                rows[key.name] = both
        yield from rows.values()


def _options(field: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The alternatives of a field; the field itself where it has one."""
    options = field.get("anyOf") or field.get("oneOf") or field.get("allOf")
    return [inner for option in options for inner in _options(option)] if options else [field]


def _models(field: Mapping[str, Any], defs: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The nested configs that a field can hold."""
    names = [option["$ref"].rpartition("/")[2] for option in _options(field) if "$ref" in option]
    return [defs[name] for name in names]


def _type(field: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    names = list(dict.fromkeys(_one_type(option, defs) for option in _options(field)))
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _one_type(option: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    if "$ref" in option:
        return "mapping"
    if "const" in option:
        return f"`{option['const']}`"
    if "enum" in option:
        return ", ".join(f"`{value}`" for value in option["enum"])
    if option.get("type") == "array":
        inner = option.get("items") or {}
        return f"list of {_type(inner, defs)}" if inner else "list"
    if option.get("type") == "object" and isinstance(option.get("additionalProperties"), dict):
        return f"mapping to {_type(option['additionalProperties'], defs)}"
    name = "date" if option.get("format") == "date" else TYPES[option["type"]]
    bounds = [f"{sign} {option[bound]:g}" for bound, sign in BOUNDS.items() if bound in option]
    return " ".join([name, *([", ".join(bounds)] if bounds else [])])


def _written(value: Any) -> str:
    """A default as a recipe writes it."""
    if isinstance(value, dict):
        return ""
    if value == "":
        return '`""`'
    if isinstance(value, list):
        return f"`[{', '.join(str(one) for one in value)}]`"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _table(rows: list[Key]) -> str:
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    lines += [
        f"| `{row.name}`{'' if row.in_cache_key else '°'} | {_cell(row.type)} | "
        f"{_cell(row.default)} | {_cell(row.text)} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _training() -> str:
    """The table of the training loop's keys, with a column of defaults for each stage."""
    stages = {name: keys(STAGES[name].config) for name in ORDER if _trains(name)}
    defaults = {name: {row.name: row.default for row in rows} for name, rows in stages.items()}
    lines = [
        f"| key | type | {' | '.join(defaults)} | meaning |",
        f"|---|---|{'---|' * len(defaults)}---|",
    ]
    for row in keys(TrainConfig):
        if row.name.partition(".")[0] in SHARED:
            continue
        values = " | ".join(_cell(own[row.name]) for own in defaults.values())
        mark = "" if row.in_cache_key else "°"
        lines.append(f"| `{row.name}`{mark} | {_cell(row.type)} | {values} | {_cell(row.text)} |")
    return "\n".join(lines) + "\n"


def _trains(stage: str) -> bool:
    return issubclass(STAGES[stage].config, TrainConfig)


def _step(name: str) -> str:
    """The section of a stage."""
    config, stage = STAGES[name].config, STAGES[name]
    skipped = set(SHARED) | (set(TrainConfig.model_fields) if _trains(name) else set())
    rows = [row for row in keys(config) if row.name.partition(".")[0] not in skipped]
    taken = [
        f"`{role}` ({kind}{', optional' * (role in stage.optional)})"
        for role, kind in stage.takes.items()
        if role != "data"
    ]
    shared = [key for key in SHARED if key in config.model_fields]
    text = " ".join((config.__doc__ or "").split("\n\n")[0].split())
    parts = [f"\n### {name}\n\n{text}\n"]
    if taken:
        parts.append(f"Takes the id of an earlier step in {', '.join(taken)}.")
    parts.append(
        f"Without a value of its own it has the recipe's {', '.join(f'`{key}`' for key in shared)}."
    )
    if can_repeat(name):
        parts.append("`seeds: 3` or `seeds: [17, 18, 19]` [repeats it](recipes.md#several-seeds).")
    if name in FIRST:
        parts.append("Every recipe has this step first, written or not.")
    if _trains(name):
        parts.append("It also takes the keys of [training](#training).")
    body = "\n".join(parts) + "\n"
    return f"{body}\n{_table(rows)}" if rows else body


def page() -> str:
    """The whole page."""
    assert set(ORDER) == WRITABLE, "a stage is missing in ORDER, or is no stage any more"
    assert schema()["properties"].keys() == Head.model_fields.keys()
    steps = "\n## Steps\n\nA step is `- STAGE: {key: value}`. `id` names it; without one it is "
    steps += "named after its stage.\n"
    own_first = sorted(keys(Head), key=lambda row: row.name in Placed.model_fields)
    sections = [
        HEAD,
        TOP,
        "\n" + _table(own_first),
        "\n## data\n\n",
        _table([row for row in keys(PrepareConfig) if row.name != "seed"]),
        "\n## evaluate\n\n",
        _table([row for row in keys(EvaluateConfig) if row.name != "seed"]),
        TRAINING,
        "\n" + _training(),
        steps,
        *(_step(name) for name in ORDER),
        "\n## gates\n\nA gate is one item of the list. It takes exactly one of `max_drop`, `min` ",
        "and `max`; [Gates](gates.md) explains the verdicts.\n\n",
        _table(keys(Gate)),
    ]
    return "".join(sections)


def main() -> None:
    """Print the page, or write it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", type=Path, help="write the page to this file")
    options = parser.parse_args()
    if options.write is None:
        print(page(), end="")
    else:
        options.write.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
