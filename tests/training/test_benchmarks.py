"""The benchmarks of training: the ways that are compared compute the same, and the scripts run."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from benchmark_scripts import BENCHMARKS, script

ITEMS, USERS = 20, 12
OPTIONS = argparse.Namespace(history=6, hidden=32, student=2, teacher=3, batch=5)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("SLMC_CACHE", str(tmp_path))
    return script("ways")


def means_of(module: ModuleType, name: str) -> tuple[int, float, torch.Tensor]:
    """Targets of an epoch, their mean cross-entropy, and the mean of the teacher's states."""
    way = next(one for one in module.WAYS if one.name == name)
    student, teacher = (module.model(n, ITEMS, OPTIONS, prompt=False) for n in (2, 3))
    rng = np.random.default_rng(3)
    sequences = [
        rng.integers(1, ITEMS + 1, rng.integers(2, OPTIONS.history + 2)).astype(np.int32)
        for _ in range(USERS)
    ]
    trainer = module.Trainer(way, student.eval(), teacher, sequences, OPTIONS)
    count, ce, states = 0, 0.0, torch.zeros(2, OPTIONS.hidden)
    with torch.no_grad():
        for step in trainer.steps():
            final, blocks = step.run(student, trainer.ends)
            assert blocks.shape == (len(step.targets), 2, OPTIONS.hidden)
            loss = trainer._cross_entropy(student.head(final), step.targets)
            ce += loss.item() * len(step.targets)
            states += trainer._teacher_states(step).sum(dim=0)
            count += len(step.targets)
    return count, ce / count, states / count


@pytest.mark.parametrize(
    ("first", "second"),
    [("published", "packed"), ("targets", "cached"), ("cached", "chunked")],
)
def test_ways_with_the_same_targets_compute_the_same(
    ways: ModuleType, first: str, second: str
) -> None:
    """No way is faster by computing something else: losses and states agree within float16."""
    one, other = means_of(ways, first), means_of(ways, second)
    assert one[0] == other[0]
    assert one[1] == pytest.approx(other[1], rel=1e-5)
    assert torch.allclose(one[2], other[2], rtol=2e-3, atol=2e-3)


def test_every_target_is_more_targets(ways: ModuleType) -> None:
    assert means_of(ways, "packed")[0] == USERS
    assert means_of(ways, "targets")[0] > 2 * USERS


def test_a_step_of_every_way_trains(ways: ModuleType) -> None:
    for way in ways.WAYS[:-1]:
        student, teacher = (
            ways.model(n, ITEMS, OPTIONS, prompt=way.name == "published") for n in (2, 3)
        )
        rng = np.random.default_rng(3)
        sequences = [rng.integers(1, ITEMS + 1, 5).astype(np.int32) for _ in range(USERS)]
        teacher.requires_grad_(False)
        trainer = ways.Trainer(way, student, teacher, sequences, OPTIONS)
        step = next(trainer.steps())
        losses = [trainer.train(step) for _ in range(20)]
        assert losses[-1] < losses[0] - 0.05, way.name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments", "keys"),
    [
        (
            "train.py",
            "--hidden 32 --student 2 --teacher 2 --batch 8 --steps 1 --state-users 20",
            {"ways"},
        ),
        (
            "time_to_ranking.py",
            "--hidden 32 --student 2 --teacher 2 --minutes 0.02 --teacher-epochs 1",
            {"curves", "levels"},
        ),
        (
            "sampled_softmax.py",
            "--epochs 1 --negatives 8 --catalogues 2000",
            {"trained", "differences", "steps"},
        ),
        (
            "memory.py",
            "--hidden 32 --layers 2 --history 10 --minutes 0.01 --valid-users 10",
            {"peak_bytes", "limit_bytes"},
        ),
    ],
    ids=["ways", "time to ranking", "sampled softmax", "memory"],
)
def test_the_scripts_run(
    log_csv: Path, tmp_path: Path, script: str, arguments: str, keys: set[str]
) -> None:
    out = tmp_path / "numbers.json"
    command = [sys.executable, str(BENCHMARKS / script), "--log", str(log_csv), "--json", str(out)]
    root = {"PYTHONPATH": str(BENCHMARKS.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *arguments.split()], capture_output=True, text=True, env=os.environ | root
    )
    assert done.returncode == 0, done.stderr
    assert keys <= set(json.loads(out.read_text()))
