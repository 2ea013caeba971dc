"""Gates judged: pass, regression or inconclusive, each with its interval. No torch here."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from slmc.config import parse_budget
from slmc.errors import UndecidedError
from slmc.evaluation.bootstrap import UNCHANGED, Bounds, Floats, Interval, mean_bounds
from slmc.evaluation.bootstrap import paired_bootstrap as paired_bootstrap
from slmc.evaluation.gates import Gate
from slmc.evaluation.measured import Measured as Measured
from slmc.evaluation.measured import check_same_users, identical, segment_mask, told, values
from slmc.evaluation.metrics import LOWER_IS_BETTER, overlap
from slmc.evaluation.power import POWER, users_needed

Outcome = Literal["pass", "regression", "inconclusive"]

ANOMALY = 0.05
"""An engine, or a pruned or quantized model, that is better than the model it was made from by
more than this share has likely been measured wrongly."""
PART = 50_000
"""Users whose top lists are compared at once."""


@dataclass(frozen=True)
class Verdict:
    """What a gate says. Changes and their bounds are positive where the candidate is better."""

    gate: Gate
    on: str
    baseline: str | None
    outcome: Outcome
    value: float
    baseline_value: float | None
    change: float | None
    """Relative or absolute as ``relative`` says, ``ce`` with its sign turned. None where
    nothing is compared, or where a relative change has no meaning: the baseline is at 0."""
    low: float | None
    """One-sided lower bound of ``change``; of ``value`` where nothing is compared."""
    high: float | None
    """The upper bound, likewise."""
    relative: bool
    n: int
    """Users; 0 for a size."""
    share: float
    """Of all measured users, those that the gate's segment holds; 1 without a segment."""
    needed_users: int | None
    """About how many users would tell with a power of 80 %, if the change stays what it is; None
    if told, or if no number would."""
    anomalous: bool
    protocol: str
    """In words."""

    @property
    def failed(self) -> bool:
        """Whether the exit code is 1."""
        return self.outcome != "pass" or (self.anomalous and self.gate.anomalous == "fail")

    @property
    def sentence(self) -> str:
        """Metric, values, interval, n, protocol and outcome in a line."""
        return f"{_numbers(self)} {_basis(self)}: {_outcome(self)}"


def judge(
    gate: Gate,
    candidate: Measured,
    baseline: Measured | None = None,
    *,
    seed: int,
    of_same_model: bool = False,
) -> Verdict:
    """Judge a gate on a candidate, paired over users (see :mod:`slmc.evaluation.bootstrap`).

    Pass only when the bound of the change on the side of a loss is within the budget;
    regression when the other bound is beyond it; else inconclusive. One user alone is always
    inconclusive. Identical rankings of all users have no loss, identical top lists an overlap of
    1, whatever the number of users.

    Args:
        gate: The condition.
        candidate: What is judged.
        baseline: What it is compared with, if the gate compares.
        seed: Of the bootstrap.
        of_same_model: Whether the baseline is the model that the candidate was made from, by
            pruning, quantizing or exporting it: only there is a gain anomalous.

    Raises:
        UndecidedError: No user (in the segment), no baseline, or a number was not measured.
        VerdictError: Candidate and baseline were measured on different users or protocols.
    """
    if gate.metric == "size_mb":
        return _judge_size(gate, candidate)
    if gate.baseline is None:
        baseline = None
    elif baseline is None:
        raise UndecidedError(
            f"gate {gate.metric} on {candidate.name}: the baseline {gate.baseline} is missing.",
            "Name a baseline that has been made and measured.",
        )
    else:
        check_same_users(candidate, baseline)
    users = _segment(gate, candidate)
    if gate.max_drop is not None and baseline is not None:
        return _judge_drop(gate, candidate, baseline, users, seed, of_same_model)
    return _judge_bound(gate, candidate, baseline, users, seed)


def paired_change(
    candidate: pl.DataFrame,
    baseline: pl.DataFrame,
    metric: str,
    protocol: Mapping[str, Any],
    *,
    seed: int,
    confidence: float,
    users: NDArray[np.bool_] | None = None,
) -> Interval:
    """The change of a metric between two tables of the same users, with its bounds.

    Identical rankings have no change, whoever else is ranked; equal values of a metric with a
    cutoff have bounds (see :func:`slmc.evaluation.bootstrap.paired_bootstrap`).

    Args:
        candidate: Table of an evaluation, ``[U]`` rows.
        baseline: Table of the same users and targets.
        metric: hr@K, ndcg@K, mrr or ce.
        protocol: Of both.
        seed: Of the bootstrap.
        confidence: One-sided, of each bound.
        users: ``[U]`` which users count; all if left out.

    Raises:
        UndecidedError: The metric was not measured in this way.
    """
    ours, theirs = (values(table, metric, protocol) for table in (candidate, baseline))
    if identical(candidate, baseline, metric, protocol):
        return UNCHANGED
    if users is not None:
        ours, theirs = ours[users], theirs[users]
    return paired_bootstrap(ours, theirs, seed=seed, confidence=confidence)


