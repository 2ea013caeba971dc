"""From an interaction log to a dataset: core, sample, order, split, vocabulary.

What is done, in this order:

1. Rows without an id or a time are left out and counted (``slmc.data.readers``).
2. k-core: users and items with fewer than ``core`` interactions go, until none is left.
3. ``users``: a seeded sample of the users that the core kept (sampling first would leave the
   core nothing); items that no sampled user has taken leave the vocabulary.
4. Each user's interactions are ordered by time, ties by a seeded hash
   (:func:`slmc.data.split.tie_keys`); without time stamps by their place in the log.
   Repeated interactions are kept.
5. The split sets the last parts of each history apart (``slmc.data.split``).
6. The vocabulary: row 1 is the item with the most training interactions, and so on; equal
   counts by id (code points). Items that only targets hold are in it, with a count of 0.

Users are sorted by id, so the order of the log (beyond that of time) changes nothing.
"""

import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from slmc.artefact import Artefact, draft
from slmc.data.config import PrepareConfig
from slmc.data.dataset import Dataset
from slmc.data.readers import Log, read, read_titles, refuse_malformed, warn_malformed
from slmc.data.sources import digest, fetch, say_order
from slmc.data.split import by_time, id_keys, k_core, leave_one_out, tie_keys, unit_s
from slmc.errors import DataError

log = logging.getLogger("slmc.data")


@dataclass(frozen=True)
class Prepared:
    """A dataset before it is written."""

    items: pl.DataFrame
    """``row`` (Int32, from 1), ``item``, ``count`` (Int32, in the training part), ``title``."""
    users: pl.DataFrame
    """``user``, ``items`` (list of Int32 rows in time order), ``valid_from``, ``test_from``."""
    metrics: dict[str, Any]
    """Counts, as in the manifest."""


def prepare(config: PrepareConfig, inputs: dict[str, Artefact], out: Path) -> Artefact:
    """Make the dataset of a log; raises :class:`DataError` as the readers do."""
    read_log = fetch_log(config)
    warn_malformed(read_log)
    refuse_malformed(read_log, config.max_malformed)
    prepared = build(config, read_log)
    with draft(out) as work:  # only now: a log that is refused leaves nothing behind
        (work.path / "sequences").mkdir()
        prepared.items.write_parquet(work.path / "items.parquet")
        prepared.users.write_parquet(work.path / "sequences" / "users.parquet")
        preprocessor = {"history": config.history, "unknown_ids": "skip"}
        _write_json(work.path / "preprocessor.json", preprocessor)
        _write_json(work.path / "metrics.json", prepared.metrics)
        if config.terms is not None:
            (work.path / "TERMS.txt").write_text(config.terms.strip() + "\n", encoding="utf-8")
        return work.seal(
            kind="dataset",
            stage="prepare",
            config=config,
            inputs=inputs,
            metrics=prepared.metrics,
        )


def fetch_log(config: PrepareConfig) -> Log:
    """Fetch and read the log, showing the terms of its use.

    Raises:
        DataError: It cannot be read, or has no time stamps and the split needs them.
    """
    paths = fetch(config.source)
    if config.terms is not None:
        log.info("Terms of use of %s: %s", paths[0].name, " ".join(config.terms.split()))
    if config.columns.time is None:
        say_order(paths)
    read_log = read(paths, config.format, config.columns, config.separator, config.header)
    if config.split.by == "time" and read_log.format == "sequences":
        raise DataError(
            f"{paths[0]} is in the sequence format, which has no time stamps to split by.",
            "Set split: {by: leave-one-out}, or name a log with a column of time stamps.",
        )
    return read_log


