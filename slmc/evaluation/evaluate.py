"""Rank the whole catalogue for the users of a split with any scorer, and compute the metrics."""

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from slmc.artefact import Artefact, Draft, draft
from slmc.config import Sampled
from slmc.data.dataset import Dataset, Targets
from slmc.errors import BrokenRunError, UndecidedError, UsageError, VerdictError
from slmc.evaluation.config import EvaluateConfig
from slmc.evaluation.ranking import Pairs, Ranks, rank_targets
from slmc.evaluation.results import (
    SCHEMA,
    TOP,
    excludes_seen,
    resolve_auto,
    summarise,
    summary_text,
    tail_limit,
    write,
)
from slmc.evaluation.scorers import Scorer, VectorScorer
from slmc.evaluation.temperature import INVERSE, USERS, best, cross_entropies

log = logging.getLogger("slmc.evaluate")


def evaluate(config: EvaluateConfig, inputs: dict[str, Artefact], out: Path) -> Artefact:
    """Evaluate the ranking of a model on a split of a dataset; returns a report artefact.

    Raises:
        UsageError: The model ranks another number of items than the dataset has.
        UndecidedError: The split has no user.
    """
    # Imported here so that engines can be evaluated without transformers.
    from slmc.model.device import choose
    from slmc.model.loading import load_model

    data = Dataset.open(inputs["data"])
    device = choose("auto", "fp32").device
    scorer = VectorScorer.of(load_model(inputs["model"], device))
    check_catalogue(scorer.num_items, data)
    with draft(out) as work:
        return work.seal(
            kind="report",
            stage="evaluate",
            config=config,
            inputs=inputs,
            metrics=write_report(work, scorer, data, config),
            device=device.type,
        )


def check_catalogue(num_items: int, data: Dataset) -> None:
    """Raise ``UsageError`` unless a model of ``num_items`` ranks the items of the dataset."""
    if num_items != data.num_items:
        raise UsageError(
            f"the model ranks {num_items} items, the dataset has {data.num_items}.",
            "Name the dataset that the model was trained on with --data.",
        )


def write_report(
    work: Draft, scorer: Scorer, data: Dataset, config: EvaluateConfig
) -> dict[str, Any]:
    """Evaluate a scorer and write the files of the report into its draft.

    Returns:
        The summary, for the manifest.

    Raises:
        UndecidedError: The split has no user.
        BrokenRunError, VerdictError: As :func:`rank`.
    """
    config = resolve_auto(config, data)
    temperature = best_temperature(scorer, data, config)
    targets = data.targets(config.split)
    per_user = rank(scorer, targets, data.counts, config, temperature=temperature)
    summary = summarise(per_user, config, temperature)
    write(work.path, per_user, summary)
    log.info("evaluate: n = %s, %s", f"{summary['n']:,}", summary_text(summary, data.repeats))
    return summary


def best_temperature(
    scorer: Scorer, data: Dataset, config: EvaluateConfig, task: str = "calibrate"
) -> float | None:
    """Return the temperature with the lowest cross-entropy on validation targets.

    Fitted on a seeded sample of at most :data:`slmc.evaluation.temperature.USERS` users.

    Args:
        scorer: The scorer to calibrate.
        data: The dataset.
        config: Its batch size and seed are used.
        task: Name in the progress log.

    Returns:
        None, with a warning, if there is no validation user.

    Raises:
        BrokenRunError: A score is not finite; the message names the user.
    """
    targets = data.targets("valid").sample(USERS, config.seed)
    count = len(targets.users)
    if not count:
        log.warning("%s: no validation users, so no temperature and no ce_calibrated", task)
        return None
    total = np.zeros(INVERSE.size)
    for users in _batches(targets, np.arange(count), config.batch, task):
        histories = [targets.histories[user] for user in users]
        with torch.inference_mode():
            ce = cross_entropies(scorer.blocks(histories), torch.from_numpy(targets.targets[users]))
        _check_finite(ce.isfinite().all(dim=1), targets, users, task)
        total += ce.sum(dim=0).numpy()
    return best(total / count)