def better_is_positive(bounds: Bounds, metric: str) -> Bounds:
    """Turn the sign of a change where a lower value is better."""
    if metric not in LOWER_IS_BETTER:
        return bounds
    return Bounds(0.0 - bounds.change, 0.0 - bounds.high, 0.0 - bounds.low)  # never -0.0


def _segment(gate: Gate, candidate: Measured) -> NDArray[np.bool_]:
    users = (
        segment_mask(candidate.per_user, gate.segment)
        if candidate.per_user.height
        else np.zeros(0, dtype=bool)
    )
    if not users.any():
        where = "" if gate.segment == "all" else f" in the segment {gate.segment}"
        raise UndecidedError(
            f"gate {gate.metric} on {candidate.name}: there is no user{where}.",
            "Evaluate on a split with users in it; `slmc data check` shows how many each has.",
        )
    return users


def _judge_size(gate: Gate, candidate: Measured) -> Verdict:
    within = gate.max is not None and candidate.size_mb <= gate.max
    return Verdict(
        gate=gate, on=candidate.name, baseline=None,
        outcome="pass" if within else "regression",
        value=candidate.size_mb, baseline_value=None, change=None, low=None, high=None,
        relative=False, n=0, share=1.0, needed_users=None, anomalous=False, protocol="",
    )  # fmt: skip


def _judge_drop(
    gate: Gate,
    candidate: Measured,
    baseline: Measured,
    users: NDArray[np.bool_],
    seed: int,
    of_same_model: bool,
) -> Verdict:
    budget, relative = parse_budget(gate.max_drop or 0.0)
    ours, theirs = (
        values(m.per_user, gate.metric, m.protocol)[users] for m in (candidate, baseline)
    )
    change = paired_change(
        candidate.per_user, baseline.per_user, gate.metric, candidate.protocol,
        seed=seed, confidence=gate.confidence, users=users,
    )  # fmt: skip
    bounds = change.relative if relative else change.absolute
    turned = better_is_positive(bounds, gate.metric) if bounds else None
    outcome, needed = (
        _decide(turned, -budget, _of_change(ours, theirs, relative), gate.confidence)
        if turned
        else ("inconclusive", None)
    )
    return Verdict(
        gate=gate, on=candidate.name, baseline=baseline.name, outcome=outcome,
        value=float(ours.mean()), baseline_value=float(theirs.mean()),
        change=turned.change if turned else None,
        low=turned.low if turned else None,
        high=turned.high if turned else None,
        relative=relative, n=ours.size, share=float(users.mean()), needed_users=needed,
        anomalous=of_same_model and _suspicious(change, gate.metric),
        protocol=told(candidate.protocol),
    )  # fmt: skip


def _judge_bound(
    gate: Gate,
    candidate: Measured,
    baseline: Measured | None,
    users: NDArray[np.bool_],
    seed: int,
) -> Verdict:
    if gate.overlap_at is not None and baseline is not None:
        ours = _overlap(gate.overlap_at, candidate.per_user, baseline.per_user)[users]
    else:
        ours = values(candidate.per_user, gate.metric, candidate.protocol)[users]
    mean = mean_bounds(ours, seed=seed, confidence=gate.confidence)
    if gate.overlap_at is not None and bool((ours == 1).all()):
        mean = replace(mean, low=1.0)  # as identical rankings: lists of K items for every user
    if gate.min is not None:
        outcome, needed = _decide(mean, gate.min, ours, gate.confidence)
    else:
        turned = Bounds(-mean.change, -mean.high, -mean.low)
        outcome, needed = _decide(turned, -(gate.max or 0.0), ours, gate.confidence)
    return Verdict(
        gate=gate, on=candidate.name, baseline=baseline.name if baseline else None,
        outcome=outcome, value=mean.change, baseline_value=None, change=None,
        low=mean.low, high=mean.high, relative=False, n=ours.size, share=float(users.mean()),
        needed_users=needed, anomalous=False, protocol=told(candidate.protocol),
    )  # fmt: skip