def build(config: PrepareConfig, read_log: Log) -> Prepared:
    """The dataset of a log that has been read, in memory.

    Raises:
        DataError: The core leaves fewer than two users, or the split no test target.
    """
    frame = _core(config, read_log)
    frame = _ordered(_sampled(frame, config), config.seed)
    users = frame.group_by("user", maintain_order=True).len("length")
    lengths = users["length"].cast(pl.Int64).to_numpy()
    valid_from, test_from = _cuts(config, frame, lengths)
    starts = np.cumsum(lengths) - lengths
    place = np.arange(frame.height) - np.repeat(starts, lengths)
    frame = frame.with_columns(train=pl.Series(place < np.repeat(valid_from, lengths)))
    items = _vocabulary(frame, config)
    sequences = (
        frame.select("user", "item")
        .join(
            items.select(pl.col("item").cast(frame.schema["item"]), "row"),
            on="item",
            how="left",
            maintain_order="left",
        )
        .group_by("user", maintain_order=True)
        .agg(pl.col("row").alias("items"))
        .with_columns(
            pl.col("user").cast(pl.String),
            pl.Series("valid_from", valid_from, dtype=pl.Int32),
            pl.Series("test_from", test_from, dtype=pl.Int32),
        )
    )
    tied = _tied_targets(frame, starts, lengths, test_from) if read_log.timed else None
    metrics = _metrics(config, read_log, frame, items, sequences) | {"test_users_tied": tied}
    metrics["valid_repeats"] = Dataset(items, sequences, config.history).repeats
    log.info(
        "%d users, %d items, %d interactions; %d users are tested",
        metrics["users"], metrics["items"], metrics["interactions"], metrics["test_users"],
    )  # fmt: skip
    return Prepared(items, sequences, metrics)


def _core(config: PrepareConfig, read_log: Log) -> pl.DataFrame:
    frame = read_log.frame
    if frame["user"].n_unique() < 2:
        one = f"one user ({frame['user'][0]})" if frame.height else "no user"
        raise DataError(
            f"{config.source} holds {one}; a recommender needs many.",
            "Check columns.user, or name a log of more users.",
        )
    users, items = (
        frame[name].cast(pl.Categorical).to_physical().rank("dense").cast(pl.Int64).to_numpy() - 1
        for name in ("user", "item")
    )
    kept = frame.filter(pl.Series(k_core(users, items, config.core)))
    left = kept["user"].n_unique()
    if left < 2:
        what = "drops everything" if left == 0 else "leaves one user"
        raise DataError(
            f"{config.source}: the {config.core}-core {what}, of {frame.height} interactions "
            f"by {frame['user'].n_unique()} users.",
            "Lower core (1 keeps all), or name a larger log.",
        )
    return kept


def _sampled(frame: pl.DataFrame, config: PrepareConfig) -> pl.DataFrame:
    """The interactions of the ``config.users`` users whose seeded keys are smallest."""
    users = frame["user"].unique().sort()
    if config.users is None or config.users >= users.len():
        return frame
    order = np.argsort(id_keys(users, config.seed), kind="stable")
    return frame.join(pl.DataFrame({"user": users[order[: config.users]]}), on="user", how="semi")


def _ordered(frame: pl.DataFrame, seed: int) -> pl.DataFrame:
    """User after user, each in time order."""
    if frame["time"].null_count():
        return frame.sort("user", "order")
    keys = {}
    for name in ("user", "item"):
        ids = frame[name].unique(maintain_order=True)
        table = pl.DataFrame({name: ids, "key": id_keys(ids, seed)})
        keys[name] = frame.select(name).join(table, on=name, how="left", maintain_order="left")[
            "key"
        ]
    tie = tie_keys(keys["user"].to_numpy(), keys["item"].to_numpy(), frame["time"].to_numpy())
    return frame.with_columns(tie=pl.Series(tie)).sort("user", "time", "tie").drop("tie")


