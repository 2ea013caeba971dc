"""The training loop: it learns, stops, resumes with the same bits, and says when it diverged."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from slmc.config import TrainConfig
from slmc.data.batches import pack
from slmc.errors import BrokenRunError
from slmc.model.device import Placement
from slmc.train import Batch, Epochs, Outcome, schedule, train

ITEMS = 12
CPU = Placement(torch.device("cpu"), torch.float32)


class Bigram(nn.Module):
    """Scores of the next item by the last, with dropout so that random numbers matter."""

    def __init__(self, fault: Callable[[int, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(ITEMS + 1, ITEMS + 1)
        self.dropout = nn.Dropout(0.2)
        self.fault, self.calls = fault, 0

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        kept = batch.targets > 0
        scores = self.dropout(self.table(batch.tokens[kept]))
        loss = nn.functional.cross_entropy(scores, batch.targets[kept])
        self.calls += 1
        loss = self.fault(self.calls, loss) if self.fault else loss
        return {"ce": loss, "total": loss}


def epochs() -> Epochs:
    rng = np.random.default_rng(0)
    users = [np.cumsum(rng.integers(1, 3, 30)) % ITEMS + 1 for _ in range(20)]
    sequences = [u.astype(np.int32) for u in users]
    return Epochs(lambda packing: pack(sequences, 10, np.random.default_rng((5, packing))))


def run(
    task: nn.Module, resume: Path, validate: Callable[[], float] | None = None, **settings: object
) -> Outcome:
    resume.mkdir(exist_ok=True)
    config = TrainConfig.model_validate(
        {"epochs": 3, "lr": 0.05, "rows": 8, "warmup": 2, "checkpoint_s": 0} | settings
    )
    return train(
        task,
        [{"params": list(task.parameters()), "lr": config.lr}],
        epochs(),
        config,
        name="bigram",
        placement=CPU,
        num_items=ITEMS,
        resume=resume,
        validate=validate or iter([3.0, 2.0, 1.0] * 9).__next__,
    )


def test_it_learns(tmp_path: Path) -> None:
    outcome = run(Bigram(), tmp_path)
    losses = [epoch["ce"] for epoch in outcome.epochs]
    assert losses[2] < losses[1] < losses[0]
    assert outcome.steps == 3 * math.ceil(58 / 8)


@pytest.mark.parametrize("killed_at", [1, 5, 8, 9, 20])
def test_a_killed_run_ends_in_the_same_bits(tmp_path: Path, killed_at: int) -> None:
    whole = Bigram()
    expected = run(whole, tmp_path / "whole")

    def killed(call: int, loss: Tensor) -> Tensor:
        if call == killed_at:
            raise KeyboardInterrupt
        return loss

    with pytest.raises(KeyboardInterrupt):
        run(Bigram(killed), tmp_path / "killed")
    again = Bigram()
    values = iter([3.0, 2.0, 1.0][(killed_at - 1) // 8 :])
    outcome = run(again, tmp_path / "killed", values.__next__)
    assert outcome == expected
    assert torch.equal(again.table.weight, whole.table.weight)


def test_the_best_epoch_is_kept_and_patience_ends_the_run(tmp_path: Path) -> None:
    task, seen = Bigram(), []

    def validate() -> float:
        seen.append(task.table.weight.detach().clone())
        return [2.0, 1.0, 1.5, 1.4, 0.1][len(seen) - 1]

    outcome = run(task, tmp_path, validate, epochs=5, patience=2)
    assert outcome.best_epoch == 2 and outcome.stopped_early and len(outcome.epochs) == 4
    assert torch.equal(task.table.weight, seen[1])


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        (lambda call, loss: loss * (math.nan if call == 4 else 1), "ce, total, grad_norm is not"),
        (lambda call, loss: loss * (1e9 if call == 4 else 1), "the gradient's norm is "),
    ],
)
def test_a_run_that_breaks_says_so(
    tmp_path: Path, fault: Callable[[int, Tensor], Tensor], what: str
) -> None:
    with pytest.raises(BrokenRunError) as caught:
        run(Bigram(fault), tmp_path)
    assert caught.value.what.startswith(f"bigram: {what}")
    assert "at step 3 of 24." in caught.value.what
    assert caught.value.remedy == (
        "Lower the learning rate (now 0.05), or lengthen the warm-up (now 2 steps)."
    )
    assert (tmp_path / "train.safetensors").is_file()


def test_a_run_that_learns_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(BrokenRunError) as caught:
        run(Bigram(lambda _, loss: loss * 0 + math.log(ITEMS)), tmp_path, epochs=50, patience=50)
    assert "as of a model that knows nothing (2.48), at step 104 of 400." in caught.value.what


def test_schedule_warms_up_and_decays_to_two_per_cent() -> None:
    rates = [schedule(step, 10, 100) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == 1.0 and max(rates) == 1.0
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))
    assert schedule(100, 10, 100) == pytest.approx(0.02)
