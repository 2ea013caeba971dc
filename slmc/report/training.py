"""Notes on how models were trained: limits that ended it, and chosen layers of text encoders."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slmc.artefact import Artefact
    from slmc.pipeline import RunResult

LIMITS = {"epochs": "epochs", "minutes": "max_minutes"}
"""Reason why training stopped -> the setting with the limit."""


def still_improving(artefact: "Artefact") -> bool:
    """Whether the last validations of a model still improved when its training ended."""
    return artefact.manifest.metrics.get("still_improving") is True


def unfinished(result: "RunResult") -> list[str]:
    """A sentence for each model of a run that may improve with more training."""
    return [
        _sentence(step.id, step.artefact) for step in result.steps if still_improving(step.artefact)
    ]


def encoder_layers(result: "RunResult") -> list[str]:
    """A sentence for each model of a run whose text encoder's layer was chosen on validation."""
    sentences = []
    for step in result.steps:
        chosen = step.artefact.manifest.metrics.get("encoder_layer")
        if chosen is not None:
            values = ", ".join(f"{layer}: {value:.4f}" for layer, value in chosen["values"].items())
            sentences.append(
                f"{step.id}: texts are encoded by layer {chosen['layer']} of {chosen['depth']}; "
                f"validation {chosen['metric']} by text similarity alone, by layer: {values}"
            )
    return sentences


def _sentence(step_id: str, artefact: "Artefact") -> str:
    manifest = artefact.manifest
    setting = LIMITS.get(str(manifest.metrics.get("stopped")))
    if setting is None:
        return f"{step_id}: training ended while ranking still improved; more training may help"
    limit = f"{setting}: {manifest.config.get(setting)}"
    more = setting.removeprefix("max_")
    return (
        f"{step_id}: training reached its limit ({limit}) while ranking still improved; "
        f"more {more} may help"
    )
