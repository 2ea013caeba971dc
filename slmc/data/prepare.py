"""From an interaction log to a dataset: core, sample, order, split, vocabulary.

The steps, in this order:

1. Rows without an id or a time are skipped and counted (``slmc.data.readers``).
   Exact duplicates are counted, and dropped if ``repeats`` is ``drop`` (``slmc.data.repeats``).
2. k-core: users and items with fewer than ``core`` interactions are dropped, repeatedly.
3. ``users``: a seeded sample of the users in the core (sampling first would leave nothing in the
   core); items that no sampled user has taken are dropped.
4. Each user's interactions are sorted by time, ties by a seeded hash
   (:func:`slmc.data.split.tie_keys`); without time stamps they keep the order of the log.
   An item that a user takes again is kept.
5. The split cuts validation and test targets off each history (``slmc.data.split``).
6. The vocabulary: row 1 is the item with the most training interactions, and so on; items with
   equal counts are sorted by id (code points). Items that occur only as targets have the count 0.

Users are sorted by id, so the result does not depend on the order of rows with the same time.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from slmc.artefact import Artefact, draft
from slmc.data.clock import Clock, literal
from slmc.data.config import PrepareConfig
from slmc.data.dataset import Dataset
from slmc.data.item_texts import read_texts, texts_for
from slmc.data.readers import Log, read, read_titles, refuse_malformed, warn_malformed
from slmc.data.repeats import find_repeats, warn_of_repeats
from slmc.data.sources import digest, fetch, log_file_order
from slmc.data.split import by_time, id_keys, k_core, leave_one_out, tie_keys
from slmc.data.times import bounds
from slmc.errors import DataError

log = logging.getLogger("slmc.data")

ROWS_AT_ONCE = 1 << 20
"""Rows whose tie keys are computed at once, to save memory."""


@dataclass(frozen=True)
class Prepared:
    """A dataset before it is written."""

    items: pl.DataFrame
    """``row`` (Int32, from 1), ``item``, ``count`` (Int32, in the training part), ``title``."""
    users: pl.DataFrame
    """``user``, ``items`` (list of Int32 rows in time order), ``valid_from``, ``test_from``."""
    texts: pl.DataFrame | None
    """``row`` and ``text`` (null without one) of each item; None without a table of items."""
    metrics: dict[str, Any]
    """Metrics of the manifest."""


def prepare(config: PrepareConfig, inputs: dict[str, Artefact], out: Path) -> Artefact:
    """Prepare the dataset of a log; raises :class:`DataError` as the readers do."""
    read_log = fetch_log(config)
    warn_malformed(read_log)
    refuse_malformed(read_log, config.max_malformed)
    prepared = build(config, read_log)
    with draft(out) as work:  # only now: a refused log leaves no files
        (work.path / "sequences").mkdir()
        prepared.items.write_parquet(work.path / "items.parquet")
        prepared.users.write_parquet(work.path / "sequences" / "users.parquet")
        if prepared.texts is not None:
            prepared.texts.write_parquet(work.path / "texts.parquet")
        preprocessor = {"history": config.history, "unknown_ids": "skip"}
        _write_json(work.path / "preprocessor.json", preprocessor)
        _write_json(work.path / "metrics.json", prepared.metrics)
        if config.terms is not None:
            terms = config.terms.text.strip() + "\n"
            (work.path / "TERMS.txt").write_text(terms, encoding="utf-8")
        return work.seal(
            kind="dataset",
            stage="prepare",
            config=config,
            inputs=inputs,
            metrics=prepared.metrics,
        )


def fetch_log(config: PrepareConfig) -> Log:
    """Fetch and read the log, and log its terms of use.

    Raises:
        DataError: It cannot be read, or has no time stamps although the split needs them.
    """
    paths = fetch(config.source)
    if config.terms is not None:
        log.info("Terms of use of %s: %s", paths[0].name, " ".join(config.terms.text.split()))
    read_log = read(paths, config.format, config.columns, config.separator, config.header)
    if config.split.by == "time" and read_log.format == "sequences":
        raise DataError(
            f"{paths[0]} is in the sequence format, which has no time stamps to split by.",
            "Set split: {by: leave-one-out}, or name a log with a column of time stamps.",
        )
    if not read_log.timed:
        log_file_order(paths)
    return read_log


def build(config: PrepareConfig, read_log: Log) -> Prepared:
    """Build the dataset of a log in memory.

    Raises:
        DataError: The core leaves fewer than two users, or the split leaves no test target (a
            temporal split: no validation target).
    """
    frame, repeats = _without_repeats(config, read_log)
    frame, user_ids, item_ids = _coded(_core(config, frame))
    frame, user_ids = _sampled(frame, user_ids, config)
    frame = _ordered(frame, user_ids, item_ids, read_log.clock, config.seed)
    lengths = frame.group_by("user", maintain_order=True).len()["len"].cast(pl.Int64).to_numpy()
    valid_from, test_from = _split(config, read_log.clock, frame, lengths)
    starts = np.cumsum(lengths) - lengths
    place = np.arange(frame.height) - np.repeat(starts, lengths)
    frame = frame.with_columns(train=pl.Series(place < np.repeat(valid_from, lengths)))
    items, rows = _vocabulary(frame, item_ids, config)
    items, texts = _with_texts(items, config)
    sequences = (
        frame.select("user", items=pl.Series(rows[frame["item"].to_numpy()]))
        .group_by("user", maintain_order=True)
        .agg("items")
        .with_columns(
            user_ids.gather(pl.Series(frame["user"].to_numpy()[starts])).alias("user"),
            pl.Series("valid_from", valid_from, dtype=pl.Int32),
            pl.Series("test_from", test_from, dtype=pl.Int32),
        )
    )
    tied = _tied_targets(frame, starts, lengths, test_from) if read_log.timed else None
    metrics = _metrics(config, read_log, frame, items, sequences)
    if texts is not None:
        metrics["texts"] = texts.height - texts["text"].null_count()
    metrics |= {"duplicates": repeats, "test_users_tied": tied}
    metrics["valid_repeats"] = Dataset(items, sequences, config.history).repeats
    log.info(
        "%d users, %d items, %d interactions; %d test users",
        metrics["users"], metrics["items"], metrics["interactions"], metrics["test_users"],
    )  # fmt: skip
    return Prepared(items, sequences, texts, metrics)


def _without_repeats(config: PrepareConfig, read_log: Log) -> tuple[pl.DataFrame, int]:
    """Return the rows that ``config.repeats`` keeps, and the number of exact duplicates."""
    repeats = find_repeats(read_log.frame, read_log.timed, read_log.copies)
    count = int(repeats.sum())
    kept = config.repeats == "keep"
    if count:
        warn_of_repeats(repeats.len(), count, read_log.timed, read_log.copies, kept)
    return read_log.frame if kept or not count else read_log.frame.filter(~repeats), count


def _core(config: PrepareConfig, frame: pl.DataFrame) -> pl.DataFrame:
    if frame["user"].n_unique() < 2:
        users = f"only one user ({frame['user'][0]})" if frame.height else "no user"
        raise DataError(
            f"{config.source} has {users}; a recommender needs many.",
            "Check columns.user, or name a log with more users.",
        )
    user_codes, item_codes = (_dense(frame[name])[0] for name in ("user", "item"))
    kept = frame.filter(pl.Series(k_core(user_codes, item_codes, config.core)))
    left = kept["user"].n_unique()
    if left < 2:
        what = "drops all" if left == 0 else "leaves one user of the"
        raise DataError(
            f"{config.source}: the {config.core}-core {what} {frame.height} interactions by "
            f"{frame['user'].n_unique()} users.",
            "Lower core (1 keeps all), or name a larger log.",
        )
    return kept


def _dense(ids: pl.Series) -> tuple[NDArray[np.int64], pl.Series]:
    """Return the code of each id, ``[N]``, and the different ids, sorted by code points."""
    different = ids.unique()
    texts = different.cast(pl.String)
    order = texts.arg_sort()
    physical = different.to_physical().gather(order).to_numpy()
    places = np.zeros(int(physical.max()) + 1 if physical.size else 0, dtype=np.int64)
    places[physical] = np.arange(physical.size, dtype=np.int64)
    return places[ids.to_physical().to_numpy()], texts.gather(order)


def _coded(frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series, pl.Series]:
    """Return the log with integer codes for ids, and the sorted ids of users and items."""
    users, user_ids = _dense(frame["user"])
    items, item_ids = _dense(frame["item"])
    codes = [pl.Series("user", users, dtype=pl.UInt32), pl.Series("item", items, dtype=pl.UInt32)]
    return frame.select(*codes, "time", "order"), user_ids, item_ids


def _sampled(
    frame: pl.DataFrame, user_ids: pl.Series, config: PrepareConfig
) -> tuple[pl.DataFrame, pl.Series]:
    """Keep the interactions of the ``config.users`` users with the smallest seeded keys."""
    if config.users is None or config.users >= user_ids.len():
        return frame, user_ids
    order = np.argsort(id_keys(user_ids, config.seed), kind="stable")
    chosen = np.zeros(user_ids.len(), dtype=np.bool_)
    chosen[order[: config.users]] = True
    return frame.filter(pl.Series(chosen[frame["user"].to_numpy()])), user_ids


def _ordered(
    frame: pl.DataFrame, user_ids: pl.Series, item_ids: pl.Series, clock: Clock | None, seed: int
) -> pl.DataFrame:
    """Sort by user and time."""
    if clock is None:
        return frame.sort("user", "order")
    user_keys, item_keys = id_keys(user_ids, seed), id_keys(item_ids, seed)
    tie = np.empty(frame.height, dtype=np.uint64)
    for start in range(0, frame.height, ROWS_AT_ONCE):
        part = frame[start : start + ROWS_AT_ONCE]
        users, items = (part[name].to_numpy() for name in ("user", "item"))
        numbers = clock.numbers(part["time"]).to_numpy()
        tie[start : start + part.height] = tie_keys(user_keys[users], item_keys[items], numbers)
    frame = frame.drop("order").with_columns(tie=pl.Series(tie))
    return frame.sort("user", "time", "tie").drop("tie")


def _split(
    config: PrepareConfig, clock: Clock | None, frame: pl.DataFrame, lengths: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return valid_from and test_from; raises :class:`DataError` if nobody has a test target."""
    split = config.split
    if split.by == "leave-one-out":
        valid_from, test_from = leave_one_out(lengths)
        what = "no user has two interactions, so leave-one-out has no test target"
        remedy = "Name a log with several interactions per user, or raise core to 2."
    else:
        clock = _dated(config, clock)
        starts = [literal(clock.at(day)) for day in (split.valid, split.test)]
        before = [frame.select(pl.col("time") < start).to_series().to_numpy() for start in starts]
        valid_from, test_from = by_time(before[0], before[1], lengths)
        span = " to ".join(clock.text(time) for time in bounds(frame["time"]))
        what = f"no user has interactions both before and from {split.test} on"
        remedy = f"Set split.test to a day within the log, which covers {span}."
    if not ((test_from < lengths) & (test_from > 0)).any():
        raise DataError(f"{config.source}: {what}.", remedy)
    if not ((valid_from < test_from) & (valid_from > 0)).any():
        if split.by == "time":
            raise DataError(
                f"{config.source}: no user has interactions both before {split.valid} and from "
                f"then until {split.test}, so there are no validation targets.",
                f"Set split.valid and split.test to other days of the log, which covers {span}.",
            )
        log.warning("No user has three interactions: there are no validation targets")
    return valid_from, test_from


