"""Simulate the error rates of verdicts with a known truth: ``pytest -m slow -s`` prints the table.

A user's NDCG@10 is 0 for a miss and 1 / log2(1 + rank) for a hit. For a share of the users the
candidate differs: hits are lost and gained, and ranks change. The true loss is exactly the
budget, so every pass is a false one. Each user draws a pair (rank of the baseline, rank of the
candidate) from a table, so a sample of n users is one multinomial draw.

Letters: ``H`` values that NDCG@10 can have (10 ranks and 0).
"""

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest

from slmc.evaluation.bootstrap import ENOUGH, paired_bootstrap, paired_over_seeds

GAINS = np.append(1 / np.log2(1 + np.arange(1, 11)), 0.0)  # [H]
RANKS = np.arange(1, 11) ** -0.6 / (np.arange(1, 11) ** -0.6).sum()
"""Distribution of hits over the ranks: most at the first, fewest at the tenth."""
MOVED = 0.4
"""Share of the differing users that have a hit in both."""
MEANS = (0.014, 0.034)
BUDGETS = (0.005, 0.01, 0.03)
SHARES = (0.001, 0.005, 0.02)
"""Shares of users whose value differs; with so few hits, more than 5 % is impossible."""
DENSE = ((0.12, 0.01, 0.1), (0.12, 0.01, 0.2), (0.2, 0.03, 0.3))
"""Mean, budget and share of populations in which more users have a hit."""
CORRELATIONS = (0.99, 0.9)
SIZES = (500, 5000, 20_000)
TRIALS, RESAMPLES = 1000, 400
FALSE_PASSES = 0.06
COVERAGE = (0.93, 0.97)
ERROR = 2 * math.sqrt(0.05 * 0.95 / TRIALS)
"""Two standard errors of a rate of 5 % (or 95 %) over the trials: 1.4 %."""


def population(mean: float, share: float, loss: float) -> np.ndarray | None:
    """Probabilities ``[H, H]`` of (baseline, candidate); None if such a loss is impossible.

    Args:
        mean: NDCG@10 of the baseline.
        share: Users whose value differs.
        loss: Relative.
    """
    lost = np.zeros((11, 11))
    worse = np.triu(np.outer(RANKS, RANKS), 1)
    lost[:10, :10] = MOVED * worse / worse.sum()
    lost[:10, 10] = (1 - MOVED) * RANKS
    each = float((lost * (GAINS[:, None] - GAINS)).sum())
    surplus = loss * mean / each
    table = (share + surplus) / 2 * lost + (share - surplus) / 2 * lost.T
    hits = mean / float(RANKS @ GAINS[:10])
    table[np.diag_indices(11)] = np.append(hits * RANKS, 1 - hits) - table.sum(axis=1)
    return table if (table >= 0).all() else None


def moments(table: np.ndarray, loss: float) -> tuple[float, float]:
    """Correlation of baseline and candidate, and the effective number of one user's change."""
    rows, columns = table.sum(axis=1), table.sum(axis=0)
    mean, other = GAINS @ rows, GAINS @ columns
    spread = math.sqrt((GAINS**2 @ rows - mean**2) * (GAINS**2 @ columns - other**2))
    deviation = GAINS - (1 - loss) * GAINS[:, None]
    effective = (table * deviation**2).sum() ** 2 / (table * deviation**4).sum()
    return float((GAINS @ table @ GAINS - mean * other) / spread), float(effective)


def share_of(correlation: float, mean: float, loss: float) -> float:
    """Share of differing users that gives a correlation, by bisection."""
    low, high = 0.0, 0.1
    for _ in range(40):
        share = (low + high) / 2
        table = population(mean, share, loss)
        falls_short = table is None and share < loss
        if falls_short or (table is not None and moments(table, loss)[0] > correlation):
            low = share
        else:
            high = share
    return low


@dataclass(frozen=True)
class Case:
    """A population, and the error rates of its verdicts."""

    n: int
    mean: float
    loss: float
    share: float
    correlation: float
    effective: float
    """Expected effective number of differing users in a sample."""
    false_passes: float
    coverage: float
    """Coverage of the interval between two one-sided 97.5 % bounds."""

    @property
    def enough(self) -> bool:
        """Whether the bound should not be conservative."""
        return self.effective >= 2 * ENOUGH

    @property
    def line(self) -> str:
        """A row of the table."""
        return (
            f"| {self.n:,} | {self.mean:.3f} | {100 * self.loss:g} % | {100 * self.share:.2f} % "
            f"| {self.n * self.share:.1f} | {self.correlation:.3f} "
            f"| {100 * self.false_passes:.1f} % | {100 * self.coverage:.1f} %"
            f"{'' if self.enough else ' (cautious)'} |"
        )


