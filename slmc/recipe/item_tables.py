"""Where the item table of a step's model came from, and whether texts still give its vectors."""

from collections.abc import Mapping
from pathlib import Path

from slmc.distill.config import DistillConfig, TeachConfig
from slmc.recipe.steps import Step, is_sasrec
from slmc.training.config import SasrecConfig


def has_texts(name: str, known: Mapping[str, Step]) -> bool:
    """Return whether the item table of a step's model came from texts.

    Args:
        name: Id of the step.
        known: The steps of the recipe by id.
    """
    config = known[name].config
    if isinstance(config, SasrecConfig):
        return config.item_embeddings != "ids"
    if isinstance(config, TeachConfig) and config.item_embeddings != "sasrec":
        return config.items_from_texts
    source = _source(known[name])
    return source is not None and has_texts(source, known)


def table_fault(name: str, known: Mapping[str, Step]) -> str | None:
    """Return why new items cannot be added to a step's model by their texts; None if they can.

    Args:
        name: Id of the step.
        known: The steps of the recipe by id.
    """
    step = known[name]
    config = step.config
    if isinstance(config, TeachConfig) and Path(config.backbone).expanduser().is_dir():
        if not config.items_from_texts:
            return None  # the directory may be a recommender with a table of its own
    elif not has_texts(name, known):
        return (
            f"the item table of {name!r} does not come from texts. Leave items out, or set "
            "item_embeddings: hybrid in the step that makes the table."
        )
    further = f"the item table of {name!r} is trained further after it came from texts."
    if isinstance(config, TeachConfig):
        if config.items_from_texts:
            return None
        if not config.freeze_items:
            return f"{further} Set {name}.freeze_items to true."
    if isinstance(config, DistillConfig):
        if is_sasrec(name, known):
            return f"{further} Export {step.inputs['student']!r} instead, or leave items out."
        # With item_dim a map from the first table to the trained one is fitted.
        if config.item_dim is None and not _frozen(step.inputs["teacher"], known):
            return f"{further} Set freeze_items of its teacher to true."
    source = _source(step)
    return table_fault(source, known) if source is not None else None


def _source(step: Step) -> str | None:
    """The step whose item table a step's model uses; None if it makes one."""
    if step.stage == "teach":
        return step.inputs["sasrec"]
    return next(
        (step.inputs[role] for role in ("student", "model", "teacher") if role in step.inputs), None
    )


def _frozen(teacher: str, known: Mapping[str, Step]) -> bool:
    """Return whether students of a teacher keep its item table, as do their own students."""
    step = known[teacher]
    if isinstance(step.config, TeachConfig):
        return step.config.freeze_items
    if isinstance(step.config, DistillConfig):
        return _frozen(step.inputs["teacher"], known)
    return True
