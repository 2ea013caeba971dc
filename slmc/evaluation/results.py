"""The result of an evaluation: a table with one row per user, and a summary with the protocol.

The table has the columns of :data:`SCHEMA`. No torch here: reports and verdicts import this.
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
from slmc.evaluation.gates import COLD, Segment
from slmc.evaluation.metrics import rank_metric

TOP = 20
"""Length of each user's top list."""

SCHEMA: dict[str, Any] = {
    "user": pl.String,  # original id
    "target": pl.Int32,  # row of the held-out item
    "rank": pl.Float64,  # expected rank among all items, seen ones kept
    "rank_unseen": pl.Float64,  # the same without the user's seen items; inf for a repeat
    "rank_sampled": pl.Float64,  # the same among sampled negatives; null in full ranking
    "negatives": pl.Int32,  # number of negatives; null in full ranking
    "ce": pl.Float64,  # cross-entropy of the target over the catalogue, nats
    "ce_calibrated": pl.Float64,  # the same at the best temperature; null without one
    "history": pl.Int32,  # earlier interactions; beyond the model's window, distinct items
    "count": pl.Int32,  # training interactions of the target
    "tail": pl.Boolean,  # whether the target is a tail item (see tail_limit)
    "new": pl.Boolean,  # whether the target has no training interactions
    "same_time": pl.Boolean,  # whether it has the time of the item before it; null if not known
    "top_items": pl.List(pl.Int32),  # rows of the best items, best first
    "top_scores": pl.List(pl.Float32),
}


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of one model or engine."""

    name: str
    per_user: pl.DataFrame
    """Columns as :data:`SCHEMA`."""
    protocol: dict[str, Any]
    """As returned by :func:`protocol`."""
    size_mb: float


Ranked = TypeVar("Ranked", bound=Protocol)


def resolve_auto(config: Ranked, data: Dataset) -> Ranked:
    """Return the config with ``exclude_seen: auto`` replaced by true or false for this dataset."""
    return config.model_copy(update={"exclude_seen": data.excludes_seen(config.exclude_seen)})


def excludes_seen(config: Protocol) -> bool:
    """Return whether seen items are left out; raises ``ValueError`` for ``auto``."""
    if config.exclude_seen == "auto":
        raise ValueError("exclude_seen: auto depends on the dataset: call resolve_auto() first")
    return config.exclude_seen


def protocol(config: EvaluateConfig) -> dict[str, Any]:
    """Return what two evaluations must share to be comparable; JSON-able."""
    sampled = isinstance(config.ranking, Sampled)
    shared = {
        "ranking": config.model_dump(mode="json")["ranking"],
        "exclude_seen": excludes_seen(config),
        "split": config.split,
    }
    return shared | ({"seed": config.seed} if sampled else {})


def protocol_text(protocol: Mapping[str, Any]) -> str:
    """Return a protocol as text, such as ``full ranking, seen items kept, test``."""
    ranking = protocol["ranking"]
    kind = "full ranking" if ranking == "full" else f"{ranking['sampled']} sampled negatives"
    if ranking != "full":
        return f"{kind}, {protocol['split']}"
    return f"{kind}, seen items {'left out' if protocol['exclude_seen'] else 'kept'}, " + str(
        protocol["split"]
    )


def values(per_user: pl.DataFrame, metric: str, protocol: Mapping[str, Any]) -> NDArray[np.float64]:
    """Return the metric of each user, ``[U]``.

    Args:
        per_user: Table of an evaluation.
        metric: hr@K, ndcg@K, ndcg, mrr (of the rank under the protocol), ce or ce_calibrated
            (always over the whole catalogue).
        protocol: As returned by :func:`protocol`.

    Raises:
        UndecidedError: The table does not hold this metric.
    """
    column = _column(metric, protocol)
    series = per_user[column]
    if series.null_count():
        raise UndecidedError(
            f"{metric} is missing: the evaluation has no {column}.",
            "Evaluate again with the ranking protocol that the metric needs.",
        )
    numbers = series.to_numpy().astype(np.float64)
    return numbers if metric in CROSS_ENTROPIES else rank_metric(metric, numbers)


def identical(
    candidate: pl.DataFrame, baseline: pl.DataFrame, metric: str, protocol: Mapping[str, Any]
) -> bool:
    """Return whether all users have equal ranks (or cross-entropies)."""
    column = _column(metric, protocol)
    return candidate[column].equals(baseline[column])


def summary_text(summary: Mapping[str, Any], valid_repeats: float | None = None) -> str:
    """Return the protocol of a summary as text, with the share of targets that are repeats.

    Args:
        summary: Body of ``metrics.json``.
        valid_repeats: The same share of the validation targets, which decides
            ``exclude_seen: auto``; None if unknown.
    """
    share = 100 * summary["repeats"]["share"]
    missed = ", each a miss" if summary["protocol"]["exclude_seen"] else ""
    valid = (
        ""
        if valid_repeats is None
        else f", and {100 * valid_repeats:.3g} % of the validation targets"
    )
    text = protocol_text(summary["protocol"])
    return f"{text} (repeats are {share:.3g} % of the targets{missed}{valid})"


def summarise(
    per_user: pl.DataFrame, config: EvaluateConfig, temperature: float | None = None
) -> dict[str, Any]:
    """Return the body of ``metrics.json``: protocol, n, mean and standard error of each metric.

    ``repeats`` counts the users whose target is one of their seen items: a miss if those are
    left out. A missing metric is null, and so is the standard error of a single user.

    Args:
        per_user: Table of an evaluation.
        config: Without ``exclude_seen: auto``.
        temperature: Used by ``ce_calibrated``; None if there was no validation user.
    """
    ranked_by = protocol(config)
    if isinstance(config.ranking, Sampled):
        fewer = int((per_user["negatives"] < config.ranking.sampled).sum())
        ranked_by = ranked_by | {"users_with_fewer_negatives": fewer}
    metrics = {}
    for name in config.metrics:
        missing = name in CROSS_ENTROPIES and per_user[name].null_count() > 0
        metrics[name] = (
            {"value": None, "se": None} if missing else _mean(values(per_user, name, ranked_by))
        )
    n, repeated = per_user.height, int(per_user["rank_unseen"].is_infinite().sum())
    repeats = {"users": repeated, "share": repeated / n}
    return {
        "protocol": ranked_by,
        "n": n,
        "repeats": repeats,
        "temperature": temperature,
        "metrics": metrics,
    }


def write(folder: Path, per_user: pl.DataFrame, summary: dict[str, Any]) -> None:
    """Write ``per_user.parquet`` and ``metrics.json``."""
    per_user.write_parquet(folder / "per_user.parquet")
    text = json.dumps(summary, indent=2, sort_keys=True, allow_nan=False)
    (folder / "metrics.json").write_text(text + "\n")


def tail_limit(counts: NDArray[np.int64]) -> int:
    """Return the largest training count of a tail item.

    The tail is the least popular 80 % of the catalogue: all items up to a count, chosen as small
    as possible such that they are at least 80 % of the rows 1..V.

    Args:
        counts: ``[V + 1]`` training interactions of each row.
    """
    ordered = np.sort(counts[1:])
    return int(ordered[math.ceil(0.8 * ordered.size) - 1])


def check_same_users(candidate: Evaluation, baseline: Evaluation) -> None:
    """Raise ``VerdictError`` unless both have the same users, targets and protocol."""
    pair = f"{candidate.name} and {baseline.name}"
    if candidate.protocol != baseline.protocol:
        raise VerdictError(
            f"{pair} were evaluated under different protocols: "
            f"{protocol_text(candidate.protocol)}, and {protocol_text(baseline.protocol)}.",
            "Evaluate both with the same settings.",
        )
    columns = ["user", "target"]
    if not candidate.per_user.select(columns).equals(baseline.per_user.select(columns)):
        raise VerdictError(
            f"{pair} were evaluated on different users or targets, so they cannot be paired.",
            "Evaluate both on the same dataset and split.",
        )


def segment_mask(per_user: pl.DataFrame, segment: Segment) -> NDArray[np.bool_]:
    """Return the mask ``[U]`` of a segment; see :attr:`slmc.evaluation.gates.Gate.segment`.

    A quarter refers to all ranked users. Users whose history is as long as that of the user at
    the quartile belong to it.
    """
    if segment == "cold-users":
        history = per_user["history"].to_numpy()
        return np.asarray(history <= np.quantile(history, 0.25, method="lower"))
    if segment == "long-histories":
        history = per_user["history"].to_numpy()
        return np.asarray(history >= np.quantile(history, 0.75, method="higher"))
    if segment == "tail-items":
        return per_user["tail"].to_numpy()
    if segment == "cold-items":
        return np.asarray(per_user["count"].to_numpy() <= COLD)
    if segment == "new-items":
        return per_user["new"].to_numpy()
    if segment in ("same-time", "later"):
        same = per_user["same_time"] == (segment == "same-time")
        return same.fill_null(False).to_numpy()
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