def _cuts(
    config: PrepareConfig, frame: pl.DataFrame, lengths: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each user's history is cut; raises :class:`DataError` if nobody is tested."""
    if config.split.by == "leave-one-out":
        cuts = leave_one_out(lengths)
        what = "no user has two interactions, so leave-one-out tests nobody"
        mend = "Name a log in which users come back, or raise core to 2."
    else:
        times = frame["time"].to_numpy()
        seconds = times * unit_s(times)
        cuts = by_time(seconds, lengths, config.split.valid, config.split.test)
        first, last = (_day(moment) for moment in (seconds.min(), seconds.max()))
        what = f"no user has interactions both before and from {config.split.test} on"
        mend = f"Set split.test to a day within the log, which goes from {first} to {last}."
    if not ((cuts[1] < lengths) & (cuts[1] > 0)).any():
        raise DataError(f"{config.source}: {what}.", mend)
    return cuts


def _vocabulary(frame: pl.DataFrame, config: PrepareConfig) -> pl.DataFrame:
    items = (
        frame.group_by("item")
        .agg(pl.col("train").sum().cast(pl.Int32).alias("count"))
        .with_columns(pl.col("item").cast(pl.String))
        .sort(["count", "item"], descending=[True, False])
        .with_row_index("row", 1)
        .select(pl.col("row").cast(pl.Int32), "item", "count")
    )
    if config.titles is None:
        return items.with_columns(pl.lit(None, pl.String).alias("title"))
    titles = read_titles(fetch(config.titles.source), config.titles)
    items = items.join(titles, on="item", how="left", maintain_order="left")
    if items["title"].null_count() == items.height:
        log.warning("No item of the log has a title in %s", config.titles.source)
    return items


def _metrics(
    config: PrepareConfig, read_log: Log, frame: pl.DataFrame, items: pl.DataFrame,
    sequences: pl.DataFrame,
) -> dict[str, Any]:  # fmt: skip
    """What the manifest tells of a dataset."""
    length, valid, test = pl.col("items").list.len(), pl.col("valid_from"), pl.col("test_from")
    counted = sequences.select(
        valid=((valid > 0) & (valid < test)).sum(), test=((test > 0) & (test < length)).sum()
    )
    faults = read_log.malformed["fault"].value_counts().sort("fault")
    fingerprint = {"source": digest(fetch(config.source))}
    if config.titles is not None:
        fingerprint["titles"] = digest(fetch(config.titles.source))
    return {
        "users": sequences.height,
        "items": items.height,
        "interactions": frame.height,
        "train_interactions": int(items["count"].sum()),
        "valid_users": counted["valid"].item(),
        "test_users": counted["test"].item(),
        "titles": items.height - items["title"].null_count(),
        "rows": read_log.rows,
        "malformed": {"rows": read_log.malformed.height, **dict(faults.iter_rows())},
        "fingerprint": fingerprint,
    } | _time_metrics(frame, read_log.timed)


def _time_metrics(frame: pl.DataFrame, timed: bool) -> dict[str, Any]:
    """Time span, repeats, and how many interactions share a time stamp with another."""
    if not timed:
        return {"time_span": None, "duplicates": 0, "tied_share": None}
    times = frame["time"].to_numpy()
    seconds = times * unit_s(times)
    repeats = frame.height - frame.select("user", "item", "time").n_unique()
    tied = int(frame.select(pl.struct("user", "time").is_duplicated()).sum().item())
    if tied:
        log.info(
            "%d of %d interactions (%.0f %%) share a time stamp with another of the same user; "
            "a seeded hash orders them", tied, frame.height, 100 * tied / frame.height,
        )  # fmt: skip
    span = [_day(seconds.min()), _day(seconds.max())]
    return {"time_span": span, "duplicates": repeats, "tied_share": tied / frame.height}


def _tied_targets(
    frame: pl.DataFrame, starts: NDArray[np.int64], lengths: NDArray[np.int64],
    test_from: NDArray[np.int64],
) -> int:  # fmt: skip
    """Tested users whose target has the time stamp of the interaction before it."""
    tested = (test_from > 0) & (test_from < lengths)
    target = (starts + test_from)[tested]
    times = frame["time"].to_numpy()
    return int((times[target] == times[target - 1]).sum())


def _day(seconds: float) -> str:
    """The day (UTC) of a time stamp; the number itself where it is no plausible date."""
    if not 1e8 <= seconds < 1e11:
        return f"{seconds:g}"
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


def _write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
