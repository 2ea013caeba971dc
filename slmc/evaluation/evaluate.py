"""Rank the whole catalogue for the users of a split, by any scorer, and measure it."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from slmc.artefact import Artefact, Draft, draft
from slmc.config import Sampled
from slmc.data.batches import pad_left
from slmc.data.dataset import Dataset, Targets
from slmc.errors import BrokenRunError, UndecidedError, UsageError, VerdictError
from slmc.evaluation.config import EvaluateConfig
from slmc.evaluation.measured import SCHEMA, TOP, excludes_seen, settled, tail_limit, told_of, write
from slmc.evaluation.measured import protocol as protocol
from slmc.evaluation.measured import summarise as summarise
from slmc.evaluation.measured import values as values
from slmc.evaluation.ranking import Pairs, Ranks, rank_targets
from slmc.evaluation.temperature import INVERSE, USERS, best, cross_entropies

CHUNK = 65_536
"""Items that are scored at once: 34 MB of scores for 128 users."""

log = logging.getLogger("slmc.evaluate")

Histories = Sequence[NDArray[np.int32]]


class Scorer(Protocol):
    """Anything that scores a catalogue for histories."""

    num_items: int
    """V: the rows are 1..V."""

    def blocks(self, histories: Histories) -> Iterator[tuple[int, Tensor]]:
        """First row and scores ``[n, width]`` of each block, the rows 1..V in order.

        It is called twice with the same histories when the catalogue takes several blocks,
        and must give the same values.
        """
        ...


class VectorScorer:
    """Scores as products of a user vector and item vectors."""

    def __init__(
        self, user_vectors: Callable[[Tensor], Tensor], items: Tensor, *, chunk: int = CHUNK
    ) -> None:
        """Keep the function and the table.

        Args:
            user_vectors: ``[n, L]`` int64 rows, padded with 0 on the left, to ``[n, d]``.
            items: ``[V + 1, d]`` on the device that computes; row 0 is not scored.
            chunk: Items of a block.
        """
        self.user_vectors, self.items, self.chunk = user_vectors, items, chunk
        self.num_items = len(items) - 1
        self._last: tuple[Histories, Tensor] | None = None

    @classmethod
    def of(cls, model: Any) -> Self:
        """Of a recommender (``user_vectors`` and ``item_vectors``) in evaluation mode."""
        return cls(model.user_vectors, model.item_vectors().detach())

    @torch.inference_mode()
    def vectors(self, histories: Histories) -> Tensor:
        """User vectors ``[n, d]``; those of the last call are kept for its second pass."""
        if self._last is None or self._last[0] is not histories:
            padded = torch.from_numpy(pad_left(histories)).to(self.items.device)
            self._last = histories, self.user_vectors(padded)
        return self._last[1]

    def blocks(self, histories: Histories) -> Iterator[tuple[int, Tensor]]:
        """See :class:`Scorer`."""
        users = self.vectors(histories)
        for first in range(1, self.num_items + 1, self.chunk):
            with torch.inference_mode():
                scores = users @ self.items[first : first + self.chunk].T
            yield first, scores


def evaluate(config: EvaluateConfig, inputs: dict[str, Artefact], out: Path) -> Artefact:
    """Measure the ranking of a model on a dataset's split: a report.

    Raises:
        UsageError: The model ranks another number of items than the dataset has.
        UndecidedError: The split has no user.
    """
    # Model and device come in here alone, so that engines are measured without transformers.
    from slmc.model.device import choose
    from slmc.model.loading import load_model

    data = Dataset.open(inputs["data"])
    device = choose("auto", "fp32").device
    scorer = VectorScorer.of(load_model(inputs["model"], device))
    check_catalogue(scorer, data)
    with draft(out) as work:
        return work.seal(
            kind="report",
            stage="evaluate",
            config=config,
            inputs=inputs,
            metrics=write_report(work, scorer, data, config),
            device=device.type,
        )


def check_catalogue(scorer: Scorer, data: Dataset) -> None:
    """Raise ``UsageError`` unless the scorer ranks the items of the dataset."""
    if scorer.num_items != data.num_items:
        raise UsageError(
            f"the model ranks {scorer.num_items} items, the dataset has {data.num_items}.",
            "Name the dataset that the model was trained on with --data.",
        )


def write_report(
    work: Draft, scorer: Scorer, data: Dataset, config: EvaluateConfig
) -> dict[str, Any]:
    """Rank the users of a split and write the report's files into its draft.

    Returns:
        The summary, for the manifest.

    Raises:
        UndecidedError: The split has no user.
        BrokenRunError, VerdictError: As :func:`rank`.
    """
    asked = settled(config, data)
    found = best_temperature(scorer, data, asked)
    per_user = rank(scorer, data.targets(asked.split), data.counts, asked, temperature=found)
    summary = summarise(per_user, asked, found)
    write(work.path, per_user, summary)
    log.info("evaluate: n = %s, %s", f"{summary['n']:,}", told_of(summary, data.repeats))
    return summary


def best_temperature(
    scorer: Scorer, data: Dataset, config: EvaluateConfig, task: str = "calibrate"
) -> float | None:
    """The temperature at which validation targets have the lowest cross-entropy.

    It is looked for on a seeded sample of :data:`slmc.evaluation.temperature.USERS` users at most.

    Args:
        scorer: What is measured.
        data: The dataset.
        config: Batch size and seed.
        task: Name of the progress.

    Returns:
        None if there is no validation user, which is logged.

    Raises:
        BrokenRunError: A score is not a finite number; the user is named.
    """
    targets = data.targets("valid").sample(USERS, config.seed)
    count = len(targets.users)
    if not count:
        log.warning("%s: no validation user, hence no temperature and no ce_calibrated", task)
        return None
    total = np.zeros(INVERSE.size)
    for users in _batches(targets, np.arange(count), config.batch, task):
        histories = [targets.histories[user] for user in users]
        with torch.inference_mode():
            found = cross_entropies(
                scorer.blocks(histories), torch.from_numpy(targets.targets[users])
            )
        _check_finite(found.isfinite().all(dim=1), targets, users, task)
        total += found.sum(dim=0).numpy()
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

    Users are scored in batches of like history lengths, so that little is padded, and returned
    in their own order. Memory grows with users and with items, not with their product.

    Args:
        scorer: What is measured.
        targets: U users.
        counts: ``[V + 1]`` training interactions of each row.
        config: Batch size and protocol; settled (:func:`slmc.evaluation.measured.settled`) if
        negatives
            are asked for.
        task: Name of the progress.
        top: Length of the top lists; 0 leaves them empty and saves a third of the time.
        temperature: That of ``ce_calibrated``; see :func:`best_temperature`.

    Returns:
        Columns as :data:`slmc.evaluation.measured.SCHEMA`, U rows.

    Raises:
        UndecidedError: There is no user.
        BrokenRunError: A score is not a finite number; the user is named.
        VerdictError: Every user's scores are the same for all items.
    """
    total = len(targets.users)
    if total == 0:
        raise UndecidedError(
            f"no user has a {config.split} target, so there is nothing to measure.",
            "Choose a split with users in it; `slmc data check` shows how many each has.",
        )
    parts, places, fewer = [], [], 0
    for chosen in _batches(targets, np.arange(total), config.batch, task):
        negatives = _negatives(targets, chosen, scorer.num_items, config)
        fewer += _lacking(negatives, config)
        ranks = _rank_batch(scorer, targets, chosen, negatives, top, temperature)
        _check_finite(ranks.finite, targets, chosen, task)
        parts.append(_table(ranks, negatives, config))
        places.append(chosen)
    if fewer:
        log.warning("%s: %d users have fewer items left than negatives asked for", task, fewer)
    measured = pl.concat(parts)
    if scorer.num_items > 1 and measured["constant"].all():
        raise VerdictError(
            f"{task}: anomalous: the scores of every user are the same for all items.",
            "Look at how the model was made: it has learned nothing, or its weights are lost.",
        )
    return _described(measured[np.argsort(np.concatenate(places))], targets, counts)