def rank(
    scorer: Scorer,
    targets: Targets,
    counts: NDArray[np.int64],
    config: EvaluateConfig,
    task: str = "evaluate",
    *,
    top: int = TOP,
    temperature: float | None = None,
) -> pl.DataFrame:
    """Rank each user's target among all items.

    Users are scored in batches of similar history lengths, which saves padding, and returned in
    their original order. Memory grows with users + items, not with users x items.

    Args:
        scorer: The scorer to evaluate.
        targets: U users.
        counts: ``[V + 1]`` training interactions of each row.
        config: Batch size and protocol; for sampled negatives without ``exclude_seen: auto``
            (:func:`slmc.evaluation.results.resolve_auto`).
        task: Name in the progress log.
        top: Length of the top lists; 0 leaves them empty and saves a third of the time.
        temperature: Used by ``ce_calibrated``; see :func:`best_temperature`.

    Returns:
        Columns as :data:`slmc.evaluation.results.SCHEMA`, U rows.

    Raises:
        UndecidedError: There is no user.
        BrokenRunError: A score is not finite; the message names the user.
        VerdictError: Each user has the same score for all items.
    """
    total = len(targets.users)
    if total == 0:
        raise UndecidedError(
            f"no user has a {config.split} target, so there is nothing to evaluate.",
            "Choose a split with users; `slmc data check` shows the users of each split.",
        )
    parts, places, fewer = [], [], 0
    for users in _batches(targets, np.arange(total), config.batch, task):
        negatives = _negatives(targets, users, scorer.num_items, config)
        fewer += _count_short(negatives, config)
        ranks = _rank_batch(scorer, targets, users, negatives, top, temperature)
        _check_finite(ranks.finite, targets, users, task)
        parts.append(_table(ranks, negatives, config))
        places.append(users)
    if fewer:
        log.warning("%s: %d users have fewer unseen items than sampled negatives", task, fewer)
    ranked = pl.concat(parts)
    if scorer.num_items > 1 and ranked["constant"].all():
        raise VerdictError(
            f"{task}: anomalous: each user has the same score for all items.",
            "Check how the model was trained: it has learned nothing, or its weights were lost.",
        )
    return _with_users(ranked[np.argsort(np.concatenate(places))], targets, counts)


def _batches(
    targets: Targets, users: NDArray[np.int64], size: int, task: str
) -> Iterator[NDArray[np.int64]]:
    """Yield users in batches of similar history length; logs progress after each batch."""
    lengths = np.array([targets.histories[user].size for user in users])
    order = users[np.argsort(lengths, kind="stable")]
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        yield chosen
        done = {"task": task, "done": start + len(chosen), "total": len(order), "unit": "users"}
        log.debug("progress", extra={"progress": done})


def negatives_of(
    index: int, excluded: NDArray[np.integer[Any]], num_items: int, sampled: Sampled, seed: int
) -> NDArray[np.int64]:
    """Return the negatives of one user in the sampled protocol.

    They are drawn uniformly without replacement from the rows 1..V, except the excluded ones.
    The draw depends only on the seed and the user's index, so all models get the same negatives.

    Args:
        index: Index of the user in the split.
        excluded: The target and the seen rows, sorted, without duplicates.
        num_items: V.
        sampled: Number of negatives; all remaining rows if there are fewer.
        seed: Seed of the evaluation.
    """
    free = num_items - excluded.size
    rng = np.random.default_rng((seed, index))
    positions = np.sort(rng.choice(free, size=min(sampled.sampled, free), replace=False))
    # The position of a row among the free ones is its number minus the excluded rows below it.
    free_below = excluded - 1 - np.arange(excluded.size)
    rows: NDArray[np.int64] = positions + 1 + np.searchsorted(free_below, positions, side="right")
    return rows


