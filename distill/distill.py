"""Distil a recommender on a deep LLM into one with few layers (SLMRec, arXiv 2405.17890)."""

from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from slmc.artefact import Artefact, draft
from slmc.data.dataset import Dataset
from slmc.distill import narrow
from slmc.distill.config import DistillConfig
from slmc.distill.selection import select
from slmc.distill.start import FACTS, TrainedOn, initial_student
from slmc.distill.student import add_adapters, merge_adapters, parameter_groups
from slmc.distill.task import Distillation
from slmc.distill.teachers import compute_signals, load_teachers
from slmc.errors import UsageError
from slmc.model import device, text_map
from slmc.model.recommender import SequentialRecommender
from slmc.model.saving import seal_model
from slmc.training.loop import train
from slmc.training.next_item import NextItem, decay_of, training_rows, validation
from slmc.training.softmax import Softmax
from slmc.training.types import TrainSetup


def distill(config: DistillConfig, inputs: dict[str, Artefact], out: Path) -> Artefact:
    """Train a student on the data and on the hidden states and scores of its teachers.

    The roles are ``teacher``, ``teacher2`` … (:data:`slmc.distill.config.TEACHERS`); ``student``, a
    model to start from; ``depth``, a report that chooses the student's layers; and ``like``, a
    model whose number of training steps is repeated.

    Raises:
        UsageError: The student is deeper than the teacher, or ranks another catalogue; or a
            setting does not fit the teachers or the student.
        BrokenRunError: A loss term is not finite, or training diverged.
    """
    data = Dataset.open(inputs["data"])
    placement = device.choose(config.device, config.dtype)
    teachers = load_teachers(config, inputs, data)
    prompt = teachers[0].prompt
    if any(prompt) and config.targets == "all":
        raise UsageError(
            "distill: the teacher has a prompt, which encloses whole histories.",
            "Set targets: last, as for the teacher.",
        )
    with draft(out) as work:
        torch.manual_seed(config.seed)
        table_from = inputs.get("student", inputs["teacher"])
        given = config
        config, kept = select(config, inputs, teachers[0].model, data)
        student, origin = initial_student(config, kept, inputs, teachers[0], data)
        adapted = student if config.tune == "lora" else None
        if isinstance(adapted, SequentialRecommender):
            add_adapters(adapted, config.lora)
        origin.check(student)
        if config.item_dim is not None:
            narrow.narrow(student, config.item_dim, data.counts)
        epochs = training_rows(config, data, packings=config.packings, prompt=prompt)
        name = "distill" if config.losses.weights() else "control"
        from_texts = text_map.has_map(table_from)
        softmax = Softmax.of(config, data.counts, name, from_texts=from_texts)
        task: nn.Module = NextItem(student, softmax)
        if config.losses.weights():
            signals = compute_signals(config, teachers, epochs, placement)
            task = Distillation(config, student, signals, data.counts, softmax)
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
                validation=validation(student, data, config, placement, softmax, name),
                name=name,
                constant_from=config.losses.constant_from,
                placement=placement,
                num_items=data.num_items,
                resume=work.resume,
                like=decay_of(inputs.get("like")),
            ),
        )
        if isinstance(adapted, SequentialRecommender):
            merge_adapters(adapted)
        if config.item_dim is not None:
            narrow.follow_texts(table_from, student, data.counts, work.path)
        if config.keep_heads and isinstance(task, Distillation):
            task.save_heads(work.path)
        trained_on = TrainedOn.of(teachers[0].artefact).with_backbone(config)
        return seal_model(
            work,
            student,
            stage="distill",
            config=given,
            inputs=inputs,
            numbers=asdict(outcome) | {FACTS: asdict(trained_on), "kept_layers": kept},
            device=placement.device.type,
            table_from=table_from,
        )
