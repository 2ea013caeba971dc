"""Models whose training a bound has ended before their ranking stopped improving."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slmc.artefact import Artefact
    from slmc.pipeline import RunResult

BOUNDS = {"epochs": "epochs", "minutes": "max_minutes"}
"""Why training stopped -> the setting that bounds it."""


def still_improving(artefact: "Artefact") -> bool:
    """Whether a model ranked better from one validation to the next when its training ended."""
    return artefact.manifest.metrics.get("still_improving") is True


def unfinished(result: "RunResult") -> list[str]:
    """A sentence for each model of a run that more training may make better."""
    return [
        _sentence(step.id, step.artefact) for step in result.steps if still_improving(step.artefact)
    ]


def _sentence(step_id: str, artefact: "Artefact") -> str:
    manifest = artefact.manifest
    setting = BOUNDS.get(str(manifest.metrics.get("stopped")))
    if setting is None:
        return f"{step_id}: training ended while ranking still improved: more may rank better"
    bound = f"{setting}: {manifest.config.get(setting)}"
    more = setting.removeprefix("max_")
    return (
        f"{step_id}: reached its bound ({bound}) while ranking still improved: "
        f"more {more} may rank better"
    )
