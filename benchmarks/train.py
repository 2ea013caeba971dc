"""Distilling the way of SLMRec's published code against slmc's way, in one run.

``python benchmarks/train.py`` prints targets per second, seconds for as many targets as the log
has, and the ratio to the published way, of the ways of ``ways.py``. The computation of cached
states is counted for one epoch: ``first epoch``, and without it: ``later epochs``. By default the
models have SmolLM2's shape: a student of four layers, a teacher of eight.

``--json FILE`` writes the numbers. ``--log``, ``--users``, ``--hidden`` … make it small.
"""

import argparse
import time
from dataclasses import asdict, dataclass
from typing import cast

import numpy as np
from ways import WAYS, Trainer, arguments, dataset, model, reported

from slmc.data.dataset import Dataset
from slmc.model.device import resolve_dtype


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


def main() -> None:
    """Measure, print, write."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each way")
    parser.add_argument("--state-users", type=int, default=400, help="users whose states are timed")
    options = parser.parse_args()
    with reported(options) as (report, folder):
        report["ways"] = [asdict(one) for one in throughput(dataset(options, folder), options)]


if __name__ == "__main__":
    main()
