"""Paths in a recipe: those in its file are sought beside it, those of ``--set`` where one works.

A recipe that has been read has paths as the working directory has them, or absolute ones.
"""

import glob
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from slmc.data.config import PrepareConfig, Titles
from slmc.data.readers import check_head
from slmc.data.sources import fetch
from slmc.errors import DataError
from slmc.recipe.faults import Faults
from slmc.recipe.text import Document, dotted
from slmc.recipe.text import Path as Keys

FILE = "file://"


class Named(NamedTuple):
    """Text of a recipe that names a source or an LLM."""

    keys: Keys
    """Where it stands."""
    holder: dict[str, Any]
    """The mapping that it stands in, under the last of the keys."""
    text: str

    @property
    def label(self) -> str:
        """What it is called in a message: ``data.source``, ``teach.backbone``."""
        return dotted(self.keys[2:] if self.keys[0] == "steps" else self.keys)

    @property
    def is_backbone(self) -> bool:
        """Whether it names an LLM, which may also be an id of the hub."""
        return self.keys[-1] == "backbone"

    @property
    def is_local(self) -> bool:
        """Whether it is certainly a path, not a URL or an id of the hub."""
        if "://" in self.text.removeprefix(FILE):
            return False
        looks = self.text.startswith(("/", "./", "../", "~")) or ".gguf" in self.text
        return looks or not self.is_backbone


def take_beside(recipe: Any, folder: Path) -> None:
    """Let every relative path of a recipe's file start at the folder of that file.

    A backbone that is neither there nor certainly a path stays: it may be an id of the hub.

    Args:
        recipe: The recipe as its file has it, plain data; changed in place.
        folder: Where the file is.
    """
    _change(recipe, lambda text: beside(text, folder), folder)


def tell_from(recipe: Any, folder: Path) -> None:
    """Write the paths of a recipe as a file in ``folder`` has them: undoes :func:`take_beside`."""
    _change(recipe, lambda text: told_from(text, folder), Path())


def beside(source: str, folder: Path) -> str:
    """A source, its local path taken from ``folder`` where it is relative.

    A URL, an absolute path and one from the home folder (``~``) stay as they are.
    """
    local = source.removeprefix(FILE)
    if not _is_relative(local):
        return source
    if glob.has_magic(local) and not (folder / local).exists():
        folder = Path(glob.escape(str(folder)))
    joined = folder / local
    # a/../log.csv is log.csv, unless a is a link to somewhere else.
    short = Path(os.path.normpath(joined))
    return str(short if short.resolve() == joined.resolve() else joined)


def told_from(source: str, folder: Path) -> str:
    """A source of the working directory as a recipe in ``folder`` names it."""
    if not _is_relative(source):
        return source
    told, absolute = os.path.relpath(source, folder), Path(source).resolve()
    return told if (folder / told).resolve() == absolute else str(absolute)


def check_there(document: Document, faults: Faults) -> None:
    """See that every local file that a recipe names is there; none is read.

    Args:
        document: The recipe, read and changed as ``--set`` has it.
        faults: Collects what is missing.
    """
    for one in _named(document.value):
        if not one.is_local or _is_stream(one.text):
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
    """See from their first lines that the log and the titles have the columns that are asked for.

    Only local files are looked at: nothing is downloaded, and a pipe can be read once alone.

    Args:
        document: The recipe, for the places of faults.
        faults: Collects what is wrong.
        data: The recipe's data, valid.
    """
    tables: dict[str, PrepareConfig | Titles] = {"data": data}
    if data.titles is not None:
        tables["data.titles"] = data.titles
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
    """Whether it is a pipe or a device, which can be read once alone."""
    path = Path(source.removeprefix(FILE))
    return path.exists() and not path.is_file() and not path.is_dir()


def _change(recipe: Any, changed: Callable[[str], str], here: Path) -> None:
    for one in _named(recipe):
        if one.is_local or (here / one.text).exists():
            text = changed(one.text)
            # So that it is no id of the hub, also where nothing is there any more.
            plain = one.is_backbone and _is_relative(text) and not text.startswith(".")
            one.holder[str(one.keys[-1])] = f"./{text}" if plain else text


def _named(recipe: Any) -> Iterator[Named]:
    """Whatever names a source or an LLM; what has another form is left to the checks."""
    holders: list[tuple[Keys, Any]] = []
    if isinstance(recipe, dict):
        data, steps = recipe.get("data"), recipe.get("steps")
        titles = data.get("titles") if isinstance(data, dict) else None
        holders = [(("data", "source"), data), (("data", "titles", "source"), titles)]
        for i, entry in enumerate(steps if isinstance(steps, list) else []):
            for stage, body in entry.items() if isinstance(entry, dict) else ():
                holders.append((("steps", i, stage, "backbone"), body))
    for keys, holder in holders:
        text = holder.get(keys[-1]) if isinstance(holder, dict) else None
        if isinstance(text, str):
            yield Named(keys, holder, text)
