"""The verdict of a gate, and its sentence. No torch here."""

import math
from dataclasses import dataclass
from typing import Literal

from slmc.evaluation.gates import Gate
from slmc.evaluation.metrics import LOWER_IS_BETTER
from slmc.evaluation.power import POWER

Outcome = Literal["pass", "regression", "inconclusive"]


@dataclass(frozen=True)
class Verdict:
    """The verdict of a gate. A positive change means that the candidate is better."""

    gate: Gate
    on: str
    baseline: str | None
    outcome: Outcome
    value: float
    baseline_value: float | None
    change: float | None
    """Relative or absolute, see ``relative``; with opposite sign for ``ce``. None without a
    comparison, or if a relative change is undefined because the baseline is 0."""
    low: float | None
    """One-sided lower confidence bound of ``change``, or of ``value`` without a comparison."""
    high: float | None
    """The upper bound of the same."""
    relative: bool
    n: int
    """Users; 0 for a size."""
    share: float
    """Share of the evaluated users that are in the gate's segment; 1 without a segment."""
    needed_users: int | None
    """Estimate of the users needed to decide with 80 % power, if the change stays the same; None if
    decided, or if no number of users suffices."""
    anomalous: bool
    protocol: str
    """As text."""
    seeds: int = 1
    """Number of training seeds over whose mean it is judged."""
    chosen: bool = False
    """Whether it is the best point of a sweep, chosen on validation."""

    @property
    def failed(self) -> bool:
        """Whether the gate makes the exit code 1."""
        return self.outcome != "pass" or (self.anomalous and self.gate.anomalous == "fail")

    @property
    def sentence(self) -> str:
        """Metric, values, interval, n, protocol and outcome as one line."""
        return f"{_numbers(self)} {_basis(self)}: {_outcome(self)}"


def _numbers(verdict: Verdict) -> str:
    gate = verdict.gate
    who = f"{verdict.on} (best on validation)" if verdict.chosen else verdict.on
    if gate.metric == "size_mb":
        return f"size_mb of {who}: {verdict.value:.1f} MB"
    text = f"{gate.metric} of {who}: {verdict.value:.4f}"
    if gate.overlap_at is not None:
        text += f" with {verdict.baseline}"
    if verdict.baseline_value is None:
        return f"{text} [{verdict.low:.4f}, {verdict.high:.4f}]"
    text += f" against {verdict.baseline_value:.4f} of {verdict.baseline}, "
    if verdict.change is None or verdict.low is None or verdict.high is None:
        return f"{text}no relative change, since the baseline is 0"
    low, change, high = (
        f"{100 * number:+.2f} %" if verdict.relative else f"{number:+.4f}"
        for number in (verdict.low, verdict.change, verdict.high)
    )
    direction = ", a rise counted as a loss" if gate.metric in LOWER_IS_BETTER else ""
    return f"{text}change {change} [{low}, {high}]{direction}"


def _basis(verdict: Verdict) -> str:
    gate = verdict.gate
    if gate.metric == "size_mb":
        largest = f", largest of {verdict.seeds} seeds" if verdict.seeds > 1 else ""
        return f"(files needed for serving{largest})"
    share = f"{100 * verdict.share:.0f} % of users"
    segment = "" if gate.segment == "all" else f"{gate.segment}, {share}, "
    over = f"mean over {verdict.seeds} seeds, users and seeds resampled, "
    return (
        f"({segment}n = {verdict.n:,}, {verdict.protocol}, {over * (verdict.seeds > 1)}"
        f"one-sided {100 * gate.confidence:g} % bounds)"
    )


def _outcome(verdict: Verdict) -> str:
    gate = verdict.gate
    name = next(k for k in ("max_drop", "min", "max") if getattr(gate, k) is not None)
    text = f"{verdict.outcome}, {name} {getattr(gate, name)}"
    if verdict.needed_users is not None:
        users = f"{_rounded(verdict.needed_users):,} users"
        text += f"; about {users} would decide it with {100 * POWER:.0f} % power"
    elif verdict.outcome == "inconclusive" and verdict.seeds > 1:
        text += "; more seeds or more users may decide it"
    if verdict.anomalous:
        text += "; anomalous: more than 5 % better than the model that it was made from"
    return text


def _rounded(number: int) -> int:
    """Round up to two significant digits, the precision of the estimate."""
    unit = 10 ** max(0, len(str(number)) - 2)
    return math.ceil(number / unit) * unit