HEAD = (
    "| n | NDCG@10 | true loss = budget | differing users | of n | correlation | false passes "
    "| coverage |\n|---|---|---|---|---|---|---|---|"
)


def simulate(n: int, mean: float, loss: float, share: float) -> Case | None:
    """Draw samples of n users, and judge each; None if such a loss is impossible."""
    table = population(mean, share, loss)
    if table is None:
        return None
    baselines, candidates = (axis.ravel() for axis in np.meshgrid(GAINS, GAINS, indexing="ij"))
    rng = np.random.default_rng([n, round(1e6 * mean), round(1e6 * loss), round(1e6 * share)])
    passed = covered = 0
    for counts in rng.multinomial(n, table.ravel(), size=TRIALS):
        ours, theirs = np.repeat(candidates, counts), np.repeat(baselines, counts)
        seed = int(rng.integers(2**31))
        one, two = (
            paired_bootstrap(ours, theirs, seed=seed, confidence=level, resamples=RESAMPLES)
            for level in (0.95, 0.975)
        )
        passed += one.relative is not None and one.relative.low >= -loss
        covered += two.relative is None or two.relative.low <= -loss <= two.relative.high
    correlation, effective = moments(table, loss)
    return Case(n, mean, loss, share, correlation, n * effective, passed / TRIALS, covered / TRIALS)


@pytest.mark.slow
@pytest.mark.parametrize("n", SIZES)
def test_verdicts_have_their_nominal_error_rates(
    n: int, capsys: pytest.CaptureFixture[str]
) -> None:
    populations = [
        (mean, loss, share)
        for mean, loss in product(MEANS, BUDGETS)
        for share in (*SHARES, *(share_of(r, mean, loss) for r in CORRELATIONS))
    ]
    cases = [case for one in (*populations, *DENSE) if (case := simulate(n, *one)) is not None]
    with capsys.disabled():
        print("", HEAD, *(case.line for case in cases), sep="\n")
    assert len(cases) >= 20
    assert any(case.enough for case in cases)
    for case in cases:
        assert case.false_passes <= FALSE_PASSES + ERROR, case.line
        assert case.coverage >= COVERAGE[0] - ERROR, case.line
        assert not case.enough or case.coverage <= COVERAGE[1] + ERROR, case.line
    assert float(np.mean([case.false_passes for case in cases])) <= 0.05


SEEDS, USERS = 3, 300


@pytest.mark.slow
@pytest.mark.parametrize(("interaction", "between"), [(1.0, 0.0), (1.0, 1.4), (0.3, 3.0)])
def test_intervals_over_seeds_have_their_nominal_coverage(
    interaction: float, between: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """Changes with effects of users (standard deviation 1), of their interaction, and of seeds.

    The effect of the seeds is in standard errors of the users' mean. Resampling the seeds has
    less coverage.
    """
    rng, covered, naive = np.random.default_rng(0), 0, 0
    for trial in range(TRIALS):
        users, mixed = rng.normal(0, 1, USERS), rng.normal(0, interaction, (SEEDS, USERS))
        effects = rng.normal(0, between, (SEEDS, 1)) / math.sqrt(USERS)
        candidate = 6 + users + mixed + effects
        level, zero = {"confidence": 0.975, "resamples": RESAMPLES}, np.full(USERS, 6.0)
        interval = paired_over_seeds(candidate, zero, seed=trial, **level)
        covered += interval.low <= 0 <= interval.high
        drawn = [
            candidate[rng.integers(0, SEEDS, SEEDS)][:, rng.integers(0, USERS, USERS)].mean() - 6
            for _ in range(RESAMPLES // 2)
        ]
        low, high = np.quantile(drawn, [0.025, 0.975])
        naive += low <= 0 <= high
    rates = f"{100 * covered / TRIALS:.1f} % | {100 * naive / TRIALS:.1f} %"
    with capsys.disabled():
        print(f"\n| {SEEDS} seeds, {USERS} users | {interaction} | {between} | {rates} |")
    assert COVERAGE[0] - ERROR <= covered / TRIALS <= COVERAGE[1] + ERROR
