"""Inspect a log before it is prepared, and a dataset after it was prepared."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from slmc.artefact import Artefact
from slmc.data.config import PrepareConfig
from slmc.data.dataset import RARE_REPEATS, Dataset
from slmc.data.prepare import build, fetch_log
from slmc.data.readers import refuse_malformed
from slmc.data.ties import SIGNIFICANT
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


def tie_lines(metrics: Mapping[str, Any], ties: Literal["shuffle", "keep"]) -> list[str]:
    """Return lines about ties, and whether the log lists them in the order of item ids.

    Args:
        metrics: The metrics of a dataset.
        ties: The setting of the dataset.
    """
    order = metrics["order_of_ids"]
    follows = order["pairs"] and order["p_value"] < SIGNIFICANT
    if metrics["tied_before"] is None:
        if not follows:
            return ["without times, it is not known which interactions are ties"]
        return [
            "without times, it is not known which interactions are ties; " + _order_line(order)
            + ": ties may stand in the order of ids, or ids may grow with time. A log with times "
            "can shuffle its ties (data.ties)"
        ]  # fmt: skip
    unit = metrics["time_resolution"] or "time"
    tested = metrics["test_users_tied"]
    lines = [
        f"{100 * metrics['tied_before']:.1f} % of the interactions, and {tested:,} of "
        f"{metrics['test_users']:,} test targets ({100 * tested / metrics['test_users']:.1f} %), "
        f"have the same {unit} as the user's interaction before"
    ]
    if order["pairs"]:
        follows_ids = "follows the ids" if follows else "is random, as far as ids show"
        done = "shuffled by the seed (ties: shuffle)" if ties == "shuffle" else "kept (ties: keep)"
        lines.append(
            f"in the log, {_order_line(order, 'of the same time ')}: their order {follows_ids}; "
            f"it is {done}"
        )
    return lines


def _order_line(order: Mapping[str, Any], which: str = "") -> str:
    """Return how many neighbours ascend, and how likely that is by chance."""
    p = order["p_value"]
    chance = "p < 1e-300" if p < 1e-300 else f"p = {p:.2g}"
    return (
        f"{100 * order['ascending']:.1f} % of neighbours {which}have ascending item ids, 50 % by "
        f"chance ({order['pairs']:,} pairs, {chance})"
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
