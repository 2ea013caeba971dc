"""The teachers of a distillation, and their states at every training position.

The first teacher gives the item table, the LLM and the hidden states after each block. All of them
give user vectors, and with them a distribution over the catalogue.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from slmc.artefact import Artefact
from slmc.data.dataset import Dataset
from slmc.distill import losses, states
from slmc.distill.config import OF_SCORES, OF_STATES, TEACHERS, DistillConfig
from slmc.errors import UsageError
from slmc.evaluation.evaluate import check_catalogue
from slmc.model.device import Placement
from slmc.model.loading import Recommender, load_model, place
from slmc.model.recommender import SequentialRecommender
from slmc.training.types import Epochs


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
    packings: Sequence[Sequence[states.TeacherStates]]
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

    Teachers after the first are computed only if a term uses scores.
    """
    weights = config.losses.weights()
    on_scores = bool(OF_SCORES & set(weights))
    used = teachers if on_scores else teachers[:1]
    for teacher in used:
        place(teacher.model, placement.device)
        teacher.model.requires_grad_(False)

    def of_packing(packing: int) -> list[states.TeacherStates]:
        rows = epochs.pack(packing)
        return [
            states.compute(
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

    packings = range(min(config.packings, config.epochs))
    return TeacherSignals([one.model for one in used], [of_packing(p) for p in packings])
