"""Which layers a student starts from: the first, evenly spaced, or the most influential ones.

Their number and the layers themselves can come from the report of a depth step.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from slmc.artefact import Artefact
from slmc.data.calibration import histories
from slmc.data.dataset import Dataset
from slmc.distill.config import DistillConfig
from slmc.errors import UsageError, VerdictError
from slmc.model import layers
from slmc.model.backbone import Backbone
from slmc.model.layers import Layers
from slmc.model.loading import Recommender
from slmc.model.recommender import SequentialRecommender
from slmc.model.redundancy import block_influence

HISTORIES = 256
"""Training histories of the quick pass that measures the influence of layers."""

log = logging.getLogger("slmc.distill")


class Selection(NamedTuple):
    """The layers that a student starts from."""

    config: DistillConfig
    """The settings, with the number of layers and of blocks that training uses."""
    kept: Layers | None
    """Layers of the teacher or the LLM. None if the student is an artefact, or if the layers of
    another LLM are spaced evenly, whose number is not known here."""


def select(
    config: DistillConfig,
    inputs: Mapping[str, Artefact],
    teacher: Recommender,
    data: Dataset,
) -> Selection:
    """Choose the layers of the student.

    With ``layers: {from: depth}`` there are at most as many blocks as layers.

    Raises:
        UsageError: The report is of another teacher, is not used, or there are too few layers; or
            a student that is an artefact, which keeps its layers, is given with such settings.
        VerdictError: No depth of the report is within its budget.
    """
    report = _report(inputs)
    if "student" in inputs:
        _refuse_for_artefact(config, report)
        return Selection(config, None)
    if isinstance(config.layers, int):
        if report is not None and config.select != "influence":
            raise UsageError(
                "distill: the depth report is not used.",
                "Set layers: {from: depth} or select: influence, or leave the report out.",
            )
        return Selection(config, _kept(config, config.layers, report, inputs, teacher, data))
    if report is None:
        raise UsageError(
            "distill: layers: {from: depth} needs the report of a depth step.",
            "Name it with --depth, or put a step `- depth: {}` before this one.",
        )
    choice = _choice(config, report, inputs["depth"])
    number = int(choice["depth"])
    log.info("distill: %d layers, from the depth report (%s)", number, choice["way"])
    if config.losses.supervise is not None and number == 1:
        raise UsageError(
            "distill: the depth report chooses 1 layer, and losses.supervise needs at least 2 "
            "blocks.",
            "Leave losses.supervise out, or set a smaller max_drop for the depth step.",
        )
    if config.blocks > number:
        log.info("distill: %d blocks instead of %d, one per layer", number, config.blocks)
    fitted = config.model_copy(update={"layers": number, "blocks": min(config.blocks, number)})
    if config.select is None and not _on_another_llm(config):
        return Selection(fitted, tuple(choice["layers"]))
    return Selection(fitted, _kept(config, number, report, inputs, teacher, data))


def spaced_over(llm: Backbone, config: DistillConfig) -> Layers:
    """Return evenly spaced layers of a whole LLM, as many as the student has.

    Raises:
        UsageError: It has fewer.
    """
    depth, number = llm.model.config.num_hidden_layers, config.layers
    assert isinstance(number, int)
    if number > depth:
        raise UsageError(
            f"layers: {number} is more than the {depth} layers of {llm.label}.",
            f"Set at most {depth}.",
        )
    return layers.spaced(depth, number)


def _refuse_for_artefact(config: DistillConfig, report: Mapping[str, Any] | None) -> None:
    settings = {
        "layers: {from: depth}": not isinstance(config.layers, int),
        f"select: {config.select}": config.select is not None,
        "the depth report": report is not None,
    }
    for name, is_set in settings.items():
        if is_set:
            raise UsageError(
                f"distill: {name} chooses the layers of a new student, but the student is an "
                "artefact, which keeps its layers.",
                "Leave one of them out.",
            )


def _on_another_llm(config: DistillConfig) -> bool:
    """Return whether the student's layers are not those of the teacher or of its LLM."""
    return config.init == "backbone" and config.backbone is not None


def _report(inputs: Mapping[str, Artefact]) -> dict[str, Any] | None:
    """Return the numbers of the depth report; raises ``UsageError`` if it does not fit."""
    artefact = inputs.get("depth")
    if artefact is None:
        return None
    if artefact.manifest.stage != "depth":
        raise UsageError(
            f"depth: {artefact.path} is a report of stage {artefact.manifest.stage}, not of depth.",
            "Name a report of `slmc depth`.",
        )
    if artefact.manifest.parents.get("teacher") != inputs["teacher"].digest:
        raise UsageError(
            f"depth: {artefact.path} is the report of another model, not of this teacher.",
            "Run `slmc depth` on this teacher.",
        )
    numbers: dict[str, Any] = json.loads(artefact.file("metrics.json").read_bytes())
    return numbers


def _choice(config: DistillConfig, report: Mapping[str, Any], artefact: Artefact) -> dict[str, Any]:
    """Return the smallest depth: that of the way ``select`` if it was measured, else of all."""
    way = config.select if config.select in report["ways"] else None
    choice: dict[str, Any] | None = report["choice"]
    if way is not None:
        smallest = report["ways"][way]["smallest"]
        choice = smallest and {"way": way, **smallest}
    if choice is None:
        of_way = f" by {way}" if way is not None else ""
        raise VerdictError(
            f"distill: no depth below {report['teacher']['layers']} layers is within "
            f"{report['max_drop']} of {report['metric']}{of_way}, says {artefact.path}.",
            "Set layers to a number, or a larger max_drop for the depth step.",
        )
    return choice


def _kept(
    config: DistillConfig,
    number: int,
    report: Mapping[str, Any] | None,
    inputs: Mapping[str, Artefact],
    teacher: Recommender,
    data: Dataset,
) -> Layers | None:
    """Return the layers of a student with ``number`` layers, as ``select`` says."""
    depth, elsewhere = len(teacher.layers), _on_another_llm(config)
    of_teacher = config.init == "teacher" or config.select in ("interval", "influence")
    if of_teacher and not elsewhere and number > depth:
        raise UsageError(
            f"layers: {number} is more than the {depth} layers of the teacher.",
            f"Set at most {depth}.",
        )
    if config.select == "interval":
        return None if elsewhere else layers.spaced(depth, number)
    if config.select != "influence":
        return layers.first(number)
    if report is not None:
        return layers.by_influence(report["redundancy"]["influence"], number)
    if not isinstance(teacher, SequentialRecommender):
        raise UsageError(
            f"select: influence: the teacher {inputs['teacher'].path} is a SASRec, not a "
            "recommender on an LLM.",
            "Set select: first or interval, and name the student's LLM with --backbone.",
        )
    sample = histories(data, count=HISTORIES, seed=config.seed)
    return layers.by_influence(block_influence(teacher, sample), number)
