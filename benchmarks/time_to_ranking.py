"""The time that two ways of distilling need to the same ranking: the published one and slmc's.

``python benchmarks/time_to_ranking.py --run runs/beauty`` trains a small student twice, in the
published way of ``ways.py`` (without its prompt, which saves it time) and in slmc's, each from the
same initial weights, with the same teacher, item table and optimizer, until ``--minutes`` of
processor time have passed (``--our-minutes`` for slmc's way). It prints validation NDCG@10 by
seconds, and the seconds that each way took to three quarters and to all of the best NDCG@10 of the
published way. Computing the teacher's states counts as slmc's time.

``--run`` names a run with the steps 01-prepare and 04-teach: its data, and its teacher of SmolLM2's
shape with the item table, which stays fixed. Without a run the log is prepared, and a teacher is
trained with a table of its own; its time is not counted.
"""

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from ways import CLIP, FLOAT32, LR, SEED, WAYS, Trainer, arguments, dataset, model, reported

from slmc.artefact import load
from slmc.config import TrainConfig
from slmc.data.batches import Rows, pack
from slmc.data.dataset import Dataset
from slmc.distill.student import parameter_groups
from slmc.evaluation.config import EvaluateConfig
from slmc.model import packing
from slmc.model.device import resolve_dtype
from slmc.model.loading import load_model
from slmc.model.recommender import SequentialRecommender
from slmc.training import catalogue
from slmc.training.next_item import validator
from slmc.training.optimizer import adamw

METRIC = "ndcg@10"
LEVELS = (0.75, 1.0)
"""Shares of the published way's best ranking to which times are compared."""


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


def curves(
    data: Dataset, teacher: SequentialRecommender, options: argparse.Namespace
) -> list[Curve]:
    """Train a student in the published way and in slmc's, from the same weights."""
    sequences = cast(list[np.ndarray], data.train_sequences())
    teacher.eval().requires_grad_(False)
    print(f"teacher    {METRIC} {ranking_of(teacher, data, options)():.4f}", flush=True)
    student = model(options.student, data.num_items, options, prompt=False)
    student.item_embeddings = teacher.item_embeddings
    best = [way for way in WAYS if not way.bf16 or resolve_dtype("cpu", "auto") == "bf16"][-1]
    found = []
    for way, minutes in ((WAYS[0], options.minutes), (best, options.our_minutes)):
        trainer = Trainer(way, copy.deepcopy(student).train(), teacher, sequences, options)
        found.append(curve_of(trainer, data, minutes or options.minutes, options))
    return found


def curve_of(trainer: Trainer, data: Dataset, minutes: float, options: argparse.Namespace) -> Curve:
    """Train for some minutes of CPU time, and validate at times that grow by a fifth."""
    curve, measure = Curve(trainer.way.name), ranking_of(trainer.student, data, options)
    spent = trainer.preparing if trainer.way.cached else 0.0
    due = minutes * 60 / 100
    while spent < minutes * 60:
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
            if spent >= minutes * 60:
                break
    return curve


def ranking_of(
    student: SequentialRecommender, data: Dataset, options: argparse.Namespace
) -> Callable[[], float]:
    """Return a function that ranks validation users."""
    targets = data.targets("valid").sample(options.valid_users, SEED)
    config = EvaluateConfig(
        split="valid", metrics=(METRIC,), exclude_seen=data.excludes_seen("auto"), seed=SEED
    )
    rank = validator(student, targets, data, config, FLOAT32)
    return lambda: rank()[METRIC]


def trained_teacher(data: Dataset, options: argparse.Namespace) -> SequentialRecommender:
    """A teacher from random weights, with an item table of its own."""
    sequences = cast(list[np.ndarray], data.train_sequences())
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
        for index in in_order(rng.permutation(len(rows.targets))):
            loss_of(teacher, rows, index).backward()
            nn.utils.clip_grad_norm_(teacher.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return teacher


def in_order(order: np.ndarray, size: int = 8) -> Iterator[np.ndarray]:
    """The rows of each step of an epoch."""
    return (order[start : start + size] for start in range(0, len(order), size))


def loss_of(teacher: SequentialRecommender, rows: Rows, index: np.ndarray) -> Tensor:
    """Cross-entropy of the next items at every position of some rows."""
    tokens, targets, segments, positions = (
        torch.from_numpy(array[index])
        for array in (rows.item_ids, rows.targets, rows.segments, rows.positions)
    )
    out = teacher.hidden_states(tokens.flatten(), packing.rows(segments, positions))
    known = targets.flatten() > 0
    users = teacher.head(out[known])
    return catalogue.cross_entropy(users, teacher.item_vectors(), targets.flatten()[known])


def main() -> None:
    """Measure, print, write."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="a run with 01-prepare and 04-teach")
    parser.add_argument("--minutes", type=float, default=5.0, help="CPU time of a curve")
    parser.add_argument("--our-minutes", type=float, help="that of slmc's curve, if it differs")
    parser.add_argument("--teacher-epochs", type=int, default=5)
    parser.add_argument("--valid-users", type=int, default=2_000)
    options = parser.parse_args()
    with reported(options) as (report, folder):
        if options.run is None:
            data = dataset(options, folder)
            teacher = trained_teacher(data, options)
        else:
            data = Dataset.open(load(options.run / "01-prepare"))
            teacher = cast(SequentialRecommender, load_model(load(options.run / "04-teach")))
        published, ours = curves(data, teacher, options)
        report |= {"curves": [asdict(published), asdict(ours)], "levels": []}
        for share in LEVELS:
            level = share * max(published.ndcg)
            times = [one.time_to(level) for one in (published, ours)]
            report["levels"].append({"level": level, "seconds": times})
            reached = f"{times[1]:.1f} s, {times[0] / times[1]:.1f}x" if times[1] else "not reached"
            print(f"{METRIC} {level:.4f}: published {times[0]:.1f} s, {ours.way} {reached}")


if __name__ == "__main__":
    main()
