"""The baselines that a recommender has to beat: popularity, Markov-1 and SASRec.

Popularity and Markov-1 score by log-probabilities, so their cross-entropy is comparable with
that of a model. They use float64, in which different counts remain different.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from slmc.artefact import Artefact, draft
from slmc.data.dataset import Dataset
from slmc.errors import VerdictError
from slmc.evaluation.config import BaselinesConfig, EvaluateConfig
from slmc.evaluation.evaluate import best_temperature, check_catalogue, rank
from slmc.evaluation.multiple import compare_all
from slmc.evaluation.results import (
    protocol,
    protocol_text,
    resolve_auto,
    summarise,
    summary_text,
    values,
)
from slmc.evaluation.scorers import CHUNK, Histories, Scorer, VectorScorer

log = logging.getLogger("slmc.baselines")

NAMES = ("popularity", "markov", "sasrec")
SPLITS: tuple[Literal["valid", "test"], ...] = ("valid", "test")


class PopularityScorer:
    """Scores each item by the logarithm of its share of the training interactions.

    One is added to every count (Laplace smoothing), so that items without interactions have a
    finite cross-entropy.
    """

    def __init__(self, counts: NDArray[np.int64], *, chunk: int = CHUNK) -> None:
        """Compute the shares.

        Args:
            counts: ``[V + 1]`` training interactions of each row; index 0 is ignored.
            chunk: Items per block.
        """
        self.num_items, self.chunk = counts.size - 1, chunk
        self.share = torch.from_numpy(popularity(counts))

    def blocks(self, histories: Histories) -> Iterator[tuple[int, Tensor]]:
        """See :class:`slmc.evaluation.scorers.Scorer`; the same scores for every history."""
        for first in range(1, self.num_items + 1, self.chunk):
            scores = self.share[first : first + self.chunk].log()
            yield first, scores.expand(len(histories), -1)


class MarkovScorer:
    """First-order Markov chain: counts how often an item followed the last one.

    ``score(i) = log(count(last -> i) + share(i))``. The share is :func:`popularity`, below 1: it
    breaks ties, and ranks the items after one that has no successor in training.
    These are the log-probabilities of a bigram model with a Dirichlet prior of weight 1, up to
    a constant per user (MacKay & Bauman Peto 1995).
    """

    def __init__(
        self,
        sequences: Sequence[NDArray[np.int32]],
        counts: NDArray[np.int64],
        *,
        chunk: int = CHUNK,
    ) -> None:
        """Count the transitions of the training sequences; memory grows only with these.

        Args:
            sequences: Each user's training rows, oldest first.
            counts: ``[V + 1]`` training interactions of each row.
            chunk: Items per block.
        """
        self.num_items, self.chunk = counts.size - 1, chunk
        self.share = torch.from_numpy(popularity(counts))
        self.keys, self.times = self._transitions(sequences)

    def blocks(self, histories: Histories) -> Iterator[tuple[int, Tensor]]:
        """Yield scores block by block; an empty history is ranked by popularity."""
        last = np.array([rows[-1] if rows.size else 0 for rows in histories], dtype=np.int64)
        for first in range(1, self.num_items + 1, self.chunk):
            share = self.share[first : first + self.chunk]
            scores = share.expand(len(histories), -1).clone()
            users, columns, times = self._next(last, first, len(share))
            scores[users, columns] += times
            yield first, scores.log_()

    def _transitions(
        self, sequences: Sequence[NDArray[np.int32]]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the sorted keys ``last * (V + 1) + next`` and the count of each."""
        flat = np.concatenate([np.zeros(0, np.int32), *sequences]).astype(np.int64)
        pairs = flat[:-1] * (self.num_items + 1) + flat[1:]
        ends = np.cumsum([rows.size for rows in sequences], dtype=np.int64)[:-1]
        return np.unique(np.delete(pairs, ends - 1), return_counts=True)

    def _next(self, last: NDArray[np.int64], first: int, width: int) -> tuple[Tensor, ...]:
        """Return users, columns and counts of the transitions from ``last`` into a block."""
        key = last * (self.num_items + 1) + first
        low, high = np.searchsorted(self.keys, key), np.searchsorted(self.keys, key + width)
        sizes = high - low
        users = np.repeat(np.arange(last.size), sizes)
        place = np.arange(sizes.sum()) + np.repeat(low - np.cumsum(sizes) + sizes, sizes)
        columns = self.keys[place] - key[users]
        times = self.times[place].astype(np.float64)
        return torch.from_numpy(users), torch.from_numpy(columns), torch.from_numpy(times)