def _batches(
    targets: Targets, users: NDArray[np.int64], size: int, task: str
) -> Iterator[NDArray[np.int64]]:
    """Some users, in batches of like history lengths; progress is logged after each."""
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
    """Rows that the target of one user is ranked among in the sampled protocol.

    Drawn uniformly without replacement from the rows 1..V but the excluded ones, by the seed
    and the user's index alone, hence the same for every model.

    Args:
        index: Place of the user in its split.
        excluded: Sorted rows that are seen, or the target; each once.
        num_items: V.
        sampled: How many; all that there are if there are fewer.
        seed: Of the evaluation.
    """
    free = num_items - excluded.size
    rng = np.random.default_rng((seed, index))
    places = np.sort(rng.choice(free, size=min(sampled.sampled, free), replace=False))
    # The place of a row among the free ones is its number less the excluded rows below it.
    free_below = excluded - 1 - np.arange(excluded.size)
    rows: NDArray[np.int64] = places + 1 + np.searchsorted(free_below, places, side="right")
    return rows


def _negatives(
    targets: Targets, chosen: NDArray[np.int64], num_items: int, config: EvaluateConfig
) -> list[Tensor] | None:
    if not isinstance(config.ranking, Sampled):
        return None
    drawn = []
    for user in chosen:
        excluded = np.union1d(targets.seen[user], targets.targets[user])
        rows = negatives_of(int(user), excluded, num_items, config.ranking, config.seed)
        drawn.append(torch.from_numpy(rows))
    return drawn