def _dated(config: PrepareConfig, clock: Clock | None) -> Clock:
    """Return the clock for a split by days; raises :class:`DataError` if it has no dates."""
    if clock is None or clock.unit is None:
        raise DataError(
            f"{config.source}: the times in {config.columns.time} are numbers without a unit, "
            "which cannot be split by date.",
            "Set columns.time to a column of dates, columns.time_unit to the unit of the numbers, "
            "or split: {by: leave-one-out}.",
        )
    return clock


def _vocabulary(
    frame: pl.DataFrame, item_ids: pl.Series, config: PrepareConfig
) -> tuple[pl.DataFrame, NDArray[np.int32]]:
    """Return the items, and the row of each of ``item_ids`` (0 for a dropped item)."""
    counts = (
        frame.group_by("item")
        .agg(pl.col("train").sum().cast(pl.Int32).alias("count"))
        .sort(["count", "item"], descending=[True, False])
        .with_row_index("row", 1)
    )
    rows = np.zeros(item_ids.len(), dtype=np.int32)
    rows[counts["item"].to_numpy()] = counts["row"].to_numpy()
    names = item_ids.gather(counts["item"]).alias("item")
    items = counts.select(pl.col("row").cast(pl.Int32), names, "count")
    if config.titles is None:
        return items.with_columns(pl.lit(None, pl.String).alias("title")), rows
    titles = read_titles(fetch(config.titles.source), config.titles)
    items = items.join(titles, on="item", how="left", maintain_order="left")
    if items["title"].null_count() == items.height:
        log.warning("No item of the log has a title in %s", config.titles.source)
    return items, rows


