"""Distil a recommender on a deep LLM into one of a few layers (SLMRec, arXiv 2405.17890)."""

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
from slmc.distill.teach import check_vocabulary
from slmc.errors import UsageError
from slmc.model import backbone, device
from slmc.model.device import Placement
from slmc.model.loading import load_model, place
from slmc.model.origin import Origin
from slmc.model.recommender import SequentialRecommender
from slmc.model.saving import seal_model
from slmc.training import catalogue
from slmc.training.loop import train
from slmc.training.next_item import NextItem, decay_of, layout, training_rows, validation
from slmc.training.types import Batch, Epochs

log = logging.getLogger("slmc.distill")


def distill(config: DistillConfig, inputs: dict[str, Artefact], out: Path) -> Artefact:
    """Train a student on the data and on what the teacher says of it.

    Raises:
        UsageError: The student is deeper than the teacher, or does not rank its catalogue.
        BrokenRunError: A term is missing or not finite, or training diverged.
    """
    data = Dataset.open(inputs["data"])
    placement = device.choose(config.device, config.dtype)
    teacher = recommender(inputs["teacher"])
    check_vocabulary(teacher, data)
    prompt = (teacher.config.prefix_length, teacher.config.suffix_length)
    if any(prompt) and config.targets == "all":
        raise UsageError(
            "distill: the teacher has a prompt, which stands around whole histories.",
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
            epochs,
            config,
            name="distill" if config.losses.weights() else "control",
            placement=placement,
            num_items=data.num_items,
            validation=validation(student, data, config, placement),
            resume=work.resume,
            like=decay_of(inputs.get("like")),
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
    """The student before its training: given, the LLM's first layers, or the teacher's.

    And the weights that it has to begin with.
    """
    if "student" in inputs:
        student = recommender(inputs["student"])
        check_vocabulary(student, data)
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
            f"blocks: {config.blocks} do not fit into a student of {len(student.layers)} and "
            f"a teacher of {len(teacher.layers)} layers.",
            "Ask for fewer blocks.",
        )
    return student, origin


def _on_backbone(
    config: DistillConfig, made: Artefact, teacher: SequentialRecommender
) -> tuple[SequentialRecommender, Origin]:
    settings = made.manifest.config
    name = config.backbone or settings.get("backbone")
    revision = config.revision if config.backbone else settings.get("revision")
    if name is None:
        raise UsageError(
            f"distill: {made.path} does not say which LLM it was made from.",
            "Name it with --backbone, or start from the teacher's layers with --init teacher.",
        )
    found = backbone.load(name, revision=revision, layers=config.layers)
    prefix, suffix = teacher.config.prefix_length, teacher.config.suffix_length
    wide = found.model.config.hidden_size != teacher.config.backbone_config.hidden_size
    if prefix + suffix and wide:
        raise UsageError(
            "distill: the teacher has a prompt, which a student of another width cannot take.",
            "Train the teacher without a prompt, or keep its backbone.",
        )
    items = teacher.item_embeddings.weight.detach()
    parts = (
        teacher.prompt[:prefix] if prefix else None,
        teacher.prompt[prefix:] if suffix else None,
    )
    model = fresh(found, items, history=teacher.config.history, prefix=parts[0], suffix=parts[1])
    return model, origin_of(found, items, parts)


def _task(
    config: DistillConfig,
    student: SequentialRecommender,
    teacher: SequentialRecommender,
    digest: str,
    epochs: Epochs,
    placement: Placement,
) -> nn.Module:
    """The losses that the config asks for, with the teacher's states behind them."""
    weights = config.losses.weights()
    if not weights:
        return NextItem(student)
    place(teacher, placement.device)
    teacher.requires_grad_(False)
    ends = losses.block_ends(len(teacher.layers), config.blocks)

    def known(packing: int) -> states.TeacherStates:
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

    needed = range(min(config.packings, config.epochs))
    return Distillation(config, student, teacher, [known(packing) for packing in needed])


class Distillation(nn.Module):
    """The student's cross-entropy and the terms of SLMRec, by name."""

    teacher_items: Tensor

    def __init__(
        self,
        config: DistillConfig,
        student: SequentialRecommender,
        teacher: SequentialRecommender,
        known: list[states.TeacherStates],
    ) -> None:
        """Build the heads that the terms need; they are dropped after training.

        Args:
            config: Blocks, weights, scale and temperature.
            student: What is trained.
            teacher: For its item table and width.
            known: Its states for every packing.
        """
        super().__init__()
        self.config, self.model, self.known = config, student, known
        self.weights = config.losses.weights()
        self.ends = losses.block_ends(len(student.layers), config.blocks)
        self.heads = nn.ModuleDict()
        width = student.config.backbone_config.hidden_size
        target = teacher.config.backbone_config.hidden_size
        if "supervise" in self.weights:
            self.heads["supervise"] = _linears(width, student.config.item_dim, config.blocks - 1)
        if width != target and {"cosine", "norm"} & set(self.weights):
            self.heads["project"] = _linears(width, target, config.blocks)
        self.register_buffer(
            "teacher_items", teacher.item_vectors().detach().clone(), persistent=False
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Weighted terms of a batch: ``ce``, those of the config, and their sum ``total``."""
        kept = batch.targets > 0
        wanted = batch.targets[kept]
        with self.model.block_states(self.ends) as collected:
            final = self.model.hidden_states(batch.tokens.flatten(), layout(batch))
        queries = self.model.head(final[kept.flatten()])
        items = self.model.item_vectors()
        blocks = torch.stack(collected, dim=1)[kept.flatten()]
        terms = {"ce": catalogue.cross_entropy(queries, items, wanted)}
        for name, weight in self.weights.items():
            terms[name] = weight * self._term(name, batch, kept, queries, blocks, wanted)
        return terms | {"total": torch.stack(list(terms.values())).sum()}

    def _term(
        self,
        name: str,
        batch: Batch,
        kept: Tensor,
        queries: Tensor,
        blocks: Tensor,
        wanted: Tensor,
    ) -> Tensor:
        known = self.known[batch.packing]
        items = self.model.item_vectors()
        if name == "supervise":
            return losses.supervision_loss(self._through("supervise", blocks), items, wanted)
        if name == "logits":
            return catalogue.divergence(
                queries,
                items,
                known.user_vectors(batch.index, kept),
                self.teacher_items,
                temperature=self.config.temperature,
            )
        if "project" in self.heads:
            blocks = self._through("project", blocks)
        taught = known.block_states(batch.index, kept)
        if name == "cosine":
            return losses.direction_loss(blocks, taught)
        square = None
        if self.config.scale == "teacher" and known.mean_square is not None:
            square = torch.from_numpy(known.mean_square).to(blocks.device)
        return losses.norm_loss(blocks, taught, square)

    def _through(self, name: str, blocks: Tensor) -> Tensor:
        """Each block's states through its own head."""
        heads = cast(nn.ModuleList, self.heads[name])
        return torch.stack([head(blocks[:, k]) for k, head in enumerate(heads)], dim=1)


def _linears(width: int, out: int, count: int) -> nn.ModuleList:
    linears = nn.ModuleList(nn.Linear(width, out, bias=False) for _ in range(count))
    for parameter in linears.parameters():
        nn.init.normal_(parameter, std=OUTPUT_STD)
    return linears
