"""The text of a recipe: YAML to plain data, with the line of every key.

Tags, anchors, aliases and repeated keys are refused, and words are read as in YAML 1.2 (``on`` is
text, ``1e-3`` is a number). ``${NAME}`` and ``${NAME:-default}`` are replaced after parsing, so
that the value of a variable is never read as YAML.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from slmc.recipe.faults import Faults, Place

Path = tuple[str | int, ...]
"""Keys and list indices from the top of a recipe, such as ``("steps", 0, "teach")``."""

NULL = re.compile(r"|~|null|Null|NULL")
TRUE = re.compile(r"true|True|TRUE")
FALSE = re.compile(r"false|False|FALSE")
INT = re.compile(r"[-+]?[0-9]+")
MOST_DIGITS = 1000
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "map", "seq")}


@dataclass
class Document:
    """The values of a recipe and their lines."""

    value: Any = None
    """Mappings, lists, text, numbers, booleans and nulls."""
    places: dict[Path, Place] = field(default_factory=dict)
    """Place of each key and list entry."""

    def place(self, path: Path) -> Place:
        """Place of ``path``, or of the nearest parent that has one."""
        while path not in self.places and path:
            path = path[:-1]
        return self.places[path]

    def value_at(self, path: Path) -> Any:
        """The value at ``path``; None if there is none."""
        node: Any = self.value
        for part in path:
            try:
                node = node[part]
            except (KeyError, IndexError, TypeError):
                return None
        return node


def parse(text: str, source: str, env: Mapping[str, str], faults: Faults) -> Document:
    """Read YAML; collect what is wrong in ``faults`` with its line, and read the rest.

    Args:
        text: The YAML text.
        source: Name of the file, for the messages.
        env: Variables that ``${NAME}`` may name.
        faults: Collects what is wrong.
    """
    document = Document(places={(): Place(source, 1)})
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        faults.add(_place_of(error, text, source), "", f"not YAML: {_problem(error)}")
        return document
    except RecursionError:
        faults.add(Place(source, 1), "", "not a recipe: nested too deeply")
        return document
    finally:
        if loader is not None:
            loader.dispose()
    if node is not None:
        reader = _Reader(source, env, faults, document.places)
        document.value = reader.value(node, ())
    return document


def scalar(text: str) -> Any:
    """The value of an unquoted word: null, a boolean, a number, or the text itself.

    A number that does not fit a float, such as ``1e400``, stays text, so that the error message of
    its setting shows it as written.
    """
    if NULL.fullmatch(text):
        return None
    if TRUE.fullmatch(text) or FALSE.fullmatch(text):
        return text.lower() == "true"
    if INT.fullmatch(text):
        return int(text) if len(text) <= MOST_DIGITS else text
    if FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    return text


class _Loader(yaml.SafeLoader):
    """Parses without guessing types, and refuses anchors: aliases can make a small file huge."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - the form that PyYAML reads

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if getattr(event, "anchor", None) is not None:
            raise yaml.composer.ComposerError(
                None, None, "anchors and aliases are not allowed", event.start_mark
            )
        return super().compose_node(parent, index)


class _Reader(NamedTuple):
    """Converts nodes to plain data and records the place of each."""

    source: str
    env: Mapping[str, str]
    faults: Faults
    places: dict[Path, Place]

    def value(self, node: yaml.Node, path: Path) -> Any:
        place = self.places.setdefault(path, self._place(node))
        if node.tag not in PLAIN_TAGS:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            self.faults.add(place, dotted(path), f"the tag {tag} is not allowed in a recipe")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, (*path, i)) for i, child in enumerate(node.value)]
        text = self._interpolated(node.value, place, path)
        quoted = isinstance(node, yaml.ScalarNode) and node.style is not None
        return text if quoted else scalar(text)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key, child in node.value:
            place = self._place(key)
            if not isinstance(key, yaml.ScalarNode):
                self.faults.add(place, dotted(path), "a key must be text")
                continue
            name = key.value
            inner = (*path, name)
            if name in mapping:
                first = self.places[inner]
                self.faults.add(place, dotted(inner), f"is repeated; first in line {first.line}")
                continue
            self.places[inner] = place
            mapping[name] = self.value(child, inner)
        return mapping

    def _interpolated(self, text: str, place: Place, path: Path) -> str:
        def put(match: re.Match[str]) -> str:
            name, default = match[1], match[2]
            if name not in self.env and default is None:
                self.faults.add(
                    place,
                    dotted(path),
                    f"the variable {name} is not set; set it, or write ${{{name}:-default}}",
                )
                return ""
            # Like the shell's ":-": an empty variable takes the default too.
            return self.env.get(name) or default or ""

        if "${" in VARIABLE.sub("", text):
            self.faults.add(
                place, dotted(path), f"{text!r} does not have the form ${{NAME:-default}}"
            )
            return text
        return VARIABLE.sub(put, text)

    def _place(self, node: yaml.Node) -> Place:
        return Place(self.source, node.start_mark.line + 1)


def dotted(path: Path) -> str:
    """``("gates", 0, "min")`` as ``gates.0.min``."""
    return ".".join(str(part) for part in path)


def dump(value: Any) -> str:
    """Plain data as YAML; :func:`parse` reads the same data from it."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as another type."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = '"' if not isinstance(scalar(text), str) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _problem(error: yaml.YAMLError) -> str:
    parts = [getattr(error, name, None) for name in ("context", "problem")]
    message = ", ".join(part for part in parts if part)
    return message or getattr(error, "reason", None) or "cannot be parsed"


def _place_of(error: yaml.YAMLError, text: str, source: str) -> Place:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is not None:
        return Place(source, mark.line + 1)
    position = getattr(error, "position", 0)
    return Place(source, text.count("\n", 0, position) + 1)
