"""What is wrong with a recipe: every fault at once, each with its line and the nearest name."""

import difflib
from collections.abc import Iterable
from typing import NamedTuple

from slmc.errors import RecipeError


class Place(NamedTuple):
    """A line of a file, or an option of the command line (line 0)."""

    source: str
    line: int

    def __str__(self) -> str:
        """``recipe.yaml:7``, or the option as it was given."""
        return f"{self.source}:{self.line}" if self.line else self.source


class Faults:
    """Collects faults; :meth:`stop` raises one error that lists them all."""

    def __init__(self) -> None:
        """Start with none."""
        self._found: list[tuple[Place, str]] = []

    def add(self, place: Place, key: str, what: str) -> None:
        """Note a fault: where it is, the key it is about (or nothing), and what is wrong."""
        fault = (place, f"{place}: {key}: {what}" if key else f"{place}: {what}")
        if fault not in self._found:
            self._found.append(fault)

    def __bool__(self) -> bool:
        """Whether anything is wrong."""
        return bool(self._found)

    def stop(self, recipe: str) -> None:
        """Raise :class:`RecipeError` if anything is wrong; options first, then by line."""
        if self._found:
            lines = [text for _, text in sorted(self._found, key=lambda fault: fault[0].line)]
            raise RecipeError(
                "\n".join(lines),
                f"Mend the recipe, then check it with `slmc recipe check {recipe}`.",
            )


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that names the known name most like ``name``, or else all that are known."""
    options = sorted(known)
    close = difflib.get_close_matches(name, options, n=1)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" Known: {', '.join(options)}." if options else ""
