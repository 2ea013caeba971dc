"""The student before training: an existing model, the first layers of an LLM, or the teacher's."""

import json
from dataclasses import dataclass

from slmc.artefact import Artefact
from slmc.data.dataset import Dataset
from slmc.distill.config import DistillConfig
from slmc.distill.selection import spaced_over
from slmc.distill.student import fresh, keep_layers, origin_of
from slmc.distill.teachers import Teacher
from slmc.errors import UsageError
from slmc.evaluation.evaluate import check_catalogue
from slmc.model import backbone
from slmc.model.layers import Layers, with_layers
from slmc.model.loading import Recommender, load_model
from slmc.model.origin import Origin
from slmc.model.recommender import SequentialRecommender

FACTS = "trained_on"
"""Key of ``metrics.json`` under which a distilled model records its LLM, for its own students."""


@dataclass(frozen=True)
class TrainedOn:
    """The LLM of a recommender, and whether its item table is trained."""

    backbone: str | None
    revision: str | None
    freeze_items: bool

    @classmethod
    def of(cls, artefact: Artefact) -> "TrainedOn":
        """Read what ``teach`` has in its settings and ``distill`` in its metrics."""
        recorded = artefact.manifest.config
        if artefact.manifest.stage == "distill":
            recorded = json.loads(artefact.file("metrics.json").read_bytes()).get(FACTS, recorded)
        return cls(
            recorded.get("backbone"),
            recorded.get("revision"),
            recorded.get("freeze_items") is not False,
        )

    def with_backbone(self, config: DistillConfig) -> "TrainedOn":
        """Return it with the LLM that the config names, if it names one."""
        if config.backbone is None:
            return self
        return TrainedOn(config.backbone, config.revision, self.freeze_items)


def initial_student(
    config: DistillConfig,
    kept: Layers | None,
    inputs: dict[str, Artefact],
    teacher: Teacher,
    data: Dataset,
) -> tuple[Recommender, Origin]:
    """Return the student before training, and the weights that it must start from.

    The student is an input artefact, or has the layers ``kept`` of the LLM or of the teacher
    (:func:`slmc.distill.selection.select`). An item table is trained if the teacher's was; that of
    a SASRec always is.

    Raises:
        UsageError: The settings do not fit the student or the teacher.
    """
    if "student" in inputs:
        student = load_model(inputs["student"])
        check_catalogue(student.config.num_items, data)
        origin = Origin.of_files(inputs["student"].path)
    elif config.init == "teacher" and kept is not None:
        student = with_layers(_on_llm(teacher, "init: teacher"), kept)
        origin = Origin.of_files(teacher.artefact.path).keeping(kept)
    else:
        student, origin = _on_backbone(config, kept, teacher)
    if isinstance(student, SequentialRecommender):
        frozen = TrainedOn.of(teacher.artefact).freeze_items
        student.item_embeddings.requires_grad_(not frozen)
        _check_blocks(config, student, teacher)
        student.set_dropout(config.dropout, config.residual_dropout, config.attention_dropout)
    else:
        _check_sasrec(config, teacher)
        student.set_dropout(config.dropout)
    return student, origin


def _check_blocks(config: DistillConfig, student: SequentialRecommender, teacher: Teacher) -> None:
    depths = [len(student.layers)]
    if isinstance(teacher.model, SequentialRecommender):
        depths.append(len(teacher.model.layers))
    if config.blocks > min(depths):
        raise UsageError(
            f"blocks: {config.blocks} blocks need at least as many layers, but the student has "
            f"{depths[0]} layers and the teacher {depths[-1]}.",
            "Set a smaller number of blocks.",
        )


def _check_sasrec(config: DistillConfig, teacher: Teacher) -> None:
    """Refuse settings that a SASRec as student has no use for."""
    if any(teacher.prompt):
        raise UsageError(
            "distill: the teacher has a prompt, which a SASRec as student cannot read.",
            "Train the teacher without a prompt, or use a student on an LLM.",
        )
    unused = {
        "tune": config.tune == "lora",
        "residual_dropout": config.residual_dropout > 0,
        "attention_dropout": config.attention_dropout > 0,
        "backbone": config.backbone is not None,
    }
    for key, is_set in unused.items():
        if is_set:
            raise UsageError(
                f"distill.{key}: the student is a SASRec, which has no LLM.",
                f"Leave {key} out, or use a student on an LLM.",
            )


def _on_llm(teacher: Teacher, setting: str) -> SequentialRecommender:
    if not isinstance(teacher.model, SequentialRecommender):
        raise UsageError(
            f"{setting}: the teacher {teacher.artefact.path} is a SASRec, not a recommender on an "
            "LLM.",
            "Name the student's LLM with --backbone.",
        )
    return teacher.model


def _on_backbone(
    config: DistillConfig, kept: Layers | None, teacher: Teacher
) -> tuple[SequentialRecommender, Origin]:
    source = TrainedOn.of(teacher.artefact).with_backbone(config)
    if source.backbone is None:
        remedy = "Name it with --backbone"
        if isinstance(teacher.model, SequentialRecommender):
            remedy += ", or start from the teacher's layers with --init teacher"
        raise UsageError(
            f"distill: {teacher.artefact.path} does not record which LLM it was trained from.",
            f"{remedy}.",
        )
    reach = None if kept is None else max(kept) + 1
    llm = backbone.load(source.backbone, revision=source.revision, layers=reach)
    llm = keep_layers(llm, spaced_over(llm, config) if kept is None else kept)
    items = teacher.model.item_vectors().detach()
    before = after = None
    prefix, suffix = teacher.prompt
    if prefix + suffix:
        model = _on_llm(teacher, "prompt")
        if llm.model.config.hidden_size != model.config.backbone_config.hidden_size:
            raise UsageError(
                "distill: the teacher has a prompt, which needs a student of the same hidden size.",
                "Train the teacher without a prompt, or keep its backbone.",
            )
        before = model.prompt[:prefix] if prefix else None
        after = model.prompt[prefix:] if suffix else None
    history = teacher.model.config.history
    student = fresh(llm, items, history=history, prefix=before, suffix=after)
    return student, origin_of(llm, items, (before, after))
