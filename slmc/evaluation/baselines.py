"""The cheap opponents that a recommender has to beat: popularity, Markov-1 and SASRec.

Both counting models are probabilities, so their scores are logarithms and their cross-entropy
means what a model's does. They are float64: no two counts become one.
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
from slmc.evaluation.evaluate import (
    CHUNK,
    Histories,
    Scorer,
    VectorScorer,
    best_temperature,
    check_catalogue,
    rank,
)
from slmc.evaluation.measured import protocol, settled, summarise, told, told_of, values
from slmc.evaluation.multiple import compare_all

log = logging.getLogger("slmc.baselines")

NAMES = ("popularity", "markov", "sasrec")
SPLITS: tuple[Literal["valid", "test"], ...] = ("valid", "test")


class PopularityScorer:
    """Scores each item by the logarithm of its share of the training interactions.

    One is added to every count (Laplace), so that an item that was never taken can be ranked
    and has a finite cross-entropy.
    """

    def __init__(self, counts: NDArray[np.int64], *, chunk: int = CHUNK) -> None:
        """Keep the shares.

        Args:
            counts: ``[V + 1]`` training interactions of each row; index 0 is ignored.
            chunk: Items of a block.
        """
        self.num_items, self.chunk = counts.size - 1, chunk
        self.share = torch.from_numpy(popularity(counts))

    def blocks(self, histories: Histories) -> Iterator[tuple[int, Tensor]]:
        """See :class:`slmc.evaluation.evaluate.Scorer`; the same scores for every history."""
        for first in range(1, self.num_items + 1, self.chunk):
            scores = self.share[first : first + self.chunk].log()
            yield first, scores.expand(len(histories), -1)


class MarkovScorer:
    """First-order Markov chain: how often an item came next after the last one.

    ``score(i) = log(count(last -> i) + share(i))``, the share being :func:`popularity`, below 1:
    popularity breaks ties, and the chain backs off to it after an item that nothing followed.
    These are the log-probabilities of a bigram model with a Dirichlet prior of weight 1, up to
    a constant of the user (MacKay & Bauman Peto 1995).
    """

    def __init__(
        self,
        sequences: Sequence[NDArray[np.int32]],
        counts: NDArray[np.int64],
        *,
        chunk: int = CHUNK,
    ) -> None:
        """Count the transitions of the training sequences; memory grows with these alone.

        Args:
            sequences: Each user's training rows, oldest first.
            counts: ``[V + 1]`` training interactions of each row.
            chunk: Items of a block.
        """
        self.num_items, self.chunk = counts.size - 1, chunk
        self.share = torch.from_numpy(popularity(counts))
        self.keys, self.times = self._transitions(sequences)

    def blocks(self, histories: Histories) -> Iterator[tuple[int, Tensor]]:
        """Scores, block by block; an empty history is ranked by popularity."""
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
        """Sorted keys ``last * (V + 1) + next`` and how often each came."""
        flat = np.concatenate([np.zeros(0, np.int32), *sequences]).astype(np.int64)
        pairs = flat[:-1] * (self.num_items + 1) + flat[1:]
        ends = np.cumsum([rows.size for rows in sequences], dtype=np.int64)[:-1]
        return np.unique(np.delete(pairs, ends - 1), return_counts=True)

    def _next(self, last: NDArray[np.int64], first: int, width: int) -> tuple[Tensor, ...]:
        """Users, columns and counts of the transitions from ``last`` into a block."""
        key = last * (self.num_items + 1) + first
        low, high = np.searchsorted(self.keys, key), np.searchsorted(self.keys, key + width)
        sizes = high - low
        users = np.repeat(np.arange(last.size), sizes)
        place = np.arange(sizes.sum()) + np.repeat(low - np.cumsum(sizes) + sizes, sizes)
        columns = self.keys[place] - key[users]
        times = self.times[place].astype(np.float64)
        return torch.from_numpy(users), torch.from_numpy(columns), torch.from_numpy(times)


def popularity(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of each row in the training interactions, one added to each: ``[V + 1]``, sum 1."""
    share = counts.astype(np.float64) + 1
    share[0] = 0
    total: NDArray[np.float64] = share / share.sum()
    return total


