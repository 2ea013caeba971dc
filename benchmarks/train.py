"""Distilling the way of SLMRec's published code against slmc's way, in one run.

``python benchmarks/train.py`` prints targets per second, seconds for as many targets as the log
has, and the ratio to the published way, of ways that differ by one measure each:

    published   one target per user; a prompt and the history, padded to full length, in float32;
                the teacher runs at every step; all logits of a step at once
    packed      no prompt and no padding: histories share rows
    targets     every position is a target
    cached      the teacher's states are computed once and read from disk (their computation is
                counted for one epoch: ``first epoch``, and without it: ``later epochs``)
    chunked     cross-entropy in chunks, with its gradients in the forward pass
    bf16        bfloat16 matmuls, where the processor has them

All ways use the same models (SmolLM2's shape: a student of four layers, a teacher of eight), loss
terms, optimizer and log. The published way is written as well as PyTorch allows: fused attention
(SDPA), fused AdamW, only last positions go through the heads, no gradient for the teacher.
Times are CPU seconds of one thread, so that other work on the machine does not count.

``--curve`` trains a small student on a part of the log, in the published way (without its prompt,
which saves it time) and in slmc's, each from the same initial weights, with the same teacher and
optimizer, until ``--minutes`` have passed. It prints validation NDCG@10 by seconds, and the
seconds that each way took to reach the best NDCG@10 of the published one.

``--json FILE`` writes the numbers. ``--log``, ``--users``, ``--hidden`` … make it small.
"""

import argparse
import copy
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

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
from slmc.evaluation.config import EvaluateConfig
from slmc.model import packing, random_models
from slmc.model.device import Placement, resolve_dtype
from slmc.model.random_models import SMOLLM2
from slmc.model.recommender import SequentialRecommender
from slmc.training import catalogue
from slmc.training.next_item import validator
from slmc.training.optimizer import adamw

TERMS = {"cosine": 1.0, "norm": 0.1, "supervise": 1.0}
"""SLMRec's terms beside the cross-entropy, with its weights."""
MOST_BLOCKS, WIDTH = 4, 64
PREFIX, SUFFIX = 30, 6
"""Tokens of the published prompt before and after the items."""
METRIC, SEED, LR, CLIP = "ndcg@10", 17, 1e-3, 1.0
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


@dataclass
class Measured:
    """Throughput of a way."""

    way: str
    targets_per_s: float
    epoch_s: float
    """CPU seconds for as many targets as the log has, without what is computed once."""
    first_epoch_s: float
    """The same with the teacher's states."""
    ratio: float = 1.0
    """Published way's ``epoch_s`` divided by this one's."""
    first_ratio: float = 1.0
    over_before: float = 1.0
    """Ratio to the way before: what this measure brings."""


def throughput(data: Dataset, options: argparse.Namespace) -> list[Measured]:
    """Time some steps of each way, after one that is not counted."""
    sequences = cast(list[np.ndarray], data.train_sequences())
    whole = sum(len(one) - 1 for one in sequences)
    found: list[Measured] = []
    for way in WAYS:
        if way.bf16 and resolve_dtype("cpu", "auto") != "bf16":
            continue
        prompt = not way.packed
        student, teacher = (
            model(layers, data.num_items, options, prompt=prompt).train(layers == options.student)
            for layers in (options.student, options.teacher)
        )
        teacher.requires_grad_(False)
        # A part of the log is enough: the states of a part give the time of all.
        part = sequences[: options.state_users] if way.cached else sequences
        trainer = Trainer(way, student, teacher, part, options)
        share = sum(len(one) - 1 for one in part) / whole
        seconds, targets = 0.0, 0
        for number, step in enumerate(trainer.steps()):
            began = time.process_time()
            trainer.train(step)
            if number:
                seconds += time.process_time() - began
                targets += len(step.targets)
            if number == options.steps:
                break
        epoch = whole * seconds / targets
        preparing = trainer.preparing / share if way.cached else 0.0
        one = Measured(way.name, targets / seconds, epoch, epoch + preparing)
        if found:
            one.ratio, one.first_ratio = (
                found[0].epoch_s / epoch,
                found[0].epoch_s / (one.first_epoch_s),
            )
            one.over_before = found[-1].epoch_s / epoch
        found.append(one)
        print(
            f"{one.way:9}  {one.targets_per_s:10.1f} targets/s  {one.epoch_s:10.1f} s for "
            f"{whole:,} targets  {one.ratio:6.1f}x  (first epoch {one.first_ratio:.1f}x; over the "
            f"way before {one.over_before:.2f}x)",
            flush=True,
        )
    return found


@dataclass
class Curve:
    """Validation NDCG@10 of a way by CPU seconds of training."""

    way: str
    seconds: list[float] = field(default_factory=list)
    ndcg: list[float] = field(default_factory=list)

    def time_to(self, level: float) -> float | None:
        """Seconds until the curve first reaches a level; None if it does not."""
        pairs = zip(self.seconds, self.ndcg, strict=True)
        return next((second for second, value in pairs if value >= level), None)


def curves(data: Dataset, options: argparse.Namespace) -> list[Curve]:
    """Train a student in the published way and in slmc's, from the same weights."""
    sequences = cast(list[np.ndarray], data.train_sequences())
    teacher = trained_teacher(data, sequences, options)
    student = model(options.student, data.num_items, options, prompt=False)
    student.item_embeddings = teacher.item_embeddings
    best = [way for way in WAYS if not way.bf16 or resolve_dtype("cpu", "auto") == "bf16"][-1]
    found = []
    for way in (WAYS[0], best):
        trainer = Trainer(way, copy.deepcopy(student).train(), teacher, sequences, options)
        found.append(curve_of(trainer, data, options))
    return found


