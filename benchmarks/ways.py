"""The ways of distilling that ``train.py`` and ``time_to_ranking.py`` compare.

They differ by one measure each:

    published   one target per user; a prompt and the history, padded to full length, in float32;
                the teacher runs at every step; all logits of a step at once
    packed      no prompt and no padding: histories share rows
    targets     every position is a target
    cached      the teacher's states are computed once and read from disk
    chunked     cross-entropy in chunks, with its gradients in the forward pass
    bf16        bfloat16 matmuls, where the processor has them

All ways use the same models, loss terms, optimizer and log. The published way is written as well as
PyTorch allows: fused attention (SDPA), fused AdamW, only last positions go through the heads, no
gradient for the teacher. Times are CPU seconds of one thread, so that other work on the machine
does not count.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timing import machine
from torch import Tensor, nn

from slmc.artefact import Artefact
from slmc.config import TrainConfig
from slmc.data.batches import Rows, pack, pad_left
from slmc.data.config import PrepareConfig
from slmc.data.dataset import Dataset
from slmc.data.prepare import prepare
from slmc.distill import losses, states
from slmc.distill.live import LiveStates
from slmc.distill.student import OUTPUT_STD, parameter_groups
from slmc.model import packing, random_models
from slmc.model.device import Placement
from slmc.model.random_models import SMOLLM2
from slmc.model.recommender import SequentialRecommender
from slmc.training import catalogue
from slmc.training.optimizer import adamw

TERMS = {"cosine": 1.0, "norm": 0.1, "supervise": 1.0}
"""SLMRec's terms beside the cross-entropy, with its weights."""
MOST_BLOCKS, WIDTH = 4, 64
PREFIX, SUFFIX = 30, 6
"""Tokens of the published prompt before and after the items."""
SEED, LR, CLIP = 17, 1e-3, 1.0
FLOAT32 = Placement(torch.device("cpu"), torch.float32)


@dataclass(frozen=True)
class Way:
    """How the student is trained; each measure is on or off."""

    name: str
    packed: bool = False
    every_target: bool = False
    cached: bool = False
    chunked: bool = False
    bf16: bool = False

    @property
    def placement(self) -> Placement:
        """Device and precision."""
        return Placement(torch.device("cpu"), torch.bfloat16) if self.bf16 else FLOAT32


WAYS = [
    Way("published"),
    Way("packed", True),
    Way("targets", True, True),
    Way("cached", True, True, True),
    Way("chunked", True, True, True, True),
    Way("bf16", True, True, True, True, True),
]


@dataclass
class Step:
    """Inputs and targets of one optimizer step, and the rows that they come from."""

    run: Callable[[SequentialRecommender, tuple[int, ...]], tuple[Tensor, Tensor]]
    """Runs a model: final states ``[N, H]`` and block states ``[N, B, H]`` at the targets."""
    targets: Tensor
    index: np.ndarray
    mask: Tensor | None = None


