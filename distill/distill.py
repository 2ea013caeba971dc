"""Distil a recommender on a deep LLM into one with few layers (SLMRec, arXiv 2405.17890)."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from slmc.artefact import Artefact, draft
from slmc.data.batches import Rows
from slmc.data.dataset import Dataset
from slmc.distill import losses, states
from slmc.distill.config import DistillConfig
from slmc.distill.student import (
    OUTPUT_STD,
    add_adapters,
    first_layers,
    fresh,
    merge_adapters,
    origin_of,
    parameter_groups,
)
from slmc.errors import UsageError
from slmc.evaluation.evaluate import check_catalogue
from slmc.model import backbone, device
from slmc.model.device import Placement
from slmc.model.loading import load_model, place
from slmc.model.origin import Origin
from slmc.model.recommender import SequentialRecommender
from slmc.model.saving import seal_model
from slmc.training import catalogue
from slmc.training.loop import train
from slmc.training.next_item import NextItem, decay_of, layout, training_rows, validation
from slmc.training.types import Batch, Epochs, TrainSetup

log = logging.getLogger("slmc.distill")


def distill(config: DistillConfig, inputs: dict[str, Artefact], out: Path) -> Artefact:
    """Train a student on the data and on the hidden states and logits of the teacher.

    Raises:
        UsageError: The student is deeper than the teacher, or ranks another catalogue.
        BrokenRunError: A loss term is not finite, or training diverged.
    """
    data = Dataset.open(inputs["data"])
    placement = device.choose(config.device, config.dtype)
    teacher = recommender(inputs["teacher"])
    check_catalogue(teacher.config.num_items, data)
    prompt = (teacher.config.prefix_length, teacher.config.suffix_length)
    if any(prompt) and config.targets == "all":
        raise UsageError(
            "distill: the teacher has a prompt, which encloses whole histories.",
            "Set targets: last, as for the teacher.",
        )
    with draft(out) as work:
        torch.manual_seed(config.seed)
        student, origin = _student(config, inputs, teacher, data)
        student.set_dropout(config.dropout, config.residual_dropout, config.attention_dropout)
        if config.tune == "lora":
            add_adapters(student, config.lora)
        origin.check(student)
        epochs = training_rows(config, data, packings=config.packings, prompt=prompt)
        task = _task(config, student, teacher, inputs["teacher"].digest, epochs, placement)
        outcome = train(
            task,
            parameter_groups(
                student,
                lr=config.lr,
                projection_lr=config.projection_lr,
                extra=getattr(task, "heads", None),
            ),
            TrainSetup(
                config=config,
                epochs=epochs,
                validation=validation(student, data, config, placement),
                name="distill" if config.losses.weights() else "control",
                placement=placement,
                num_items=data.num_items,
                resume=work.resume,
                like=decay_of(inputs.get("like")),
            ),
        )
        if config.tune == "lora":
            merge_adapters(student)
        return seal_model(
            work,
            student,
            stage="distill",
            config=config,
            inputs=inputs,
            numbers=asdict(outcome),
            device=placement.device.type,
        )


def recommender(artefact: Artefact) -> SequentialRecommender:
    """The model of an artefact; raises ``UsageError`` if it is not on an LLM."""
    model = load_model(artefact)
    if not isinstance(model, SequentialRecommender):
        raise UsageError(
            f"{artefact.path} is a {type(model).__name__}, not a recommender on an LLM.",
            "Name the artefact of a teach or distill step.",
        )
    return model


def _student(
    config: DistillConfig,
    inputs: dict[str, Artefact],
    teacher: SequentialRecommender,
    data: Dataset,
) -> tuple[SequentialRecommender, Origin]:
    """Return the student before training, and the weights that it must start from.

    The student is an input artefact, the first layers of the LLM, or those of the teacher.
    """
    if "student" in inputs:
        student = recommender(inputs["student"])
        check_catalogue(student.config.num_items, data)
        origin = Origin.of_files(inputs["student"].path)
    elif config.init == "teacher":
        student = first_layers(teacher, config.layers)
        origin = Origin.of_files(inputs["teacher"].path)
    else:
        student, origin = _on_backbone(config, inputs["teacher"], teacher)
    student.item_embeddings.requires_grad_(
        inputs["teacher"].manifest.config["freeze_items"] is False
    )
    if config.blocks > len(student.layers) or config.blocks > len(teacher.layers):
        raise UsageError(
            f"blocks: {config.blocks} blocks need at least as many layers, but the student has "
            f"{len(student.layers)} layers and the teacher {len(teacher.layers)}.",
            "Set a smaller number of blocks.",
        )
    return student, origin


def _on_backbone(
    config: DistillConfig, teacher_artefact: Artefact, teacher: SequentialRecommender
) -> tuple[SequentialRecommender, Origin]:
    settings = teacher_artefact.manifest.config
    name = config.backbone or settings.get("backbone")
    revision = config.revision if config.backbone else settings.get("revision")
    if name is None:
        raise UsageError(
            f"distill: {teacher_artefact.path} does not record which LLM it was trained from.",
            "Name it with --backbone, or start from the teacher's layers with --init teacher.",
        )
    llm = backbone.load(name, revision=revision, layers=config.layers)
    prefix, suffix = teacher.config.prefix_length, teacher.config.suffix_length
    other_width = llm.model.config.hidden_size != teacher.config.backbone_config.hidden_size
    if prefix + suffix and other_width:
        raise UsageError(
            "distill: the teacher has a prompt, which needs a student of the same hidden size.",
            "Train the teacher without a prompt, or keep its backbone.",
        )
    items = teacher.item_embeddings.weight.detach()
    before = teacher.prompt[:prefix] if prefix else None
    after = teacher.prompt[prefix:] if suffix else None
    model = fresh(llm, items, history=teacher.config.history, prefix=before, suffix=after)
    return model, origin_of(llm, items, (before, after))


def _task(
    config: DistillConfig,
    student: SequentialRecommender,
    teacher: SequentialRecommender,
    digest: str,
    epochs: Epochs,
    placement: Placement,
) -> nn.Module:
    """Return the training task: the loss terms of the config, with the cached teacher states."""
    weights = config.losses.weights()
    if not weights:
        return NextItem(student)
    place(teacher, placement.device)
    teacher.requires_grad_(False)
    ends = losses.block_ends(len(teacher.layers), config.blocks)

    def teacher_states(packing: int) -> states.TeacherStates:
        rows: Rows = epochs.pack(packing)
        return states.compute(
            teacher,
            digest,
            rows,
            ends,
            placement,
            blocks="cosine" in weights or "norm" in weights,
            queries="logits" in weights,
        )

    packings = range(min(config.packings, config.epochs))
    return Distillation(config, student, teacher, [teacher_states(p) for p in packings])


class Distillation(nn.Module):
    """The student's cross-entropy and the distillation terms of SLMRec."""

    teacher_items: Tensor

    def __init__(
        self,
        config: DistillConfig,
        student: SequentialRecommender,
        teacher: SequentialRecommender,
        teacher_states: list[states.TeacherStates],
    ) -> None:
        """Create the heads that the terms need; they are discarded after training.

        Args:
            config: Its blocks, losses, scale and temperature are used.
            student: The model to train.
            teacher: Gives the item vectors and the hidden size.
            teacher_states: The teacher's states, one entry per packing.
        """
        super().__init__()
        self.config, self.model, self.teacher_states = config, student, teacher_states
        self.weights = config.losses.weights()
        self.ends = losses.block_ends(len(student.layers), config.blocks)
        self.heads = nn.ModuleDict()
        width = student.config.backbone_config.hidden_size
        teacher_width = teacher.config.backbone_config.hidden_size
        if "supervise" in self.weights:
            self.heads["supervise"] = _linears(width, student.config.item_dim, config.blocks - 1)
        if width != teacher_width and {"cosine", "norm"} & set(self.weights):
            self.heads["project"] = _linears(width, teacher_width, config.blocks)
        self.register_buffer(
            "teacher_items", teacher.item_vectors().detach().clone(), persistent=False
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted loss terms: ``ce``, those of the config, and their sum ``total``."""
        has_target = batch.targets > 0
        targets = batch.targets[has_target]
        with self.model.block_states(self.ends) as collected:
            final = self.model.hidden_states(batch.tokens.flatten(), layout(batch))
        queries = self.model.head(final[has_target.flatten()])
        items = self.model.item_vectors()
        blocks = torch.stack(collected, dim=1)[has_target.flatten()]
        terms = {"ce": catalogue.cross_entropy(queries, items, targets)}
        for name, weight in self.weights.items():
            terms[name] = weight * self._term(name, batch, has_target, queries, blocks, targets)
        return terms | {"total": torch.stack(list(terms.values())).sum()}

    def _term(
        self,
        name: str,
        batch: Batch,
        has_target: Tensor,
        queries: Tensor,
        blocks: Tensor,
        targets: Tensor,
    ) -> Tensor:
        teacher = self.teacher_states[batch.packing]
        items = self.model.item_vectors()
        if name == "supervise":
            return losses.supervision_loss(self._through("supervise", blocks), items, targets)
        if name == "logits":
            return catalogue.divergence(
                queries,
                items,
                teacher.user_vectors(batch.index, has_target),
                self.teacher_items,
                temperature=self.config.temperature,
            )
        if "project" in self.heads:
            blocks = self._through("project", blocks)
        teacher_blocks = teacher.block_states(batch.index, has_target)
        if name == "cosine":
            return losses.direction_loss(blocks, teacher_blocks)
        mean_square = None
        if self.config.scale == "teacher" and teacher.mean_square is not None:
            mean_square = torch.from_numpy(teacher.mean_square).to(blocks.device)
        return losses.norm_loss(blocks, teacher_blocks, mean_square)

    def _through(self, name: str, blocks: Tensor) -> Tensor:
        """Apply each block's own head to its states."""
        heads = cast(nn.ModuleList, self.heads[name])
        return torch.stack([head(blocks[:, k]) for k, head in enumerate(heads)], dim=1)


def _linears(width: int, out: int, count: int) -> nn.ModuleList:
    linears = nn.ModuleList(nn.Linear(width, out, bias=False) for _ in range(count))
    for parameter in linears.parameters():
        nn.init.normal_(parameter, std=OUTPUT_STD)
    return linears
