"""Judge gates: pass, regression or inconclusive, each with its interval. No torch here."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from slmc.config import parse_budget
from slmc.errors import UndecidedError
from slmc.evaluation.bootstrap import Bounds, Floats, Interval, mean_bounds
from slmc.evaluation.comparison import better_is_positive, paired_change
from slmc.evaluation.gates import Gate
from slmc.evaluation.metrics import overlap
from slmc.evaluation.power import users_needed
from slmc.evaluation.results import (
    Evaluation,
    check_same_users,
    protocol_text,
    segment_mask,
    values,
)
from slmc.evaluation.verdict import Outcome, Verdict

ANOMALY = 0.05
"""An engine, or a pruned or quantized model, that is better by more than this share than the model
it was made from is probably the result of a faulty evaluation."""
PART = 50_000
"""Users whose top lists are compared at once."""


def judge(
    gate: Gate,
    candidate: Evaluation,
    baseline: Evaluation | None = None,
    *,
    seed: int,
    of_same_model: bool = False,
) -> Verdict:
    """Judge a gate on a candidate, paired over users (see :mod:`slmc.evaluation.bootstrap`).

    Pass if the lower confidence bound of the change is within the budget; regression if the upper
    bound is beyond it; otherwise inconclusive. A single user is always inconclusive. Identical
    rankings of all users have no loss, and identical top lists an overlap of 1, for any number
    of users.

    Args:
        gate: The condition.
        candidate: The evaluation to judge.
        baseline: The evaluation to compare with, if the gate has a baseline.
        seed: Of the bootstrap.
        of_same_model: Whether the baseline is the model that the candidate was made from, by
            pruning, quantizing or exporting it: only then is a gain anomalous.

    Raises:
        UndecidedError: There is no user (in the segment), no baseline, or no such metric.
        VerdictError: Candidate and baseline have different users or protocols.
    """
    if gate.metric == "size_mb":
        return _judge_size(gate, candidate)
    if gate.baseline is None:
        baseline = None
    elif baseline is None:
        raise UndecidedError(
            f"gate {gate.metric} on {candidate.name}: the baseline {gate.baseline} is missing.",
            "Name a step whose model or engine was evaluated.",
        )
    else:
        check_same_users(candidate, baseline)
    users = _segment(gate, candidate)
    if gate.max_drop is not None and baseline is not None:
        return _judge_drop(gate, candidate, baseline, users, seed, of_same_model)
    return _judge_bound(gate, candidate, baseline, users, seed)


def _segment(gate: Gate, candidate: Evaluation) -> NDArray[np.bool_]:
    users = (
        segment_mask(candidate.per_user, gate.segment)
        if candidate.per_user.height
        else np.zeros(0, dtype=bool)
    )
    if not users.any():
        where = "" if gate.segment == "all" else f" in the segment {gate.segment}"
        remedy = "Evaluate on a split with users; `slmc data check` shows the users of each split."
        if gate.segment in ("same-time", "later"):
            remedy = (
                "Choose another segment: same-time and later need a log with times, and no target "
                "of a temporal split has the time of the item before it."
            )
        raise UndecidedError(
            f"gate {gate.metric} on {candidate.name}: there are no users{where}.", remedy
        )
    return users


def _judge_size(gate: Gate, candidate: Evaluation) -> Verdict:
    within = gate.max is not None and candidate.size_mb <= gate.max
    return Verdict(
        gate=gate, on=candidate.name, baseline=None,
        outcome="pass" if within else "regression",
        value=candidate.size_mb, baseline_value=None, change=None, low=None, high=None,
        relative=False, n=0, share=1.0, needed_users=None, anomalous=False, protocol="",
    )  # fmt: skip


def _judge_drop(
    gate: Gate,
    candidate: Evaluation,
    baseline: Evaluation,
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
    gain = better_is_positive(bounds, gate.metric) if bounds else None
    outcome, needed = (
        _decide(gain, -budget, _contributions(ours, theirs, relative), gate.confidence)
        if gain
        else ("inconclusive", None)
    )
    return Verdict(
        gate=gate, on=candidate.name, baseline=baseline.name, outcome=outcome,
        value=float(ours.mean()), baseline_value=float(theirs.mean()),
        change=gain.change if gain else None,
        low=gain.low if gain else None,
        high=gain.high if gain else None,
        relative=relative, n=ours.size, share=float(users.mean()), needed_users=needed,
        anomalous=of_same_model and _suspicious(change, gate.metric),
        protocol=protocol_text(candidate.protocol),
    )  # fmt: skip


def _judge_bound(
    gate: Gate,
    candidate: Evaluation,
    baseline: Evaluation | None,
    users: NDArray[np.bool_],
    seed: int,
) -> Verdict:
    if gate.overlap_at is not None and baseline is not None:
        ours = _overlap(gate.overlap_at, candidate.per_user, baseline.per_user)[users]
    else:
        ours = values(candidate.per_user, gate.metric, candidate.protocol)[users]
    mean = mean_bounds(ours, seed=seed, confidence=gate.confidence)
    if gate.overlap_at is not None and bool((ours == 1).all()):
        mean = replace(mean, low=1.0)  # identical lists for all users count as no loss
    if gate.min is not None:
        outcome, needed = _decide(mean, gate.min, ours, gate.confidence)
    else:
        negated = Bounds(-mean.change, -mean.high, -mean.low)
        outcome, needed = _decide(negated, -(gate.max or 0.0), ours, gate.confidence)
    return Verdict(
        gate=gate, on=candidate.name, baseline=baseline.name if baseline else None,
        outcome=outcome, value=mean.change, baseline_value=None, change=None,
        low=mean.low, high=mean.high, relative=False, n=ours.size, share=float(users.mean()),
        needed_users=needed, anomalous=False, protocol=protocol_text(candidate.protocol),
    )  # fmt: skip


def _contributions(ours: Floats, theirs: Floats, relative: bool) -> Floats:
    """Return each user's contribution ``[n]`` to the change; a ratio of means is linearised."""
    change, mean = ours - theirs, float(theirs.mean())
    if not relative or mean == 0:
        return change
    linearised: Floats = (change - theirs * float(change.mean()) / mean) / mean
    return linearised


def _decide(
    bounds: Bounds, limit: float, parts: Floats, confidence: float
) -> tuple[Outcome, int | None]:
    """Return the outcome for a mean that must be at least ``limit``, and the users needed.

    ``parts`` ``[n]`` are the users' contributions to the mean.
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


def _suspicious(change: Interval, metric: str) -> bool:
    if change.relative is None:
        return False
    gain = better_is_positive(change.relative, metric)
    return gain.change > ANOMALY and gain.low > 0


def _overlap(k: int, mine: pl.DataFrame, theirs: pl.DataFrame) -> NDArray[np.float64]:
    width = int(mine["top_items"].list.len()[0])
    if width < k:
        raise UndecidedError(
            f"overlap@{k}: the catalogue has only {width} items.",
            f"Set the metric to overlap@{width}.",
        )

    def lists(table: pl.DataFrame, start: int, column: str) -> NDArray[Any]:
        return table[column][start : start + PART].list.to_array(width).to_numpy()

    def compare(start: int) -> NDArray[np.float64]:
        items, scores = (lists(mine, start, c) for c in ("top_items", "top_scores"))
        others, their_scores = (lists(theirs, start, c) for c in ("top_items", "top_scores"))
        return overlap(items, scores, others, their_scores, k)

    return np.concatenate([compare(start) for start in range(0, mine.height, PART)])
