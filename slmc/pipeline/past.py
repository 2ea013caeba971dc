"""What the folder of a run tells of it: read from its files, whatever has become of the cache."""

import json
from pathlib import Path
from typing import Any

from slmc.artefact import MANIFEST
from slmc.errors import UsageError
from slmc.pipeline import store
from slmc.pipeline.rundir import LINK, LOCK, RESOLVED, RunDir
from slmc.recipe.faults import Faults
from slmc.recipe.text import parse


def is_run(path: Path) -> bool:
    """Whether ``path`` is the folder of a run."""
    return not (path / MANIFEST).exists() and any((path / f).is_file() for f in (LOCK, RESOLVED))


def told(path: Path) -> dict[str, Any]:
    """What a run was and came to; JSON-able.

    Returns:
        ``recipe`` (every setting), ``steps`` (id -> stage, key, digest, seconds that making it
        took, link), and of the last run that came to its end ``valid_repeats``,
        ``evaluations``, ``verdicts``, ``notes`` and ``ended``; ``ended`` is None where every step
        was done, and ``complete`` False where the numbers are not those of the steps.

    Raises:
        UsageError: A file of the folder is not what a run has written.
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
        **{name: numbers.get(name) for name in ("evaluations", "verdicts", "notes", "ended")},
    }


def comparable(run: dict[str, Any]) -> dict[str, Any]:
    """Of what :func:`told` gives, that by which two runs can be compared.

    Settings by the id of their step, sources, versions, sizes, the value of every metric and the
    outcome of every gate. Keys and digests of steps follow from these.
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
            step: {metric: found["value"] for metric, found in summary["metrics"].items()}
            for step, summary in evaluations.items()
        },
        "gate": {
            f"{one['gate']['metric']} on {one['gate']['on']}": one["outcome"]
            for one in run["verdicts"] or ()
        },
        "ended": run["ended"],
    }


def _recipe(file: Path) -> dict[str, Any]:
    faults = Faults()
    try:
        found = parse(file.read_text(encoding="utf-8"), str(file), {}, faults).value
    except (OSError, UnicodeDecodeError):
        found = None
    if faults or not isinstance(found, dict):
        raise UsageError(
            f"{file} is not the recipe that a run has written.", "Run the recipe again."
        )
    return found


def _numbers(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _lock(path: Path) -> dict[str, Any]:
    return _numbers(path / LOCK)


def _is_link(link: Path) -> bool:
    return link.is_symlink() and LINK.fullmatch(link.name) is not None
