"""Seal a model of a test as an artefact, like a stage does."""

from pathlib import Path

from transformers import PreTrainedModel

from slmc.artefact import Artefact, draft
from slmc.config import Seeded
from slmc.model.saving import describe, save_model


def seal_model(model: PreTrainedModel, dataset: Artefact, out: Path) -> Artefact:
    """Return a model artefact that ranks the items of ``dataset``."""
    with draft(out) as work:
        save_model(model, dataset, work.path)
        return work.seal(
            kind="model",
            stage="teach",
            config=Seeded(),
            inputs={"data": dataset},
            metrics=describe(model, work.path),
        )
