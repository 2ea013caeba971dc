"""What an evaluation gives: a row of a table for each user, and the summary with its protocol.

The table has the columns of :data:`SCHEMA`. No torch here: reports and verdicts read it.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from slmc.config import CROSS_ENTROPIES, Protocol, Sampled
from slmc.data.dataset import Dataset
from slmc.errors import UndecidedError, VerdictError
from slmc.evaluation.config import EvaluateConfig
from slmc.evaluation.gates import Segment
from slmc.evaluation.metrics import of_ranks

TOP = 20
"""Length of the top lists that are kept for each user."""

SCHEMA: dict[str, Any] = {
    "user": pl.String,  # original id
    "target": pl.Int32,  # row of the item that was taken
    "rank": pl.Float64,  # expected rank among all items, seen ones kept
    "rank_unseen": pl.Float64,  # the same, the user's seen items left out; inf for a repeat
    "rank_sampled": pl.Float64,  # the same among the negatives; null in full ranking
    "negatives": pl.Int32,  # how many there were; null in full ranking
    "ce": pl.Float64,  # cross-entropy of the target over the catalogue, nats
    "ce_calibrated": pl.Float64,  # the same at the best temperature; null if none was looked for
    "history": pl.Int32,  # earlier interactions; beyond the model's window, distinct items
    "count": pl.Int32,  # training interactions of the target
    "tail": pl.Boolean,  # whether the target is an item of the tail (see tail_limit)
    "top_items": pl.List(pl.Int32),  # rows of the best items, best first
    "top_scores": pl.List(pl.Float32),
}


@dataclass(frozen=True)
class Measured:
    """A model or an engine, and what its evaluation gave."""

    name: str
    per_user: pl.DataFrame
    """Columns as :data:`SCHEMA`."""
    protocol: dict[str, Any]
    """As :func:`protocol` gives it."""
    size_mb: float


Ranked = TypeVar("Ranked", bound=Protocol)


def settled(config: Ranked, data: Dataset) -> Ranked:
    """The config with ``exclude_seen: auto`` replaced by what it means on this dataset."""
    return config.model_copy(update={"exclude_seen": data.excludes_seen(config.exclude_seen)})


def excludes_seen(config: Protocol) -> bool:
    """Whether seen items are left out; raises ``ValueError`` for one that is not settled."""
    if config.exclude_seen == "auto":
        raise ValueError("exclude_seen: auto is settled by a dataset first: see settled()")
    return config.exclude_seen


def protocol(config: EvaluateConfig) -> dict[str, Any]:
    """What two measurements must share to be compared, of a settled config; JSON-able."""
    sampled = isinstance(config.ranking, Sampled)
    shared = {
        "ranking": config.model_dump(mode="json")["ranking"],
        "exclude_seen": excludes_seen(config),
        "split": config.split,
    }
    return shared | ({"seed": config.seed} if sampled else {})


def told(protocol: Mapping[str, Any]) -> str:
    """A protocol in words, such as ``full ranking, seen items kept, test``."""
    ranking = protocol["ranking"]
    kind = "full ranking" if ranking == "full" else f"{ranking['sampled']} sampled negatives"
    if ranking != "full":
        return f"{kind}, {protocol['split']}"
    return f"{kind}, seen items {'left out' if protocol['exclude_seen'] else 'kept'}, " + str(
        protocol["split"]
    )


def values(per_user: pl.DataFrame, metric: str, protocol: Mapping[str, Any]) -> NDArray[np.float64]:
    """The metric of each user, ``[U]``.

    Args:
        per_user: Table of an evaluation.
        metric: hr@K, ndcg@K, ndcg, mrr (from the rank that the protocol asks for), ce or
            ce_calibrated (always over the whole catalogue).
        protocol: As :func:`protocol` gives it.

    Raises:
        UndecidedError: The table does not have that number.
    """
    column = _column(metric, protocol)
    found = per_user[column]
    if found.null_count():
        raise UndecidedError(
            f"{metric} was not measured: the evaluation gives no {column}.",
            "Evaluate again with the ranking that the metric needs.",
        )
    numbers = found.to_numpy().astype(np.float64)
    return numbers if metric in CROSS_ENTROPIES else of_ranks(metric, numbers)


def identical(
    candidate: pl.DataFrame, baseline: pl.DataFrame, metric: str, protocol: Mapping[str, Any]
) -> bool:
    """Whether a metric's own numbers are equal for every user: ranks, beyond its cutoff too."""
    column = _column(metric, protocol)
    return candidate[column].equals(baseline[column])


