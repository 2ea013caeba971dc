"""The training loop: learning, early stopping, resume with the same bits, diverged runs."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from slmc.config import TrainConfig
from slmc.data.batches import pack
from slmc.errors import BrokenRunError
from slmc.model.device import Placement
from slmc.training.loop import train
from slmc.training.schedule import (
    Decay,
    after,
    improving,
    latest_start,
    noise,
    plateau,
    rate,
    validations,
)
from slmc.training.types import Batch, Epochs, Outcome, TrainSetup, Validation

ITEMS = 12
CPU = Placement(torch.device("cpu"), torch.float32)


class Bigram(nn.Module):
    """A bigram model, with dropout so that the random state matters."""

    def __init__(self, fault: Callable[[int, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(ITEMS + 1, ITEMS + 1)
        self.dropout = nn.Dropout(0.2)
        self.fault, self.calls = fault, 0

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        has_target = batch.targets > 0
        logits = self.dropout(self.table(batch.tokens[has_target]))
        loss = nn.functional.cross_entropy(logits, batch.targets[has_target])
        self.calls += 1
        loss = self.fault(self.calls, loss) if self.fault else loss
        return {"ce": loss, "total": loss}


def epochs() -> Epochs:
    rng = np.random.default_rng(0)
    users = [np.cumsum(rng.integers(1, 3, 30)) % ITEMS + 1 for _ in range(20)]
    sequences = [u.astype(np.int32) for u in users]
    return Epochs(lambda packing: pack(sequences, 10, np.random.default_rng((5, packing))))


STEPS = math.ceil(58 / 8)
"""Optimizer steps per epoch."""


def setup(
    config: TrainConfig,
    measure: Callable[[], dict[str, float]],
    resume: Path,
    *,
    tokens: int = 10**6,
    like: Decay | None = None,
    constant_from: float = 0.0,
) -> TrainSetup:
    return TrainSetup(
        config=config,
        epochs=epochs(),
        validation=Validation(measure, tokens),
        name="bigram",
        placement=CPU,
        num_items=ITEMS,
        resume=resume,
        constant_from=constant_from,
        like=like,
    )


def run(
    task: nn.Module,
    resume: Path,
    ndcg: Callable[[], float] | None = None,
    *,
    tokens: int = 10**6,
    like: Decay | None = None,
    constant_from: float = 0.0,
    **settings: object,
) -> Outcome:
    resume.mkdir(exist_ok=True)
    config = TrainConfig.model_validate(
        {"epochs": 3, "lr": 0.05, "rows": 8, "warmup": 2, "checkpoint_s": 0} | settings
    )
    measure = ndcg or iter([0.1, 0.2, 0.3] * 9).__next__
    return train(
        task,
        [{"params": list(task.parameters()), "lr": config.lr}],
        setup(
            config,
            lambda: {"ndcg": measure(), "ce": 2.0},
            resume,
            tokens=tokens,
            like=like,
            constant_from=constant_from,
        ),
    )


def test_it_learns(tmp_path: Path) -> None:
    outcome = run(Bigram(), tmp_path)
    losses = [epoch["ce"] for epoch in outcome.epochs]
    assert losses[2] < losses[1] < losses[0]
    assert outcome.steps == 3 * STEPS


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
    values = iter([0.1, 0.2, 0.3][(killed_at - 1) // 8 :])
    outcome = run(again, tmp_path / "killed", values.__next__)
    assert outcome == expected
    assert torch.equal(again.table.weight, whole.table.weight)


def weights_at_validations(
    task: Bigram, values: list[float]
) -> tuple[Callable[[], float], list[Tensor]]:
    """Return a validation that yields ``values``, and a list that collects the weights."""
    seen: list[Tensor] = []

    def ndcg() -> float:
        seen.append(task.table.weight.detach().clone())
        return values[len(seen) - 1]

    return ndcg, seen


def test_the_rate_decays_from_the_best_weights_once_ranking_stops_improving(tmp_path: Path) -> None:
    task = Bigram()
    ndcg, seen = weights_at_validations(task, [0.1, 0.25, 0.3, 0.2, 0.25, 0.4, 0.0])
    outcome = run(task, tmp_path, ndcg, epochs=50, patience=2)
    # .2 and .25 are worse than .25 and .3; the decay takes 3/7 of the best epoch, at least one.
    assert outcome.decay == {"start": 5 * STEPS, "steps": 10}
    assert outcome.stopped == "plateau" and not outcome.still_improving
    assert outcome.steps == 5 * STEPS + 10 and len(outcome.epochs) == 7
    assert [one["lr"] for one in outcome.epochs[:5]] == [1.0] * 5
    assert outcome.epochs[-1]["lr"] == pytest.approx(1 / 10)
    assert outcome.best_epoch == 6 and torch.equal(task.table.weight, seen[5])


def test_early_stopping_looks_only_at_validations_of_a_loss_that_no_longer_changes(
    tmp_path: Path,
) -> None:
    """The loss changes in the first 4 of 20 epochs; a plateau of these counts for nothing."""
    values = itertools.chain([0.1] * 6, itertools.repeat(0.05)).__next__
    outcome = run(Bigram(), tmp_path, values, epochs=20, patience=2, constant_from=0.2)
    # Validations 5 and 6 are .1, validations 7 and 8 are .05.
    assert outcome.stopped == "plateau" and outcome.decay["start"] == 8 * STEPS


def test_a_batch_knows_its_share_of_the_run(tmp_path: Path) -> None:
    class Recorder(Bigram):
        done: list[float] = []  # noqa: RUF012 - one instance

        def forward(self, batch: Batch) -> dict[str, Tensor]:
            self.done.append(batch.done)
            return super().forward(batch)

    run(Recorder(), tmp_path, itertools.count().__next__, epochs=3)
    assert Recorder.done == [step / (3 * STEPS) for step in range(3 * STEPS)]


@pytest.mark.parametrize(
    ("last", "kept"),
    [
        (0.299, 5),  # within the noise of the plateau .3, .299, .3, .299: 3 x .001 / sqrt(2)
        (0.29, 1),  # beyond it: the decay made the ranking worse
    ],
)
def test_weights_that_rank_better_beyond_noise_are_kept(
    tmp_path: Path, last: float, kept: int
) -> None:
    task = Bigram()
    ndcg, seen = weights_at_validations(task, [0.3, 0.299, 0.3, 0.299, last])
    outcome = run(task, tmp_path, ndcg, epochs=50, patience=2)
    assert outcome.best_epoch == kept and torch.equal(task.table.weight, seen[kept - 1])


def test_one_lucky_validation_ends_no_run() -> None:
    rising = [0.1, 0.2, 0.3, 0.5, 0.4, 0.41, 0.42, 0.43]
    assert not any(plateau(rising[:n], 3) for n in range(9))
    assert plateau([*rising, 0.39, 0.39], 3)
    assert not plateau([0.3], 1) and plateau([0.3, 0.3], 1)


def test_a_limit_starts_the_decay_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outcome = run(Bigram(), tmp_path, itertools.count().__next__, epochs=10)
    assert outcome.decay == {"start": 7 * STEPS, "steps": 3 * STEPS}
    assert outcome.stopped == "epochs" and outcome.still_improving
    assert outcome.steps == 10 * STEPS and outcome.epochs[-1]["lr"] == pytest.approx(1 / 24)
    assert caplog.messages[-1] == (
        "bigram: training ended at its limit (epochs: 10) while ranking still improved; training "
        "longer may rank better"
    )


def test_a_limit_is_not_logged_where_ranking_no_longer_improved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outcome = run(Bigram(), tmp_path, itertools.count(9, -1).__next__, epochs=3)
    assert outcome.stopped == "epochs" and not outcome.still_improving
    assert not any("limit" in message for message in caplog.messages)


def test_minutes_end_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()  # each call advances the clock by a second
    monkeypatch.setattr("slmc.training.clock.time.monotonic", lambda: float(next(clock)))
    outcome = run(Bigram(), tmp_path, itertools.count().__next__, epochs=10**4, max_minutes=3)
    assert outcome.stopped == "minutes" and outcome.still_improving
    assert 0 < outcome.steps < 180
    assert outcome.decay["start"] + outcome.decay["steps"] == outcome.steps
    assert outcome.epochs[-1]["lr"] < 0.1


def test_lower_is_better_where_cross_entropy_chooses(tmp_path: Path) -> None:
    task = Bigram()
    ce = iter([3.0, 2.0, 2.1, 2.6, 2.9, 2.9]).__next__
    config = TrainConfig(epochs=50, lr=0.05, rows=8, warmup=2, patience=2, select_by="ce")
    groups = [{"params": list(task.parameters()), "lr": 0.05}]
    outcome = train(task, groups, setup(config, lambda: {"ce": ce()}, tmp_path))
    assert outcome.best_epoch == 2 and outcome.selected_by == "ce"


def test_calibrated_cross_entropy_chooses_nothing() -> None:
    with pytest.raises(ValueError, match="use a ranking metric or ce"):
        TrainConfig(select_by="ce_calibrated")


def test_a_control_takes_the_steps_of_the_run_it_is_compared_with(tmp_path: Path) -> None:
    like = Decay(start=11, steps=6)
    values = itertools.chain([0.9, 0.1], itertools.repeat(0.5)).__next__
    outcome = run(Bigram(), tmp_path, values, epochs=50, patience=1, like=like)
    assert outcome.steps == 17 and outcome.decay == {"start": 11, "steps": 6}
    assert outcome.stopped == "like" and not outcome.still_improving


def test_a_large_log_is_validated_within_an_epoch(tmp_path: Path) -> None:
    outcome = run(Bigram(), tmp_path, itertools.count().__next__, tokens=60, epochs=1)
    # A tenth of three times 580 tokens pays for two validations of 60.
    assert [one["epoch"] for one in outcome.epochs] == [0.5, 1.0]


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        (lambda call, loss: loss * (math.nan if call == 4 else 1), "ce, total, grad_norm is not"),
        (lambda call, loss: loss * (1e9 if call == 4 else 1), "the gradient norm is "),
    ],
)
def test_a_diverged_run_raises(
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


def test_a_run_that_learns_nothing_raises(tmp_path: Path) -> None:
    with pytest.raises(BrokenRunError) as caught:
        run(Bigram(lambda _, loss: loss * 0 + math.log(ITEMS)), tmp_path, epochs=50, patience=50)
    assert (
        "that of a model that has learned nothing (2.48), at step 104 of 400." in caught.value.what
    )


def test_a_short_curve_improves_unless_it_falls() -> None:
    assert improving([], 2) and improving([0.1], 2)
    assert improving([0.1, 0.2], 2) and not improving([0.2, 0.1], 2)
    assert improving([0.1, 0.4, 0.3, 0.3], 2) and not improving([0.4, 0.3, 0.3, 0.3], 2)


def test_noise_is_that_of_neighbouring_validations() -> None:
    assert noise([]) == noise([0.5]) == 0
    assert noise([0.50, 0.51, 0.50]) == pytest.approx(3 * 0.01 / math.sqrt(2))
    assert noise([0.5, 0.1, 0.5]) == pytest.approx(0.05 * 0.5)


def test_the_rate_warms_up_stays_and_decays_to_nothing() -> None:
    decay = Decay(start=70, steps=30)
    rates = [rate(step, 10, decay) for step in range(100)]
    assert rates[0] == 0.1 and set(rates[9:70]) == {1.0}
    assert all(a > b for a, b in itertools.pairwise(rates[70:]))
    assert rates[99] == pytest.approx(1 / 30) and rate(100, 10, decay) == 0
    assert rate(0, 0, None) == 1.0


@given(
    start=st.integers(1, 10**5), wasted=st.integers(0, 10**4), least=st.integers(1, 500),
    most=st.integers(1, 10**5),
)  # fmt: skip
def test_a_decay_lasts_as_long_as_it_may(start: int, wasted: int, least: int, most: int) -> None:
    decay = after(start, max(0, start - wasted), least=least, most=most)
    assert decay.start == start and 1 <= decay.steps <= most
    assert decay.steps >= min(least, most)


@given(epochs=st.integers(1, 300), steps=st.integers(1, 500), parts=st.integers(1, 8))
def test_a_run_always_leaves_room_for_its_decay(epochs: int, steps: int, parts: int) -> None:
    within = validations(steps, parts)
    assert within[-1] == steps and len(within) <= parts
    marks = [e * steps + mark for e in range(epochs) for mark in within]
    total = marks[-1]
    start = latest_start(total, marks)
    assert 1 <= start < total or total == 1
    if len(marks) > 2:
        assert start in marks and abs(start - 0.7 * total) <= steps / 2 + 1