def baselines(config: BaselinesConfig, inputs: dict[str, Artefact], out: Path) -> Artefact:
    """Measure the baselines on validation and test users: a report.

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
    check_catalogue(scorers["sasrec"], data)
    with draft(out) as work:
        summary: dict[str, dict[str, Any]] = {}
        for name, scorer in scorers.items():
            (work.path / name).mkdir()
            summary[name] = {}
            asked = settled(EvaluateConfig(**dict(config)), data)
            best = best_temperature(scorer, data, asked, f"baselines {name} calibrate")
            for split in SPLITS:
                asked = asked.model_copy(update={"split": split})
                task = f"baselines {name} {split}"
                users = data.targets(split)
                per_user = rank(scorer, users, data.counts, asked, task, temperature=best)
                per_user.write_parquet(work.path / name / f"{split}.parquet")
                summary[name][split] = summarise(per_user, asked, best)
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
    """Rank the users of a split by Markov-1: what a test set can see, before anything is taught.

    Args:
        data: The dataset.
        config: Settled by it.
    """
    scorer = MarkovScorer(data.train_sequences(), data.counts)
    return rank(scorer, data.targets(config.split), data.counts, config, "markov")


@dataclass(frozen=True)
class Comparison:
    """A candidate against a baseline, paired over users. Changes are absolute, positive better."""

    metric: str
    outcome: Literal["better", "not worse", "worse"]
    """better and worse are significant; not worse is neither."""
    value: float
    baseline_value: float
    change: float
    low: float
    high: float
    n: int
    confidence: float
    """One-sided, of the bounds: after the correction for several baselines."""
    protocol: str

    @property
    def sentence(self) -> str:
        """Values, interval, n and protocol in a line."""
        return (
            f"{self.metric} {self.value:.4f} against {self.baseline_value:.4f}, "
            f"change {self.change:+.4f} [{self.low:+.4f}, {self.high:+.4f}] (n = {self.n:,}, "
            f"{self.protocol}, one-sided {100 * self.confidence:.3g} % bounds)"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, the sentence among it."""
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
        candidate: Of the model that should not be worse.
        baselines: Name of an opponent -> its table.
        metric: hr@K, ndcg@K, ndcg, mrr, ce (a rise is a loss).
        config: Protocol of all, settled.
        confidence: One-sided, of either significance, for all opponents together.
        seed: Of the bootstrap.

    Returns:
        Name of an opponent -> how the candidate compares.

    Raises:
        VerdictError: The tables are of different users or targets.
    """
    columns = ["user", "target"]
    if not all(candidate.select(columns).equals(b.select(columns)) for b in baselines.values()):
        raise VerdictError(
            "the model and its baseline were measured on different users or targets.",
            "Evaluate both on the same dataset and split.",
        )
    asked = protocol(config)
    ours = values(candidate, metric, asked)
    theirs = {name: values(table, metric, asked) for name, table in baselines.items()}
    pairs = [(ours, numbers) for numbers in theirs.values()]
    decided = compare_all(pairs, metric, seed=seed, confidence=confidence)
    return {
        name: Comparison(
            metric=metric,
            outcome=one.outcome,
            value=float(ours.mean()),
            baseline_value=float(theirs[name].mean()),
            change=one.bounds.change,
            low=one.bounds.low,
            high=one.bounds.high,
            n=ours.size,
            confidence=one.confidence,
            protocol=told(asked),
        )
        for name, one in zip(theirs, decided, strict=True)
    }


def _line(summary: dict[str, Any], valid_repeats: float) -> str:
    numbers = (
        f"{k} {v['value']:.4f}" for k, v in summary["metrics"].items() if v["value"] is not None
    )
    return f"{', '.join(numbers)} (n = {summary['n']:,}, {told_of(summary, valid_repeats)})"