def _with_texts(
    items: pl.DataFrame, config: PrepareConfig
) -> tuple[pl.DataFrame, pl.DataFrame | None]:
    """Return the items, with the titles of their table if there is no other source, and texts."""
    if config.items is None:
        return items, None
    source = config.items.source
    known = texts_for(items["item"], read_texts(fetch(source), config.items), source)
    if config.titles is None:
        items = items.with_columns(known["title"])
    return items, items.select("row", text=known["text"])


def _metrics(
    config: PrepareConfig, read_log: Log, frame: pl.DataFrame, items: pl.DataFrame,
    sequences: pl.DataFrame,
) -> dict[str, Any]:  # fmt: skip
    """Return the metrics of the manifest."""
    length, valid, test = pl.col("items").list.len(), pl.col("valid_from"), pl.col("test_from")
    counted = sequences.select(
        valid=((valid > 0) & (valid < test)).sum(), test=((test > 0) & (test < length)).sum()
    )
    faults = read_log.malformed["fault"].value_counts().sort("fault")
    fingerprint = {"source": digest(fetch(config.source))}
    if config.titles is not None:
        fingerprint["titles"] = digest(fetch(config.titles.source))
    if config.items is not None:
        fingerprint["items"] = digest(fetch(config.items.source))
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
    } | _time_metrics(frame, read_log.clock)


