"""Means, changes and verdicts over training seeds."""

import math

import numpy as np
import polars as pl
import pytest

from slmc.errors import UndecidedError, VerdictError
from slmc.evaluation.bootstrap import UNCHANGED, mean_bounds, mean_over_seeds, paired_over_seeds
from slmc.evaluation.comparison import change_over_seeds, paired_change
from slmc.evaluation.config import EvaluateConfig
from slmc.evaluation.gates import Gate
from slmc.evaluation.judge import judge, judge_over_seeds
from slmc.evaluation.results import Evaluation, protocol

USERS = 600
FULL = protocol(EvaluateConfig(exclude_seen=False))
T_975_OF_2 = 4.303
"""Student's t of two degrees of freedom at 97.5 %."""
DRAWN = 0.05
"""Relative error of a bound from 100,000 draws."""


def evaluation(name: str, worse: float, *, seed: int = 0, size_mb: float = 2.0) -> Evaluation:
    """A model whose ranks are those of a baseline times ``worse``, with noise of its seed."""
    ranks = 1 + np.random.default_rng(0).geometric(0.15, USERS)
    noise = np.random.default_rng(seed).integers(0, 2, USERS) if seed else 0
    per_user = pl.DataFrame(
        {
            "user": [str(i) for i in range(USERS)],
            "target": np.arange(USERS) % 7 + 1,
            "rank": ranks * worse + noise,
            "history": np.arange(USERS) % 40 + 1,
            "top_items": [list(range(1, 21))] * USERS,
            "top_scores": [[30.0 - i for i in range(20)]] * USERS,
        }
    )
    return Evaluation(name, per_user, FULL, size_mb)


def mrr(one: Evaluation) -> np.ndarray:
    return 1 / one.per_user["rank"].to_numpy()


GATE = Gate(metric="mrr", on="student", baseline="teach", max_drop="30%")


def test_the_mean_of_equal_seeds_has_the_interval_of_one() -> None:
    values = np.random.default_rng(1).random(500)
    ours = mean_over_seeds(np.tile(values, (3, 1)), seed=2, resamples=20_000)
    one = mean_bounds(values, seed=2, resamples=20_000)
    assert ours.change == pytest.approx(one.change)
    width = one.high - one.low
    assert (ours.low, ours.high) == pytest.approx((one.low, one.high), abs=DRAWN * width)


def test_the_mean_of_seeds_that_differ_has_the_interval_of_students_t() -> None:
    values = 6.0 + np.array([[0.0], [0.1], [0.2]]) + np.zeros(5000)
    bounds = mean_over_seeds(values, seed=2, confidence=0.975, resamples=100_000)
    reach = T_975_OF_2 * 0.1 / math.sqrt(3)
    assert bounds.change == pytest.approx(6.1)
    assert bounds.high - 6.1 == pytest.approx(reach, rel=DRAWN)
    assert 6.1 - bounds.low == pytest.approx(reach, rel=DRAWN)


@pytest.mark.parametrize("shape", [(1, 9), (9,), (3, 0)])
def test_a_mean_needs_two_seeds_and_a_user(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"values \[S, n\]"):
        mean_over_seeds(np.zeros(shape), seed=0)


def test_a_change_is_that_of_the_arrays() -> None:
    ours = [evaluation("s", 1.2, seed=seed) for seed in (1, 2, 3)]
    theirs = [evaluation("c", 1.0, seed=seed) for seed in (4, 5, 6)]
    tables = ([one.per_user for one in some] for some in (ours, theirs))
    change = change_over_seeds(*tables, "mrr", FULL, seed=3, confidence=0.9)
    arrays = (np.stack([mrr(one) for one in some]) for some in (ours, theirs))
    assert change == paired_over_seeds(*arrays, seed=3, confidence=0.9)


def test_one_seed_on_each_side_is_a_paired_change() -> None:
    pair = evaluation("s", 1.2).per_user, evaluation("t", 1.0).per_user
    options = {"seed": 3, "confidence": 0.9}
    change = change_over_seeds([pair[0]], [pair[1]], "mrr", FULL, **options)  # type: ignore[arg-type]
    assert change == paired_change(*pair, "mrr", FULL, **options)  # type: ignore[arg-type]


def test_a_shared_table_stands_for_every_seed_on_either_side() -> None:
    many = [evaluation("s", 1.2, seed=seed).per_user for seed in (1, 2)]
    one = [evaluation("t", 1.0).per_user]
    down = change_over_seeds(many, one, "mrr", FULL, seed=3, confidence=0.9)
    up = change_over_seeds(one, many, "mrr", FULL, seed=3, confidence=0.9)
    assert down.change == pytest.approx(-up.change)
    with pytest.raises(ValueError, match="2 seeds against 3"):
        change_over_seeds(many, one * 3, "mrr", FULL, seed=3, confidence=0.9)


def test_equal_ranks_of_all_seeds_have_no_change() -> None:
    tables = [evaluation("s", 1.2, seed=seed).per_user for seed in (1, 2)]
    change = change_over_seeds(tables, tables, "mrr", FULL, seed=3, confidence=0.9)
    assert change == UNCHANGED


def test_one_seed_is_judged_as_before() -> None:
    ours, theirs = evaluation("student", 1.2), evaluation("teach", 1.0)
    assert judge_over_seeds(GATE, [ours], [theirs], seed=5) == judge(GATE, ours, theirs, seed=5)


def test_a_drop_is_that_of_the_means_over_seeds() -> None:
    ours = [evaluation("student", 1.2, seed=seed) for seed in (1, 2, 3)]
    teacher = evaluation("teach", 1.0)
    verdict = judge_over_seeds(GATE, ours, [teacher], seed=5)
    value = float(np.mean([mrr(one).mean() for one in ours]))
    assert (verdict.on, verdict.baseline, verdict.seeds) == ("student", "teach", 3)
    assert verdict.value == pytest.approx(value, abs=1e-12)
    assert verdict.baseline_value == pytest.approx(mrr(teacher).mean(), abs=1e-12)
    assert verdict.change == pytest.approx(value / mrr(teacher).mean() - 1, abs=1e-12)
    assert verdict.low is not None and verdict.high is not None and verdict.change is not None
    assert verdict.low < verdict.change < verdict.high


def test_an_overlap_is_counted_for_each_pair() -> None:
    gate = Gate(metric="overlap@10", on="student", baseline="teach", min=0.9)
    ours = [evaluation("student", 1.2, seed=seed) for seed in (1, 2)]
    verdict = judge_over_seeds(gate, ours, [evaluation("teach", 1.0)], seed=5)
    assert (verdict.outcome, verdict.value, verdict.low) == ("pass", 1.0, 1.0)


def test_a_size_is_the_largest() -> None:
    gate = Gate(metric="size_mb", max=3)
    sizes = [evaluation("student", 1.0, size_mb=size) for size in (2.0, 4.0, 3.0)]
    verdict = judge_over_seeds(gate, sizes, seed=5)
    assert (verdict.outcome, verdict.value) == ("regression", 4.0)


def test_every_seed_must_have_the_same_users() -> None:
    ours = [evaluation("student", 1.2, seed=seed) for seed in (1, 2)]
    other = Evaluation("student", ours[1].per_user.reverse(), FULL, 2.0)
    with pytest.raises(VerdictError, match="different users or targets"):
        judge_over_seeds(GATE, [ours[0], other], [evaluation("teach", 1.0)], seed=5)
    with pytest.raises(UndecidedError, match="the baseline teach is missing"):
        judge_over_seeds(GATE, ours, seed=5)