def _of_change(ours: Floats, theirs: Floats, relative: bool) -> Floats:
    """What each user adds to a change, ``[n]``: its spread is that of the change."""
    change, mean = ours - theirs, float(theirs.mean())
    if not relative or mean == 0:
        return change
    linearised: Floats = (change - theirs * float(change.mean()) / mean) / mean
    return linearised


def _decide(
    bounds: Bounds, limit: float, parts: Floats, confidence: float
) -> tuple[Outcome, int | None]:
    """The outcome for a mean that must not lie below ``limit``, and the users it would take.

    ``parts`` ``[n]`` is what each user adds to the mean.
    """
    n = parts.size
    if n == 1:
        return "inconclusive", None
    if bounds.low >= limit:
        return "pass", None
    if bounds.high < limit:
        return "regression", None
    room = bounds.change - limit
    if room == 0:
        return "inconclusive", None
    reach = bounds.change - bounds.low if room > 0 else bounds.high - bounds.change
    needed = users_needed(
        n, room=abs(room), reach=reach, error=float(parts.std(ddof=1)) / math.sqrt(n),
        confidence=confidence,
    )  # fmt: skip
    return "inconclusive", needed


def _suspicious(found: Interval, metric: str) -> bool:
    if found.relative is None:
        return False
    gain = better_is_positive(found.relative, metric)
    return gain.change > ANOMALY and gain.low > 0


def _overlap(k: int, mine: pl.DataFrame, theirs: pl.DataFrame) -> NDArray[np.float64]:
    width = int(mine["top_items"].list.len()[0])
    if width < k:
        raise UndecidedError(
            f"overlap@{k}: the catalogue has only {width} items.", f"Ask for overlap@{width}."
        )

    def lists(table: pl.DataFrame, start: int, column: str) -> NDArray[Any]:
        return table[column][start : start + PART].list.to_array(width).to_numpy()

    def compare(start: int) -> NDArray[np.float64]:
        items, scores = (lists(mine, start, c) for c in ("top_items", "top_scores"))
        others, their_scores = (lists(theirs, start, c) for c in ("top_items", "top_scores"))
        return overlap(items, scores, others, their_scores, k)

    return np.concatenate([compare(start) for start in range(0, mine.height, PART)])


def _numbers(verdict: Verdict) -> str:
    gate = verdict.gate
    if gate.metric == "size_mb":
        return f"size_mb of {verdict.on}: {verdict.value:.1f} MB"
    text = f"{gate.metric} of {verdict.on}: {verdict.value:.4f}"
    if gate.overlap_at is not None:
        text += f" with {verdict.baseline}"
    if verdict.baseline_value is None:
        return f"{text} [{verdict.low:.4f}, {verdict.high:.4f}]"
    text += f" against {verdict.baseline_value:.4f} of {verdict.baseline}, "
    if verdict.change is None or verdict.low is None or verdict.high is None:
        return f"{text}no relative change can be told of a baseline at 0"
    low, change, high = (
        f"{100 * number:+.2f} %" if verdict.relative else f"{number:+.4f}"
        for number in (verdict.low, verdict.change, verdict.high)
    )
    turned = ", a rise counted as a loss" if gate.metric in LOWER_IS_BETTER else ""
    return f"{text}change {change} [{low}, {high}]{turned}"


def _basis(verdict: Verdict) -> str:
    gate = verdict.gate
    if gate.metric == "size_mb":
        return "(what serving needs)"
    share = f"{100 * verdict.share:.0f} % of users"
    segment = "" if gate.segment == "all" else f"{gate.segment}, {share}, "
    return (
        f"({segment}n = {verdict.n:,}, {verdict.protocol}, "
        f"one-sided {100 * gate.confidence:g} % bounds)"
    )


def _outcome(verdict: Verdict) -> str:
    gate = verdict.gate
    name = next(k for k in ("max_drop", "min", "max") if getattr(gate, k) is not None)
    text = f"{verdict.outcome}, {name} {getattr(gate, name)}"
    if verdict.needed_users is not None:
        users = f"{_rounded(verdict.needed_users):,} users"
        text += f"; about {users} would tell with {100 * POWER:.0f} % power"
    if verdict.anomalous:
        text += "; anomalous: better by more than 5 % than the model that it was made from"
    return text


def _rounded(number: int) -> int:
    """Two significant digits, upwards: more would feign precision."""
    unit = 10 ** max(0, len(str(number)) - 2)
    return math.ceil(number / unit) * unit
