"""The teachers of a distillation, and their states at every training position.

The first teacher gives the item table, the LLM and the hidden states after each block. All of them
give user vectors, and with them a distribution over the catalogue.
"""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from slmc.artefact import Artefact
from slmc.config import parse_size, size_text
from slmc.data.dataset import Dataset
from slmc.distill import losses, states
from slmc.distill.config import OF_SCORES, OF_STATES, TEACHERS, DistillConfig
from slmc.distill.live import LiveStates
from slmc.errors import UsageError
from slmc.evaluation.evaluate import check_catalogue
from slmc.model.device import Placement
from slmc.model.loading import Recommender, load_model, place
from slmc.model.recommender import SequentialRecommender
from slmc.training.types import Epochs

SPARE_BYTES = 10**9
"""Disk space that the teacher's states leave free, for checkpoints and artefacts."""

log = logging.getLogger("slmc.distill")


@dataclass(frozen=True)
class Teacher:
    """A trained recommender that is not changed any more."""

    artefact: Artefact
    model: Recommender

    @property
    def prompt(self) -> tuple[int, int]:
        """Tokens before and after the items of a history."""
        if isinstance(self.model, SequentialRecommender):
            return self.model.config.prefix_length, self.model.config.suffix_length
        return 0, 0


def load_teachers(
    config: DistillConfig, inputs: dict[str, Artefact], data: Dataset
) -> list[Teacher]:
    """Load the teachers of a distillation, the first one first.

    Raises:
        UsageError: They do not rank the catalogue of the data, differ in their prompts, or the
            loss terms cannot use them.
    """
    teachers = [
        Teacher(inputs[role], load_model(inputs[role])) for role in TEACHERS if role in inputs
    ]
    weights = config.losses.weights()
    for teacher in teachers:
        check_catalogue(teacher.model.config.num_items, data)
        if teacher.prompt != teachers[0].prompt:
            raise UsageError(
                f"distill: {teacher.artefact.path} and {teachers[0].artefact.path} have different "
                "prompts, so they do not share positions.",
                "Name teachers with the same prompt, or teachers without one.",
            )
    if len(teachers) > 1 and not OF_SCORES & set(weights):
        raise UsageError(
            "distill: several teachers are averaged by their scores, but no loss term uses scores.",
            "Set losses.logits or losses.ranking, or name one teacher.",
        )
    on_states = sorted(OF_STATES & set(weights))
    if on_states and not isinstance(teachers[0].model, SequentialRecommender):
        raise UsageError(
            f"losses.{on_states[0]}: {teachers[0].artefact.path} is a SASRec, which has no blocks "
            "of an LLM to compare.",
            "Use losses.logits or losses.ranking, or name a teacher on an LLM first.",
        )
    return teachers


@dataclass(frozen=True)
class TeacherSignals:
    """What the loss terms read: the states of every teacher, for each packing."""

    teachers: Sequence[Recommender]
    packings: Sequence[Sequence[states.TeacherStates | LiveStates]]
    """The states of every teacher, one entry per packing."""

    def user_vectors(self, packing: int, index: NDArray[np.int64], mask: Tensor) -> list[Tensor]:
        """Return ``[N, d]`` of each teacher, at the positions ``mask`` of rows ``index``."""
        return [one.user_vectors(index, mask) for one in self.packings[packing]]

    def item_vectors(self) -> list[Tensor]:
        """Return ``[V + 1, d]`` of each teacher."""
        return [teacher.item_vectors().detach().clone() for teacher in self.teachers]


def compute_signals(
    config: DistillConfig, teachers: Sequence[Teacher], epochs: Epochs, placement: Placement
) -> TeacherSignals:
    """Compute the teachers' states for every packing, or read them from the cache.

    Teachers after the first are computed only if a term uses scores. States that would take more
    than ``max_cache``, or more than the disk has, are not stored: the teachers run at every step.
    """
    weights = config.losses.weights()
    on_scores = bool(OF_SCORES & set(weights))
    used = teachers if on_scores else teachers[:1]
    for teacher in used:
        place(teacher.model, placement.device)
        teacher.model.requires_grad_(False)

    def of_packing(packing: int) -> list[states.Request]:
        rows = epochs.pack(packing)
        return [
            states.Request(
                teacher.model,
                teacher.artefact.digest,
                rows,
                losses.block_ends(len(teacher.model.layers), config.blocks)
                if isinstance(teacher.model, SequentialRecommender)
                else (),
                placement,
                blocks=teacher is used[0] and bool(OF_STATES & set(weights)),
                queries=on_scores,
            )
            for teacher in used
        ]

    requests = [of_packing(p) for p in range(min(config.packings, config.epochs))]
    stored = _fits(config, [one for row in requests for one in row])
    scaled = "norm" in weights and config.scale == "teacher"
    packings = [
        [states.compute(one) if stored else LiveStates.of(one, mean_square=scaled) for one in row]
        for row in requests
    ]
    return TeacherSignals([one.model for one in used], packings)


def _fits(config: DistillConfig, requests: Sequence[states.Request]) -> bool:
    """Return whether the states may be stored, and log their size before they are."""
    missing = [one for one in requests if one.shapes and not one.folder().is_dir()]
    if not missing:
        return True
    whole, needed = (sum(one.size_bytes for one in some) for some in (requests, missing))
    folder = missing[0].folder().parent
    folder.mkdir(parents=True, exist_ok=True)
    limit = None if config.max_cache is None else parse_size(config.max_cache)
    free = shutil.disk_usage(folder).free
    if limit is not None and whole > limit:
        why = f"more than max_cache ({size_text(limit)})"
    elif needed > free - SPARE_BYTES:
        why = f"too much for the disk ({size_text(free)} free)"
    else:
        log.info("distill: the teacher's states take %s in %s", size_text(whole), folder)
        return True
    log.warning(
        "distill: the teacher's states would take %s, %s: the teacher runs at every step instead",
        size_text(whole),
        why,
    )
    return False
