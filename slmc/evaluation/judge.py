"""Judge gates: pass, regression or inconclusive, each with its interval. No torch here."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from slmc.config import parse_budget
from slmc.errors import UndecidedError
from slmc.evaluation.bootstrap import Bounds, Floats, Interval, mean_bounds, mean_over_seeds
from slmc.evaluation.comparison import better_is_positive, change_over_seeds
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
    baselines = [] if baseline is None else [baseline]
    return judge_over_seeds(gate, [candidate], baselines, seed=seed, of_same_model=of_same_model)


def judge_over_seeds(
    gate: Gate,
    candidates: Sequence[Evaluation],
    baselines: Sequence[Evaluation] = (),
    *,
    seed: int,
    of_same_model: bool = False,
) -> Verdict:
    """Judge a gate on the mean over training seeds; users and seeds are resampled.

    With one seed it is :func:`judge`. A size is the largest of all seeds.

    Args:
        gate: The condition.
        candidates: The evaluation of each seed, or one that all seeds of the baseline share.
        baselines: The evaluation of the baseline for the same seeds, or one that all seeds share.
        seed: Of the bootstrap.
        of_same_model: As in :func:`judge`.

    Raises:
        UndecidedError, VerdictError: As :func:`judge`.
    """
    candidate, seeds = candidates[0], max(len(candidates), len(baselines))
    if gate.metric == "size_mb":
        return _judge_size(gate, candidates)
    if gate.baseline is None:
        baselines = ()
    elif not baselines:
        raise UndecidedError(
            f"gate {gate.metric} on {candidate.name}: the baseline {gate.baseline} is missing.",
            "Name a step whose model or engine was evaluated.",
        )
    for other in [*candidates[1:], *baselines]:
        check_same_users(candidate, other)
    users = _segment(gate, candidate)
    if gate.max_drop is not None and baselines:
        verdict = _judge_drop(gate, candidates, baselines, users, seed, of_same_model)
    else:
        verdict = _judge_bound(gate, candidates, baselines, users, seed)
    # More users do not help where the seeds differ, so no number of users is known to decide it.
    return verdict if seeds == 1 else replace(verdict, seeds=seeds, needed_users=None)


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


def _judge_size(gate: Gate, candidates: Sequence[Evaluation]) -> Verdict:
    size = max(candidate.size_mb for candidate in candidates)
    within = gate.max is not None and size <= gate.max
    return Verdict(
        gate=gate, on=candidates[0].name, baseline=None,
        outcome="pass" if within else "regression",
        value=size, baseline_value=None, change=None, low=None, high=None,
        relative=False, n=0, share=1.0, needed_users=None, anomalous=False, protocol="",
        seeds=len(candidates),
    )  # fmt: skip


def _judge_drop(
    gate: Gate,
    candidates: Sequence[Evaluation],
    baselines: Sequence[Evaluation],
    users: NDArray[np.bool_],
    seed: int,
    of_same_model: bool,
) -> Verdict:
    candidate = candidates[0]
    budget, relative = parse_budget(gate.max_drop or 0.0)
    ours, theirs = (
        _user_means([values(m.per_user, gate.metric, m.protocol)[users] for m in measured])
        for measured in (candidates, baselines)
    )
    change = change_over_seeds(
        [m.per_user for m in candidates], [m.per_user for m in baselines], gate.metric,
        candidate.protocol, seed=seed, confidence=gate.confidence, users=users,
    )  # fmt: skip
    bounds = change.relative if relative else change.absolute
    gain = better_is_positive(bounds, gate.metric) if bounds else None
    outcome, needed = (
        _decide(gain, -budget, _contributions(ours, theirs, relative), gate.confidence)
        if gain
        else ("inconclusive", None)
    )
    return Verdict(
        gate=gate, on=candidate.name, baseline=baselines[0].name, outcome=outcome,
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
    candidates: Sequence[Evaluation],
    baselines: Sequence[Evaluation],
    users: NDArray[np.bool_],
    seed: int,
) -> Verdict:
    candidate = candidates[0]
    if gate.overlap_at is not None and baselines:
        pairs = zip_longest(candidates, baselines)
        whole = [
            _overlap(gate.overlap_at, (one or candidate).per_user, (other or baselines[0]).per_user)
            for one, other in pairs
        ]
    else:
        whole = [values(m.per_user, gate.metric, m.protocol) for m in candidates]
    by_seed = np.stack([numbers[users] for numbers in whole])
    ours = _user_means(by_seed)
    if len(by_seed) == 1:
        mean = mean_bounds(ours, seed=seed, confidence=gate.confidence)
    else:
        mean = mean_over_seeds(by_seed, seed=seed, confidence=gate.confidence)
    if gate.overlap_at is not None and bool((ours == 1).all()):
        mean = replace(mean, low=1.0)  # identical lists for all users count as no loss
    if gate.min is not None:
        outcome, needed = _decide(mean, gate.min, ours, gate.confidence)
    else:
        negated = Bounds(-mean.change, -mean.high, -mean.low)
        outcome, needed = _decide(negated, -(gate.max or 0.0), ours, gate.confidence)
    return Verdict(
        gate=gate, on=candidate.name, baseline=baselines[0].name if baselines else None,
        outcome=outcome, value=mean.change, baseline_value=None, change=None,
        low=mean.low, high=mean.high, relative=False, n=ours.size, share=float(users.mean()),
        needed_users=needed, anomalous=False, protocol=protocol_text(candidate.protocol),
    )  # fmt: skip


def _user_means(by_seed: Sequence[Floats] | Floats) -> Floats:
    """Return the mean over seeds of each user, ``[n]``."""
    means: Floats = by_seed[0] if len(by_seed) == 1 else np.stack(list(by_seed)).mean(axis=0)
    return means


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