def curve_of(trainer: Trainer, data: Dataset, options: argparse.Namespace) -> Curve:
    """Train for ``--minutes`` of CPU time, and validate at times that grow by a fifth."""
    curve, measure = Curve(trainer.way.name), measured(trainer.student, data, options)
    spent = trainer.preparing if trainer.way.cached else 0.0
    due = options.minutes * 60 / 100
    while spent < options.minutes * 60:
        for step in trainer.steps():
            began = time.process_time()
            trainer.train(step)
            spent += time.process_time() - began
            if spent >= due:
                due = max(1.2 * due, spent)
                trainer.student.eval()
                curve.seconds.append(spent)
                curve.ndcg.append(measure())
                trainer.student.train()
                print(f"{curve.way:9}  {spent:8.1f} s  {METRIC} {curve.ndcg[-1]:.4f}", flush=True)
            if spent >= options.minutes * 60:
                break
    return curve


def measured(
    student: SequentialRecommender, data: Dataset, options: argparse.Namespace
) -> Callable[[], float]:
    """Return a function that ranks validation users."""
    targets = data.targets("valid").sample(options.valid_users, SEED)
    config = EvaluateConfig(
        split="valid", metrics=(METRIC,), exclude_seen=data.excludes_seen("auto"), seed=SEED
    )
    rank = validator(student, targets, data, config, FLOAT32)
    return lambda: rank()[METRIC]


def trained_teacher(
    data: Dataset, sequences: list[np.ndarray], options: argparse.Namespace
) -> SequentialRecommender:
    """A teacher with its own item table, trained for some epochs; its time is not counted."""
    teacher = cast(
        SequentialRecommender, model(options.teacher, data.num_items, options, prompt=False)
    )
    teacher.item_embeddings.requires_grad_(True)
    optimizer = adamw(
        parameter_groups(teacher, lr=LR, projection_lr=3 * LR), TrainConfig(), FLOAT32.device
    )
    rng = np.random.default_rng(SEED)
    rows = pack(sequences, options.history, rng)
    teacher.train().set_dropout(0.2, 0.0, 0.0)
    for _ in range(options.teacher_epochs):
        order = rng.permutation(len(rows.targets))
        for start in range(0, len(order), 8):
            index = order[start : start + 8]
            tokens, targets, segments, positions = (
                torch.from_numpy(a[index])
                for a in (rows.item_ids, rows.targets, rows.segments, rows.positions)
            )
            out = teacher.hidden_states(tokens.flatten(), packing.rows(segments, positions))
            known = targets.flatten() > 0
            loss = catalogue.cross_entropy(
                teacher.head(out[known]), teacher.item_vectors(), targets.flatten()[known]
            )
            loss.backward()
            nn.utils.clip_grad_norm_(teacher.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    teacher.eval().requires_grad_(False)
    print(f"teacher    {METRIC} {measured(teacher, data, options)():.4f}", flush=True)
    return teacher


def dataset(options: argparse.Namespace, folder: Path) -> Dataset:
    """Prepare the log, or a part of its users."""
    named = dict(zip(("user", "item", "time"), (options.columns or "").split(","), strict=False))
    config = PrepareConfig.model_validate(
        {"source": str(options.log), "core": 5, "history": options.history, "users": options.users}
        | ({"columns": named} if options.columns else {})
    )
    prepared: Artefact = prepare(config, {}, folder / "data")
    return Dataset.open(prepared)


def main() -> None:
    """Measure, print, write."""
    shared = Path(os.environ.get("SLMC_DATA", "../shared/data"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--log", type=Path, default=shared / "amazon-beauty.txt.gz")
    parser.add_argument("--columns", help="of a table: user,item,time")
    parser.add_argument("--users", type=int, help="take a sample of the users")
    parser.add_argument("--history", type=int, default=50)
    parser.add_argument("--hidden", type=int, default=SMOLLM2["hidden"], help="width of the layers")
    parser.add_argument("--student", type=int, default=4, help="layers")
    parser.add_argument("--teacher", type=int, default=8, help="layers")
    parser.add_argument("--batch", type=int, default=32, help="targets of a step")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each way")
    parser.add_argument("--state-users", type=int, default=400, help="users whose states are timed")
    parser.add_argument("--curve", action="store_true")
    parser.add_argument("--minutes", type=float, default=5.0, help="CPU time of each curve")
    parser.add_argument("--teacher-epochs", type=int, default=5)
    parser.add_argument("--valid-users", type=int, default=2_000)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {
        "machine": machine(),
        "options": {k: str(v) for k, v in vars(options).items()},
    }
    print(report["machine"])
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SLMC_CACHE"] = folder
        data = dataset(options, Path(folder))
        if options.curve:
            published, ours = curves(data, options)
            level = max(published.ndcg)
            times = [one.time_to(level) for one in (published, ours)]
            report |= {"curves": [asdict(published), asdict(ours)], "level": level, "times": times}
            reached = f"{times[1]:.1f} s, {times[0] / times[1]:.1f}x" if times[1] else "not reached"
            print(f"{METRIC} {level:.4f}: published {times[0]:.1f} s, {ours.way} {reached}")
        else:
            report["ways"] = [asdict(one) for one in throughput(data, options)]
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
