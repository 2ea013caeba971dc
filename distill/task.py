"""The training task of a distillation: the student's cross-entropy and the distillation terms."""

from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slmc.distill import losses, ranking
from slmc.distill.config import OF_STATES, DistillConfig
from slmc.distill.narrow import ItemScores
from slmc.distill.student import OUTPUT_STD
from slmc.distill.teachers import TeacherSignals
from slmc.errors import UsageError
from slmc.model import exit_heads
from slmc.model.loading import Recommender
from slmc.model.recommender import SequentialRecommender
from slmc.training import catalogue
from slmc.training.next_item import layout
from slmc.training.softmax import Candidates, Softmax
from slmc.training.types import Batch


class Distillation(nn.Module):
    """The student's cross-entropy and the distillation terms."""

    def __init__(
        self,
        config: DistillConfig,
        student: Recommender,
        signals: TeacherSignals,
        counts: NDArray[np.int64],
        softmax: Softmax,
    ) -> None:
        """Create the heads that the terms need; they are no part of the student.

        Args:
            config: The settings of its loss terms are used.
            student: The model to train.
            signals: The states of the teachers.
            counts: ``[V + 1]`` training interactions of the items.
            softmax: The items that the losses over the catalogue sum over.

        Raises:
            UsageError: A term needs the blocks of an LLM, and the student is a SASRec; or a term
                needs a trained item table, and the student's is frozen.
        """
        super().__init__()
        self.config, self.model, self.signals = config, student, signals
        self.softmax = softmax
        softmax.prepare(student)
        self.weights = config.losses.weights()
        self.ends: tuple[int, ...] = ()
        self.heads = nn.ModuleDict()
        on_blocks = sorted({*OF_STATES, "supervise"} & set(self.weights))
        if on_blocks and not isinstance(student, SequentialRecommender):
            raise UsageError(
                f"losses.{on_blocks[0]}: the student is a SASRec, which has no blocks of an LLM.",
                "Use losses.logits, ranking or items, or a student on an LLM.",
            )
        if on_blocks:
            self._add_heads(cast(SequentialRecommender, student))
        self.teacher_items = signals.item_vectors()
        if "items" in self.weights:
            self.item_scores = ItemScores.of(student, self.teacher_items[0], counts)

    def _add_heads(self, student: SequentialRecommender) -> None:
        blocks = self.config.blocks
        self.ends = losses.block_ends(len(student.layers), blocks)
        width = student.config.backbone_config.hidden_size
        if "supervise" in self.weights:
            self.heads["supervise"] = _linears(width, student.config.item_dim, blocks - 1)
        if OF_STATES & set(self.weights):
            teacher = cast(SequentialRecommender, self.signals.teachers[0])
            teacher_width = teacher.config.backbone_config.hidden_size
            if width != teacher_width:
                self.heads["project"] = _linears(width, teacher_width, blocks)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted loss terms: ``ce``, those of the config, and their sum ``total``."""
        has_target = batch.targets > 0
        targets = batch.targets[has_target]
        final, blocks = self._states(batch, has_target.flatten())
        queries = self.model.head(final)
        drawn = self.softmax.draw(targets)
        items = drawn.vectors(self.model)
        terms = {"ce": catalogue.cross_entropy(queries, items, drawn.targets, drawn.log_weights)}
        for name, weight in self.config.losses.at(batch.done).items():
            term = self._term(name, batch, has_target, queries, blocks, items, drawn)
            terms[name] = weight * term
        return terms | {"total": torch.stack(list(terms.values())).sum()}

    def _states(self, batch: Batch, has_target: Tensor) -> tuple[Tensor, Tensor]:
        """Return final states ``[N, H]`` and block states ``[N, B, H]``; B is 0 if none is used."""
        tokens, arrangement = batch.tokens.flatten(), layout(batch)
        if not self.ends:
            final = self.model.hidden_states(tokens, arrangement)[has_target]
            return final, final[:, None][:, :0]
        student = cast(SequentialRecommender, self.model)
        with student.block_states(self.ends) as collected:
            final = student.hidden_states(tokens, arrangement)[has_target]
        return final, torch.stack(collected, dim=1)[has_target]

    def _term(
        self,
        name: str,
        batch: Batch,
        has_target: Tensor,
        queries: Tensor,
        blocks: Tensor,
        items: Tensor,
        drawn: Candidates,
    ) -> Tensor:
        if name == "supervise":
            blocks = self._through("supervise", blocks)
            return losses.supervision_loss(blocks, items, drawn.targets, drawn.log_weights)
        if name == "items":
            return cast(Tensor, self.item_scores(self.model))
        if name == "logits":
            return catalogue.divergence(
                queries,
                items,
                self._teachers(batch, has_target, drawn),
                temperature=self.config.temperature,
                log_weights=drawn.log_weights,
            )
        if name == "ranking":
            targets, k = drawn.targets, self.config.ranking_k
            order = ranking.top_items(self._teachers(batch, has_target, drawn), targets, k)
            ranks = ranking.rank_weights(order.shape[1], self.config.ranking_decay, order.device)
            return ranking.ranking_loss(queries, items, order, targets, ranks, drawn.log_weights)
        if "project" in self.heads:
            blocks = self._through("project", blocks)
        teacher = self.signals.packings[batch.packing][0]
        teacher_blocks = teacher.block_states(batch.index, has_target)
        if name == "cosine":
            return losses.direction_loss(blocks, teacher_blocks)
        mean_square = None
        if self.config.scale == "teacher" and teacher.mean_square is not None:
            mean_square = torch.from_numpy(teacher.mean_square).to(blocks.device)
        return losses.norm_loss(blocks, teacher_blocks, mean_square)

    def _teachers(
        self, batch: Batch, has_target: Tensor, drawn: Candidates
    ) -> list[tuple[Tensor, Tensor]]:
        """Return every teacher's user vectors ``[N, e]`` and item vectors ``[C + 1, e]``."""
        vectors = self.signals.user_vectors(batch.packing, batch.index, has_target)
        return [
            (query, drawn.select(table.to(query.device)))
            for query, table in zip(vectors, self.teacher_items, strict=True)
        ]

    def save_heads(self, folder: Path) -> None:
        """Write the heads of the blocks into the folder of the student."""
        heads = list(cast(nn.ModuleList, self.heads["supervise"]))
        exit_heads.save(heads, self.ends, folder)

    def _through(self, name: str, blocks: Tensor) -> Tensor:
        """Apply each block's own head to its states."""
        heads = cast(nn.ModuleList, self.heads[name])
        return torch.stack([head(blocks[:, k]) for k, head in enumerate(heads)], dim=1)


def _linears(width: int, out: int, count: int) -> nn.ModuleList:
    linears = nn.ModuleList(nn.Linear(width, out, bias=False) for _ in range(count))
    for parameter in linears.parameters():
        nn.init.normal_(parameter, std=OUTPUT_STD)
    return linears