def popularity(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each row's share of the training interactions, one added: ``[V + 1]``, sum 1."""
    share = counts.astype(np.float64) + 1
    share[0] = 0
    total: NDArray[np.float64] = share / share.sum()
    return total


def baselines(config: BaselinesConfig, inputs: dict[str, Artefact], out: Path) -> Artefact:
    """Evaluate the baselines on validation and test users; returns a report artefact.

    Raises:
        UndecidedError: A split has no user.
    """
    from slmc.model.device import choose
    from slmc.model.loading import load_model

    data = Dataset.open(inputs["data"])
    device = choose("auto", "fp32").device
    scorers: dict[str, Scorer] = {
        "popularity": PopularityScorer(data.counts),
        "markov": MarkovScorer(data.train_sequences(), data.counts),
        "sasrec": VectorScorer.of(load_model(inputs["sasrec"], device)),
    }
    check_catalogue(scorers["sasrec"].num_items, data)
    with draft(out) as work:
        summary: dict[str, dict[str, Any]] = {}
        for name, scorer in scorers.items():
            (work.path / name).mkdir()
            summary[name] = {}
            evaluation = resolve_auto(EvaluateConfig(**dict(config)), data)
            best = best_temperature(scorer, data, evaluation, f"baselines {name} calibrate")
            for split in SPLITS:
                evaluation = evaluation.model_copy(update={"split": split})
                task = f"baselines {name} {split}"
                users = data.targets(split)
                per_user = rank(scorer, users, data.counts, evaluation, task, temperature=best)
                per_user.write_parquet(work.path / name / f"{split}.parquet")
                summary[name][split] = summarise(per_user, evaluation, best)
            log.info("%s: %s", name, _line(summary[name]["test"], data.repeats))
        text = json.dumps(summary, indent=2, sort_keys=True, allow_nan=False)
        (work.path / "metrics.json").write_text(text + "\n")
        return work.seal(
            kind="report",
            stage="baselines",
            config=config,
            inputs=inputs,
            metrics=summary,
            device=device.type,
        )


def measure_markov(data: Dataset, config: EvaluateConfig) -> pl.DataFrame:
    """Rank the users of a split by Markov-1, to estimate what the test set can detect.

    Args:
        data: The dataset.
        config: Without ``exclude_seen: auto``.
    """
    scorer = MarkovScorer(data.train_sequences(), data.counts)
    return rank(scorer, data.targets(config.split), data.counts, config, "markov")


@dataclass(frozen=True)
class Comparison:
    """A candidate against a baseline, paired over users; a positive change is an improvement."""

    metric: str
    outcome: Literal["better", "not worse", "worse"]
    """better and worse are significant; not worse means no significant difference."""
    value: float
    baseline_value: float
    change: float
    low: float
    high: float
    n: int
    confidence: float
    """One-sided confidence of the bounds, after the correction for several baselines."""
    protocol: str

    @property
    def sentence(self) -> str:
        """Values, interval, n and protocol as one line."""
        return (
            f"{self.metric} {self.value:.4f} against {self.baseline_value:.4f}, "
            f"change {self.change:+.4f} [{self.low:+.4f}, {self.high:+.4f}] (n = {self.n:,}, "
            f"{self.protocol}, one-sided {100 * self.confidence:.3g} % bounds)"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict, including the sentence."""
        return asdict(self) | {"sentence": self.sentence}


def compare(
    candidate: pl.DataFrame,
    baselines: Mapping[str, pl.DataFrame],
    metric: str,
    *,
    config: EvaluateConfig,
    confidence: float,
    seed: int,
) -> dict[str, Comparison]:
    """Compare tables of :func:`slmc.evaluation.evaluate.rank` on the same users, paired.

    Args:
        candidate: Table of the candidate.
        baselines: Name of a baseline -> its table.
        metric: hr@K, ndcg@K, ndcg, mrr or ce (lower is better).
        config: Protocol of all, without ``exclude_seen: auto``.
        confidence: One-sided, of each claim, for all baselines together.
        seed: Of the bootstrap.

    Returns:
        Name of a baseline -> the comparison with it.

    Raises:
        VerdictError: The tables are of different users or targets.
    """
    columns = ["user", "target"]
    if not all(candidate.select(columns).equals(b.select(columns)) for b in baselines.values()):
        raise VerdictError(
            "the model and its baseline were evaluated on different users or targets.",
            "Evaluate both on the same dataset and split.",
        )
    ranked_by = protocol(config)
    ours = values(candidate, metric, ranked_by)
    theirs = {name: values(table, metric, ranked_by) for name, table in baselines.items()}
    pairs = [(ours, numbers) for numbers in theirs.values()]
    decisions = compare_all(pairs, metric, seed=seed, confidence=confidence)
    return {
        name: Comparison(
            metric=metric,
            outcome=decision.outcome,
            value=float(ours.mean()),
            baseline_value=float(theirs[name].mean()),
            change=decision.bounds.change,
            low=decision.bounds.low,
            high=decision.bounds.high,
            n=ours.size,
            confidence=decision.confidence,
            protocol=protocol_text(ranked_by),
        )
        for name, decision in zip(theirs, decisions, strict=True)
    }


def _line(summary: dict[str, Any], valid_repeats: float) -> str:
    numbers = (
        f"{k} {v['value']:.4f}" for k, v in summary["metrics"].items() if v["value"] is not None
    )
    return f"{', '.join(numbers)} (n = {summary['n']:,}, {summary_text(summary, valid_repeats)})"