def _negatives(
    targets: Targets, users: NDArray[np.int64], num_items: int, config: EvaluateConfig
) -> list[Tensor] | None:
    if not isinstance(config.ranking, Sampled):
        return None
    drawn = []
    for user in users:
        excluded = np.union1d(targets.seen[user], targets.targets[user])
        rows = negatives_of(int(user), excluded, num_items, config.ranking, config.seed)
        drawn.append(torch.from_numpy(rows))
    return drawn


def _count_short(negatives: list[Tensor] | None, config: EvaluateConfig) -> int:
    if negatives is None or not isinstance(config.ranking, Sampled):
        return 0
    return sum(len(rows) < config.ranking.sampled for rows in negatives)


def _rank_batch(
    scorer: Scorer,
    targets: Targets,
    users: NDArray[np.int64],
    negatives: list[Tensor] | None,
    top: int,
    temperature: float | None,
) -> Ranks:
    histories = [targets.histories[user] for user in users]
    with torch.inference_mode():
        return rank_targets(
            lambda: scorer.blocks(histories),
            torch.from_numpy(targets.targets[users]),
            Pairs.of([torch.from_numpy(targets.seen[user]) for user in users]),
            None if negatives is None else Pairs.of(negatives),
            num_items=scorer.num_items,
            top=top,
            temperature=temperature,
        )


def _check_finite(finite: Tensor, targets: Targets, users: NDArray[np.int64], task: str) -> None:
    broken = (~finite).nonzero()[:, 0]
    if len(broken):
        user = targets.users[users[int(broken[0])]]
        raise BrokenRunError(
            f"{task}: a score of user {user!r} is not a finite number.",
            "Check how the model was trained: training diverged, or its weights are damaged.",
        )


def _table(ranks: Ranks, negatives: list[Tensor] | None, config: EvaluateConfig) -> pl.DataFrame:
    """Return the results of a batch of users as a table."""
    nulls = [None] * len(ranks.rank)
    sampled = nulls
    if ranks.rank_sampled is not None:
        missed = ranks.rank_unseen.isinf() & excludes_seen(config)
        sampled = ranks.rank_sampled.masked_fill(missed, math.inf).tolist()
    sizes = nulls if negatives is None else [len(rows) for rows in negatives]
    columns = {
        "rank": ranks.rank.numpy(),
        "rank_unseen": ranks.rank_unseen.numpy(),
        "rank_sampled": pl.Series(sampled, dtype=pl.Float64),
        "negatives": pl.Series(sizes, dtype=pl.Int32),
        "ce": ranks.ce.numpy(),
        "ce_calibrated": pl.Series(
            nulls if ranks.ce_calibrated is None else ranks.ce_calibrated.tolist(),
            dtype=pl.Float64,
        ),
        "constant": ranks.constant.numpy(),
        "top_items": pl.Series(list(ranks.top_items.to(torch.int32).numpy())),
        "top_scores": pl.Series(list(ranks.top_scores.float().numpy())),
    }
    return pl.DataFrame(columns)


def _with_users(ranked: pl.DataFrame, targets: Targets, counts: NDArray[np.int64]) -> pl.DataFrame:
    """Add the columns of users and targets to a table in the users' order."""
    lengths = [max(h.size, s.size) for h, s in zip(targets.histories, targets.seen, strict=True)]
    target_counts = counts[targets.targets]
    return ranked.with_columns(
        pl.Series("user", targets.users, dtype=pl.String),
        pl.Series("target", targets.targets, dtype=pl.Int32),
        pl.Series("history", lengths, dtype=pl.Int32),
        pl.Series("count", target_counts, dtype=pl.Int32),
        pl.Series("tail", target_counts <= tail_limit(counts), dtype=pl.Boolean),
        pl.Series("new", target_counts == 0, dtype=pl.Boolean),
        pl.lit(None, pl.Boolean).alias("same_time")
        if targets.same_time is None
        else pl.Series("same_time", targets.same_time),
    ).select(pl.col(name).cast(dtype) for name, dtype in SCHEMA.items())