def _time_metrics(frame: pl.DataFrame, clock: Clock | None) -> dict[str, Any]:
    """Return unit and span of the times, and the share of interactions with tied times."""
    if clock is None:
        return {"time_unit": None, "time_span": None, "tied_share": None}
    moments = frame.select("user", "time")  # sorted: equal times are adjacent
    same = moments.select(
        ((pl.col("user") == pl.col("user").shift()) & (pl.col("time") == pl.col("time").shift()))
        .fill_null(False)
        .alias("before")
    ).with_columns(after=pl.col("before").shift(-1, fill_value=False))
    tied = int(same.select((pl.col("before") | pl.col("after")).sum()).item())
    if tied:
        log.info(
            "%d of %d interactions (%.0f %%) share a time stamp with another of the same user; "
            "they are sorted by a seeded hash", tied, frame.height, 100 * tied / frame.height,
        )  # fmt: skip
    span = [clock.text(time) for time in bounds(frame["time"])]
    return {"time_unit": clock.unit, "time_span": span, "tied_share": tied / frame.height}


def _tied_targets(
    frame: pl.DataFrame, starts: NDArray[np.int64], lengths: NDArray[np.int64],
    test_from: NDArray[np.int64],
) -> int:  # fmt: skip
    """Count test users whose target has the time stamp of the interaction before it."""
    tested = (test_from > 0) & (test_from < lengths)
    target = pl.Series((starts + test_from)[tested])
    times = frame["time"]
    return int((times.gather(target) == times.gather(target - 1)).sum())


def _write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
