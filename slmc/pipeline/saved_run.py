"""Read the folder of a run; this works even if its artefacts are no longer in the cache."""

import json
from pathlib import Path
from typing import Any

from slmc.artefact import MANIFEST
from slmc.errors import UsageError
from slmc.pipeline import store
from slmc.pipeline.rundir import LINK, LOCK, RESOLVED, RunDir
from slmc.recipe.faults import Faults
from slmc.recipe.text import parse

RESULTS = ("evaluations", "points", "chosen", "verdicts", "notes", "ended")
"""Keys of ``metrics.json`` that are returned as they are; points and chosen may be absent."""


def is_run(path: Path) -> bool:
    """Whether ``path`` is the folder of a run."""
    return not (path / MANIFEST).exists() and any((path / f).is_file() for f in (LOCK, RESOLVED))


def read(path: Path) -> dict[str, Any]:
    """Settings and results of a run, as JSON data.

    Returns:
        ``recipe`` (every setting), ``steps`` (id -> stage, key, digest, seconds that the step
        took, link), and from the last finished run ``valid_repeats``, ``evaluations``,
        ``points``, ``chosen``, ``verdicts``, ``notes`` and ``ended``. ``ended`` is None if no step
        ended the run early; ``complete`` is False if the results are not those of ``steps``.

    Raises:
        UsageError: A file of the folder was not written by a run.
    """
    recipe, numbers = _recipe(path / RESOLVED), _numbers(path / "metrics.json")
    links = {link.name.partition("-")[2]: link.name for link in path.iterdir() if _is_link(link)}
    steps = {
        name: {
            "stage": step["parts"].get("stage"),
            "key": step["key"],
            "digest": step["digest"],
            "seconds": store.seconds(step["key"]),
            "link": links.get(name),
        }
        for name, step in RunDir(path).locked().items()
    }
    measured = {step["id"]: step["key"] for step in numbers.get("steps", ())}
    metrics = {step["id"]: step["metrics"] for step in numbers.get("steps", ())}
    return {
        "path": str(path),
        "recipe": recipe,
        "sources": _lock(path).get("sources", {}),
        "versions": _lock(path).get("versions", {}),
        "steps": steps,
        "complete": bool(measured)
        and all(steps.get(name, {}).get("key") == key for name, key in measured.items()),
        "sizes": {name: of["size_mb"] for name, of in metrics.items() if "size_mb" in of},
        "valid_repeats": metrics.get("prepare", {}).get("valid_repeats"),
        **{name: numbers.get(name) for name in RESULTS},
    }


def comparable(run: dict[str, Any]) -> dict[str, Any]:
    """The part of :func:`read` by which two runs are compared.

    These are the settings by step id, sources, versions, sizes, the value of every metric and the
    outcome of every gate. Keys and digests of steps depend on these alone.
    """
    recipe = dict(run["recipe"])
    for body in (body for entry in recipe.pop("steps", ()) for body in entry.values()):
        recipe[body["id"]] = {name: value for name, value in body.items() if name != "id"}
    evaluations: dict[str, Any] = run["evaluations"] or {}
    return {
        **recipe,
        "sources": run["sources"],
        "versions": run["versions"],
        "size_mb": run["sizes"],
        "measured": {
            step: {name: metric["value"] for name, metric in summary["metrics"].items()}
            for step, summary in evaluations.items()
        },
        "gate": {
            f"{one['gate']['metric']} on {one['gate']['on']}": one["outcome"]
            for one in run["verdicts"] or ()
        },
        "ended": run["ended"],
        **({"chosen": run["chosen"]} if run["chosen"] else {}),
    }


def _recipe(file: Path) -> dict[str, Any]:
    faults = Faults()
    try:
        recipe = parse(file.read_text(encoding="utf-8"), str(file), {}, faults).value
    except (OSError, UnicodeDecodeError):
        recipe = None
    if faults or not isinstance(recipe, dict):
        raise UsageError(f"{file} was not written by a run.", "Run the recipe again.")
    return recipe


def _numbers(file: Path) -> dict[str, Any]:
    try:
        numbers = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return numbers if isinstance(numbers, dict) else {}


def _lock(path: Path) -> dict[str, Any]:
    return _numbers(path / LOCK)


def _is_link(link: Path) -> bool:
    return link.is_symlink() and LINK.fullmatch(link.name) is not None