class Trainer:
    """A student in training, one way."""

    def __init__(
        self,
        way: Way,
        student: SequentialRecommender,
        teacher: SequentialRecommender,
        sequences: list[np.ndarray],
        options: argparse.Namespace,
    ) -> None:
        """Keep the models, and compute the teacher's states where the way caches them."""
        self.way, self.student, self.teacher, self.options = way, student, teacher, options
        self.sequences = [one for one in sequences if len(one) > 1]
        self.rng = np.random.default_rng(SEED)
        hidden = student.config.backbone_config.hidden_size
        torch.manual_seed(SEED)
        blocks = min(MOST_BLOCKS, len(student.layers))
        self.heads = nn.ModuleList(nn.Linear(hidden, WIDTH, bias=False) for _ in range(blocks - 1))
        for parameter in self.heads.parameters():
            nn.init.normal_(parameter, std=OUTPUT_STD)
        self.ends = losses.block_ends(len(student.layers), blocks)
        self.teacher_ends = losses.block_ends(len(teacher.layers), blocks)
        groups = parameter_groups(student, lr=LR, projection_lr=LR, extra=self.heads)
        self.optimizer = adamw(groups, TrainConfig(), torch.device("cpu"))
        began = time.process_time()
        self.rows = self._rows() if way.packed else None
        self.states = self._states() if way.packed else None
        self.preparing = time.process_time() - began
        """CPU seconds before the first step: the teacher's states, where they are cached."""
        self.mean_square = self._mean_square()

    def _rows(self) -> Rows:
        targets = "all" if self.way.every_target else "last"
        return pack(self.sequences, self.options.history, self.rng, targets=targets)

    def _states(self) -> states.TeacherStates | LiveStates:
        assert self.rows is not None
        request = states.Request(
            self.teacher,
            self.way.name,
            self.rows,
            self.teacher_ends,
            self.way.placement,
            True,
            False,
        )
        if self.way.cached:
            return states.compute(request)
        return LiveStates.of(request, mean_square=False)

    def _mean_square(self) -> Tensor:
        """Of the teacher's states in the first steps; all ways scale the norm term by some."""
        step = next(self.steps())
        with torch.no_grad():
            return self._teacher_states(step).square().mean(dim=0)

    def steps(self) -> Iterator[Step]:
        """Yield the steps of one epoch, in random order."""
        size = self.options.batch
        if self.rows is None:
            order = self.rng.permutation(len(self.sequences))
            for start in range(0, len(order), size):
                yield self._padded(order[start : start + size])
            return
        # As many targets in a step as there are users in a step of the published way.
        each = max(1, int((self.rows.targets > 0).sum()) // len(self.rows.targets))
        order = self.rng.permutation(len(self.rows.targets))
        size = max(1, size // each)
        for start in range(0, len(order), size):
            yield self._packed(order[start : start + size])

    def _padded(self, users: np.ndarray) -> Step:
        length = self.options.history
        histories = [self.sequences[user][:-1][-length:] for user in users]
        items = torch.from_numpy(pad_left(histories, length))
        targets = torch.tensor([int(self.sequences[user][-1]) for user in users])

        def run(model: SequentialRecommender, ends: tuple[int, ...]) -> tuple[Tensor, Tensor]:
            ids, real = model._with_prompt(items)
            collected: list[Tensor] = []
            handles = [
                model.layers[end].register_forward_hook(
                    lambda _, __, out: collected.append(
                        (out[0] if isinstance(out, tuple) else out)[:, -1]
                    )
                )
                for end in ends
            ]
            model.backbone.set_attn_implementation("sdpa")
            try:
                out = model.backbone(
                    inputs_embeds=model.embed(ids.flatten()).view(*ids.shape, -1),
                    attention_mask=real.long(),
                    position_ids=(real.long().cumsum(dim=1) - 1).clamp(min=0),
                    use_cache=False,
                ).last_hidden_state[:, -1]
            finally:
                model.backbone.set_attn_implementation(packing.IMPLEMENTATION)
                for handle in handles:
                    handle.remove()
            return out, torch.stack(collected, dim=1)

        return Step(run, targets, users)

    def _packed(self, index: np.ndarray) -> Step:
        assert self.rows is not None
        tokens, targets, segments, positions = (
            torch.from_numpy(array[index])
            for array in (
                self.rows.item_ids,
                self.rows.targets,
                self.rows.segments,
                self.rows.positions,
            )
        )
        mask = targets > 0

        def run(model: SequentialRecommender, ends: tuple[int, ...]) -> tuple[Tensor, Tensor]:
            with model.block_states(ends) as collected:
                out = model.hidden_states(tokens.flatten(), packing.rows(segments, positions))
            return out[mask.flatten()], torch.stack(collected, dim=1)[mask.flatten()]

        return Step(run, targets[mask], index, mask)

    def _teacher_states(self, step: Step) -> Tensor:
        if self.states is not None:
            assert step.mask is not None
            return self.states.block_states(step.index, step.mask)
        with torch.no_grad():
            return step.run(self.teacher, self.teacher_ends)[1]

    def _cross_entropy(self, queries: Tensor, targets: Tensor) -> Tensor:
        items = self.student.item_vectors()
        if self.way.chunked:
            return catalogue.cross_entropy(queries, items, targets)
        return F.cross_entropy(queries.float() @ items[1:].T, targets - 1)

    def train(self, step: Step) -> float:
        """Take one optimizer step; returns the cross-entropy."""
        placement = self.way.placement
        with torch.autocast("cpu", placement.dtype, enabled=placement.mixed):
            final, blocks = step.run(self.student, self.ends)
            ce = self._cross_entropy(self.student.head(final), step.targets)
            teacher = self._teacher_states(step)
            total = ce + TERMS["cosine"] * losses.direction_loss(blocks, teacher)
            total = total + TERMS["norm"] * losses.norm_loss(blocks, teacher, self.mean_square)
            supervised = [
                self._cross_entropy(head(blocks[:, k]), step.targets)
                for k, head in enumerate(self.heads)
            ]
            total = total + TERMS["supervise"] * torch.stack(supervised).mean()
        total.backward()
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(trained, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(ce.detach())


def model(layers: int, items: int, options: argparse.Namespace, *, prompt: bool) -> Any:
    """Random layers and a random item table, frozen."""
    torch.manual_seed(SEED + layers)
    shape = {"prefix_length": PREFIX, "suffix_length": SUFFIX} if prompt else {}
    made = random_models.recommender(
        decoder=decoder_of(options) | {"layers": layers},
        num_items=items,
        item_dim=WIDTH,
        history=options.history,
        **shape,
    )
    nn.init.normal_(made.prompt, std=0.02)
    made.item_embeddings.requires_grad_(False)
    return made


def decoder_of(options: argparse.Namespace) -> dict[str, Any]:
    """SmolLM2's shape, or a smaller one of the same proportions."""
    if options.hidden == SMOLLM2["hidden"]:
        return SMOLLM2
    heads = max(1, options.hidden // 16)
    sizes = {"hidden": options.hidden, "heads": heads, "kv_heads": heads, "head_dim": 16}
    return sizes | {"intermediate": 8 * options.hidden // 3}


def dataset(options: argparse.Namespace, folder: Path) -> Dataset:
    """Prepare the log, or a part of its users."""
    named = dict(zip(("user", "item", "time"), (options.columns or "").split(","), strict=False))
    config = PrepareConfig.model_validate(
        {"source": str(options.log), "core": 5, "history": options.history, "users": options.users}
        | ({"columns": named} if options.columns else {})
    )
    prepared: Artefact = prepare(config, {}, folder / "data")
    return Dataset.open(prepared)


def arguments(description: str) -> argparse.ArgumentParser:
    """Options that both scripts have."""
    shared = Path(os.environ.get("SLMC_DATA", "../shared/data"))
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--log", type=Path, default=shared / "amazon-beauty.txt.gz")
    parser.add_argument("--columns", help="of a table: user,item,time")
    parser.add_argument("--users", type=int, help="take a sample of the users")
    parser.add_argument("--history", type=int, default=50)
    parser.add_argument("--hidden", type=int, default=SMOLLM2["hidden"], help="width of the layers")
    parser.add_argument("--student", type=int, default=4, help="layers")
    parser.add_argument("--teacher", type=int, default=8, help="layers")
    parser.add_argument("--batch", type=int, default=32, help="targets of a step")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


@contextmanager
def reported(options: argparse.Namespace) -> Iterator[tuple[dict[str, Any], Path]]:
    """Yield the report, which ``--json`` writes at the end, and a folder; with one thread."""
    torch.set_num_threads(1)
    report: dict[str, Any] = {"machine": machine(), "options": {}}
    report["options"] = {name: str(value) for name, value in vars(options).items()}
    print(report["machine"])
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SLMC_CACHE"] = folder
        yield report, Path(folder)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
