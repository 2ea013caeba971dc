"""Inspect a log before it is prepared, and a dataset after it was prepared."""

from dataclasses import dataclass
from typing import Any

import polars as pl

from slmc.artefact import Artefact
from slmc.data.config import PrepareConfig
from slmc.data.dataset import RARE_REPEATS, Dataset
from slmc.data.prepare import build, fetch_log
from slmc.data.readers import refuse_malformed
from slmc.errors import DataError

QUANTILES = {"min": 0.0, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}


@dataclass(frozen=True)
class CheckResult:
    """The dataset that ``prepare`` would make of a log. Nothing is written."""

    metrics: dict[str, Any]
    """The metrics of the dataset's manifest, and those of the log: ``log_users``, ``log_items``,
    ``history_lengths``, ``item_counts``."""
    malformed: pl.DataFrame
    """Every malformed row: ``file``, ``line``, ``fault``, ``reason``."""
    problem: DataError | None
    """The error of ``prepare`` if the log can be read but has too many malformed rows."""
    dataset: Dataset
    """The dataset in memory, from which callers compute what its test set can detect."""


def check(config: PrepareConfig) -> CheckResult:
    """Read and prepare a log without writing; raises :class:`DataError` if it cannot be read."""
    read_log = fetch_log(config)
    problem = None
    try:
        refuse_malformed(read_log, config.max_malformed)
    except DataError as error:
        problem = error
    prepared = build(config, read_log)
    dataset = Dataset(prepared.items, prepared.users, config.history)
    of_log = {f"log_{role}s": ids.used for role, ids in read_log.ids.items()}
    return CheckResult(
        prepared.metrics | of_log | _shape(dataset), read_log.malformed, problem, dataset
    )


def describe(artefact: Artefact) -> dict[str, Any]:
    """Return the metrics, the split and the quantiles of a dataset artefact.

    Raises:
        ArtefactError: It is not a dataset.
    """
    dataset = Dataset.open(artefact)
    settings = artefact.manifest.config
    return (
        artefact.manifest.metrics
        | {"valid_repeats": dataset.repeats}
        | {key: settings[key] for key in ("source", "split", "core", "history", "seed")}
        | _shape(dataset)
    )


def repeats_line(share: float) -> str:
    """Return a line about the share of repeats, and what ``exclude_seen: auto`` does."""
    done = "excluded" if share < RARE_REPEATS else "kept"
    return (
        f"{100 * share:.3g} % of validation targets are repeats: seen items are {done} "
        "(exclude_seen: auto)"
    )


def _shape(dataset: Dataset) -> dict[str, dict[str, float]]:
    """Return quantiles of interactions per user, and of training interactions per item."""
    lengths, counts = dataset.sequences["items"].list.len(), dataset.items["count"]
    return {"history_lengths": _quantiles(lengths), "item_counts": _quantiles(counts)}


def _quantiles(values: pl.Series) -> dict[str, float]:
    return {
        name: float(values.quantile(q, interpolation="nearest") or 0)
        for name, q in QUANTILES.items()
    }
