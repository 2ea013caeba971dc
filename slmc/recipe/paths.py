"""Paths in a recipe: those of its file start at the file's folder, those of ``--set`` do not.

After reading, the paths of a recipe are absolute or start at the working directory.
"""

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from slmc.data.config import ItemTable, PrepareConfig, Titles
from slmc.data.readers import check_head
from slmc.data.sources import fetch
from slmc.errors import DataError
from slmc.recipe.faults import Faults
from slmc.recipe.text import Document, dotted
from slmc.recipe.text import Path as Keys

FILE = "file://"
MODELS = ("backbone", "encoder")
"""Settings of steps that name an LLM or a text encoder."""
FILES = ("items", "cooccurrence")
"""Settings of steps that name a file."""


class Named(NamedTuple):
    """A value of a recipe that names a source or an LLM."""

    keys: Keys
    """Its path in the document."""
    holder: Any
    """The mapping or list with the value, whose key or index is the last of ``keys``."""
    text: str
    setting: str = ""
    """Name of the setting in a sweep; without one it is the last of ``keys``."""

    @property
    def label(self) -> str:
        """Its name in messages: ``data.source``, ``teach.backbone``."""
        return dotted(self.keys[2:] if self.keys[0] == "steps" else self.keys)

    @property
    def is_backbone(self) -> bool:
        """Whether it names an LLM, which may also be an id of the hub."""
        return (self.setting or self.keys[-1]) in MODELS

    @property
    def is_local(self) -> bool:
        """Whether it is certainly a path, not a URL or an id of the hub."""
        if "://" in self.text.removeprefix(FILE):
            return False
        looks = self.text.startswith(("/", "./", "../", "~")) or ".gguf" in self.text
        return looks or not self.is_backbone


def from_folder(recipe: Any, folder: Path) -> None:
    """Rewrite the relative paths of a recipe file, which start at its folder.

    A backbone stays if no such path exists and it could be an id of the hub.

    Args:
        recipe: The recipe as plain data; changed in place.
        folder: Folder of the file.
    """
    _change(recipe, lambda text: joined(text, folder), folder)


def to_folder(recipe: Any, folder: Path) -> None:
    """Rewrite the paths of a recipe for a file in ``folder``: undoes :func:`from_folder`."""
    _change(recipe, lambda text: relative(text, folder), Path())


def joined(source: str, folder: Path) -> str:
    """The source with ``folder`` in front of it if it is a relative path.

    URLs, absolute paths and paths in the home folder (``~``) stay the same.
    """
    local = source.removeprefix(FILE)
    if not _is_relative(local):
        return source
    if glob.has_magic(local) and not (folder / local).exists():
        folder = Path(glob.escape(str(folder)))
    whole = folder / local
    # a/../log.csv is log.csv, unless a is a link to somewhere else.
    short = Path(os.path.normpath(whole))
    return str(short if short.resolve() == whole.resolve() else whole)


def relative(source: str, folder: Path) -> str:
    """The path from ``folder`` to a source that is relative to the working directory."""
    if not _is_relative(source):
        return source
    path, absolute = os.path.relpath(source, folder), Path(source).resolve()
    return path if (folder / path).resolve() == absolute else str(absolute)


def check_files(document: Document, faults: Faults) -> None:
    """Check that every local file of a recipe exists, without reading it.

    Args:
        document: The recipe, with the overrides of ``--set``.
        faults: Collects what is missing.
    """
    for one in _named(document.value):
        # The values of a sweep are checked in the documents of its points.
        if one.keys[0] == "sweep" or not one.is_local or _is_stream(one.text):
            continue
        what = ""
        if one.is_backbone:
            file = Path(one.text.partition("#")[0]).expanduser()
            what = "" if file.exists() else f"{one.text} does not exist."
        else:
            try:
                fetch(one.text)
            except DataError as error:
                what = f"{error.what} {error.remedy}"
        if what:
            faults.add(document.place(one.keys), one.label, what)


def check_heads(document: Document, faults: Faults, data: PrepareConfig) -> None:
    """Check that the first lines of the log and of the titles have the configured columns.

    Only local files are read: no downloads, and no pipes, which can be read only once.

    Args:
        document: The recipe, for the lines of faults.
        faults: Collects what is wrong.
        data: The valid ``data`` section.
    """
    tables: dict[str, PrepareConfig | Titles | ItemTable] = {"data": data}
    if data.titles is not None:
        tables["data.titles"] = data.titles
    if data.items is not None:
        tables["data.items"] = data.items
    for key, table in tables.items():
        local = table.source.startswith(FILE) or "://" not in table.source
        if not local or _is_stream(table.source):
            continue
        columns = table.columns.roles if isinstance(table, PrepareConfig) else table.roles
        try:
            files = fetch(table.source)
            check_head(files, columns, table.format, table.separator, table.header)
        except DataError as error:
            place = document.place((*key.split("."), "source"))
            faults.add(place, f"{key}.source", f"{error.what} {error.remedy}")


def _is_relative(local: str) -> bool:
    rooted = local.startswith("~") or Path(local).is_absolute()
    return bool(local) and "://" not in local and not rooted


def _is_stream(source: str) -> bool:
    """Whether it is a pipe or a device, which can be read only once."""
    path = Path(source.removeprefix(FILE))
    return path.exists() and not path.is_file() and not path.is_dir()


def _change(recipe: Any, changed: Callable[[str], str], here: Path) -> None:
    for one in _named(recipe):
        if one.is_local or (here / one.text).exists():
            text = changed(one.text)
            # "./" marks it as a path, also if the folder is deleted later.
            plain = one.is_backbone and _is_relative(text) and not text.startswith(".")
            one.holder[one.keys[-1]] = f"./{text}" if plain else text


def _named(recipe: Any) -> Iterator[Named]:
    """All values that name a source or an LLM; malformed parts are skipped."""
    holders: list[tuple[Keys, Any]] = []
    if isinstance(recipe, dict):
        data, steps = recipe.get("data"), recipe.get("steps")
        holders = [(("data", "source"), data)]
        for key in ("titles", "items"):
            table = data.get(key) if isinstance(data, dict) else None
            holders.append((("data", key, "source"), table))
        for i, entry in enumerate(steps if isinstance(steps, list) else []):
            for stage, body in entry.items() if isinstance(entry, dict) else ():
                holders += [(("steps", i, stage, key), body) for key in (*MODELS, *FILES)]
    for keys, holder in holders:
        text = holder.get(keys[-1]) if isinstance(holder, dict) else None
        if isinstance(text, str):
            yield Named(keys, holder, text)
    if isinstance(recipe, dict):
        yield from _swept(recipe.get("sweep"), "", ("sweep",))


def _swept(node: Any, setting: str, path: Keys) -> Iterator[Named]:
    """The values of a sweep that name a source or an LLM."""
    entries: Iterable[tuple[Any, Any]] = ()
    if isinstance(node, dict):
        entries = node.items()
    elif isinstance(node, list):
        entries = enumerate(node)
    for key, inner in entries:
        name = key.rpartition(".")[2] if isinstance(key, str) else setting
        if isinstance(inner, str) and name in (*MODELS, *FILES):
            yield Named((*path, key), node, inner, name)
        else:
            yield from _swept(inner, name, (*path, key))