def _lacking(negatives: list[Tensor] | None, config: EvaluateConfig) -> int:
    if negatives is None or not isinstance(config.ranking, Sampled):
        return 0
    return sum(len(rows) < config.ranking.sampled for rows in negatives)


def _rank_batch(
    scorer: Scorer,
    targets: Targets,
    chosen: NDArray[np.int64],
    negatives: list[Tensor] | None,
    top: int,
    temperature: float | None,
) -> Ranks:
    histories = [targets.histories[user] for user in chosen]
    with torch.inference_mode():
        return rank_targets(
            lambda: scorer.blocks(histories),
            torch.from_numpy(targets.targets[chosen]),
            Pairs.of([torch.from_numpy(targets.seen[user]) for user in chosen]),
            None if negatives is None else Pairs.of(negatives),
            num_items=scorer.num_items,
            top=top,
            temperature=temperature,
        )


def _check_finite(finite: Tensor, targets: Targets, chosen: NDArray[np.int64], task: str) -> None:
    broken = (~finite).nonzero()[:, 0]
    if len(broken):
        user = targets.users[chosen[int(broken[0])]]
        raise BrokenRunError(
            f"{task}: a score of user {user!r} is not a finite number.",
            "Look at how the model was made: its training diverged, or its weights are damaged.",
        )


def _table(ranks: Ranks, negatives: list[Tensor] | None, config: EvaluateConfig) -> pl.DataFrame:
    """What was measured of the users of a batch."""
    nothing = [None] * len(ranks.rank)
    sampled = nothing
    if ranks.rank_sampled is not None:
        missed = ranks.rank_unseen.isinf() & excludes_seen(config)
        sampled = ranks.rank_sampled.masked_fill(missed, math.inf).tolist()
    sizes = nothing if negatives is None else [len(rows) for rows in negatives]
    columns = {
        "rank": ranks.rank.numpy(),
        "rank_unseen": ranks.rank_unseen.numpy(),
        "rank_sampled": pl.Series(sampled, dtype=pl.Float64),
        "negatives": pl.Series(sizes, dtype=pl.Int32),
        "ce": ranks.ce.numpy(),
        "ce_calibrated": pl.Series(
            nothing if ranks.ce_calibrated is None else ranks.ce_calibrated.tolist(),
            dtype=pl.Float64,
        ),
        "constant": ranks.constant.numpy(),
        "top_items": pl.Series(list(ranks.top_items.to(torch.int32).numpy())),
        "top_scores": pl.Series(list(ranks.top_scores.float().numpy())),
    }
    return pl.DataFrame(columns)


def _described(measured: pl.DataFrame, targets: Targets, counts: NDArray[np.int64]) -> pl.DataFrame:
    """The table in the users' order, with what is known of users and targets."""
    lengths = [max(h.size, s.size) for h, s in zip(targets.histories, targets.seen, strict=True)]
    of_target = counts[targets.targets]
    return measured.with_columns(
        pl.Series("user", targets.users, dtype=pl.String),
        pl.Series("target", targets.targets, dtype=pl.Int32),
        pl.Series("history", lengths, dtype=pl.Int32),
        pl.Series("count", of_target, dtype=pl.Int32),
        pl.Series("tail", of_target <= tail_limit(counts), dtype=pl.Boolean),
    ).select(pl.col(name).cast(dtype) for name, dtype in SCHEMA.items())
