"""The faults of a recipe: one error lists all, each with its line and the nearest known name."""

import difflib
from collections.abc import Iterable
from typing import NamedTuple

from slmc.errors import RecipeError


class Place(NamedTuple):
    """A line of a file, or an option of the command line (line 0)."""

    source: str
    line: int

    def __str__(self) -> str:
        """``recipe.yaml:7``, or the option of the command line."""
        return f"{self.source}:{self.line}" if self.line else self.source


class Faults:
    """Collects faults; :meth:`stop` raises one error that lists them all."""

    def __init__(self) -> None:
        """Start without faults."""
        self._faults: list[tuple[Place, str]] = []

    def add(self, place: Place, key: str, what: str) -> None:
        """Add a fault: its place, its key (or an empty string), and what is wrong."""
        fault = (place, f"{place}: {key}: {what}" if key else f"{place}: {what}")
        if fault not in self._faults:
            self._faults.append(fault)

    def extend(self, other: "Faults") -> None:
        """Add the faults of another collection."""
        self._faults += [fault for fault in other._faults if fault not in self._faults]

    def __bool__(self) -> bool:
        """Whether there are faults."""
        return bool(self._faults)

    def stop(self, recipe: str) -> None:
        """Raise :class:`RecipeError` if there are faults; options first, then by line."""
        if self._faults:
            lines = [text for _, text in sorted(self._faults, key=lambda fault: fault[0].line)]
            raise RecipeError(
                "\n".join(lines),
                f"Fix the recipe, then check it with `slmc recipe check {recipe}`.",
            )


def nearest(name: str, known: Iterable[str]) -> str:
    """``Did you mean`` with the most similar known name, or else the list of known names."""
    options = sorted(known)
    close = difflib.get_close_matches(name, options, n=1)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" Known: {', '.join(options)}." if options else ""