def told_of(summary: Mapping[str, Any], valid_repeats: float | None = None) -> str:
    """The protocol of a summary in words, with the shares of targets that are repeats.

    Args:
        summary: Body of ``metrics.json``.
        valid_repeats: That share of the validation targets, by which ``exclude_seen: auto`` is
            settled; None where it is not known.
    """
    share = 100 * summary["repeats"]["share"]
    missed = ", each a miss" if summary["protocol"]["exclude_seen"] else ""
    valid = (
        ""
        if valid_repeats is None
        else f", and {100 * valid_repeats:.3g} % of the validation targets"
    )
    return f"{told(summary['protocol'])} (repeats are {share:.3g} % of the targets{missed}{valid})"


def summarise(
    per_user: pl.DataFrame, config: EvaluateConfig, temperature: float | None = None
) -> dict[str, Any]:
    """The body of ``metrics.json``: protocol, n, and each metric's mean with standard error.

    ``repeats`` counts the users whose target is one of their seen items: a miss where those
    are left out. A metric that was not measured is null, and so is the standard error of a
    single user.

    Args:
        per_user: Table of an evaluation.
        config: Settled.
        temperature: That of ``ce_calibrated``; None if there was no validation user to find it.
    """
    shared = protocol(config)
    if isinstance(config.ranking, Sampled):
        fewer = int((per_user["negatives"] < config.ranking.sampled).sum())
        shared = shared | {"users_with_fewer_negatives": fewer}
    metrics = {}
    for name in config.metrics:
        missing = name in CROSS_ENTROPIES and per_user[name].null_count() > 0
        metrics[name] = (
            {"value": None, "se": None} if missing else _mean(values(per_user, name, shared))
        )
    n, again = per_user.height, int(per_user["rank_unseen"].is_infinite().sum())
    repeats = {"users": again, "share": again / n}
    return {
        "protocol": shared,
        "n": n,
        "repeats": repeats,
        "temperature": temperature,
        "metrics": metrics,
    }


def write(folder: Path, per_user: pl.DataFrame, summary: dict[str, Any]) -> None:
    """Write ``per_user.parquet`` and, with its summary, ``metrics.json``."""
    per_user.write_parquet(folder / "per_user.parquet")
    text = json.dumps(summary, indent=2, sort_keys=True, allow_nan=False)
    (folder / "metrics.json").write_text(text + "\n")


def tail_limit(counts: NDArray[np.int64]) -> int:
    """Largest training count of an item of the tail.

    The tail is the least popular 80 % of the catalogue: the smallest set of items, closed under
    equal counts, that holds at least 80 % of the rows 1..V.

    Args:
        counts: ``[V + 1]`` training interactions of each row.
    """
    ordered = np.sort(counts[1:])
    return int(ordered[math.ceil(0.8 * ordered.size) - 1])


def check_same_users(candidate: Measured, baseline: Measured) -> None:
    """Raise ``VerdictError`` unless both ranked the same targets of the same users alike."""
    pair = f"{candidate.name} and {baseline.name}"
    if candidate.protocol != baseline.protocol:
        raise VerdictError(
            f"{pair} were measured differently: {told(candidate.protocol)}, against "
            f"{told(baseline.protocol)}.",
            "Evaluate both with the same settings.",
        )
    columns = ["user", "target"]
    if not candidate.per_user.select(columns).equals(baseline.per_user.select(columns)):
        raise VerdictError(
            f"{pair} were measured on different users or targets, so they cannot be paired.",
            "Evaluate both on the same dataset and split.",
        )


def segment_mask(per_user: pl.DataFrame, segment: Segment) -> NDArray[np.bool_]:
    """Which users belong to a segment, ``[U]``; see :attr:`slmc.evaluation.gates.Gate.segment`.

    Quarters are of all users that were ranked, closed under equal lengths: a user as long as
    the one at the quartile belongs to it.
    """
    history = per_user["history"].to_numpy()
    if segment == "cold-users":
        return np.asarray(history <= np.quantile(history, 0.25, method="lower"))
    if segment == "long-histories":
        return np.asarray(history >= np.quantile(history, 0.75, method="higher"))
    if segment == "tail-items":
        return per_user["tail"].to_numpy()
    return np.ones(per_user.height, dtype=bool)


def _column(metric: str, protocol: Mapping[str, Any]) -> str:
    return metric if metric in CROSS_ENTROPIES else _rank_column(protocol)


def _rank_column(protocol: Mapping[str, Any]) -> str:
    if protocol["ranking"] != "full":
        return "rank_sampled"
    return "rank_unseen" if protocol["exclude_seen"] else "rank"


def _mean(numbers: NDArray[np.float64]) -> dict[str, float | None]:
    n = numbers.size
    se = float(numbers.std(ddof=1) / math.sqrt(n)) if n > 1 else None
    return {"value": float(numbers.mean()), "se": se}
