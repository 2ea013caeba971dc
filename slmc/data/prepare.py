"""From an interaction log to a dataset: core, sample, order, split, vocabulary.

What the steps amount to:

1. Rows without an id or a time are skipped and counted (``slmc.data.readers``).
   Exact duplicates are counted, and dropped if ``repeats`` is ``drop`` (``slmc.data.repeats``).
2. k-core: users and items with fewer than ``core`` interactions are dropped, repeatedly.
3. ``users``: a seeded sample of the users in the core (sampling first would leave nothing in the
   core); items that no sampled user has taken are dropped.
4. Each user's interactions are sorted by time, ties by a seeded hash
   (:func:`slmc.data.split.tie_keys`) or, with ``ties: keep``, as in the log; without time stamps
   they keep the order of the log. An item that a user takes again is kept.
5. The split cuts validation and test targets off each history (``slmc.data.split``).
6. The vocabulary: row 1 is the item with the most training interactions, and so on; items with
   equal counts are sorted by id (code points). Items that occur only as targets have the count 0.

Users are sorted by id, so the result does not depend on the order of rows with the same time.

So that a log may be larger than memory, rows are sorted first, in buckets of users
(``slmc.data.sorting``), and the core is found by passes over the sorted rows.
``slmc.data.histories`` then splits bucket after bucket.
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
from slmc.data import sorting
from slmc.data.calendar import DAY
from slmc.data.clock import Clock
from slmc.data.config import PrepareConfig
from slmc.data.dataset import Dataset
from slmc.data.histories import Bucket, Mask, Splitter
from slmc.data.item_texts import read_texts, texts_for
from slmc.data.readers import Log, read, read_titles, refuse_malformed, warn_malformed
from slmc.data.sources import digest, fetch, log_file_order
from slmc.data.split import id_keys
from slmc.data.ties import Ascents
from slmc.errors import DataError

log = logging.getLogger("slmc.data")
LIST, SHOWN = r"^\S+(?:[\s,;|]+\S+){2}", 40
"""Three ids or more in one text, and the characters of such a text that a message shows."""


@dataclass(frozen=True)
class Prepared:
    """A dataset before it is written."""

    items: pl.DataFrame
    """``row`` (Int32, from 1), ``item``, ``count`` (Int32, in the training part), ``title``."""
    users: pl.DataFrame
    """``user``, ``items`` (list of Int32 rows in time order), ``valid_from``, ``test_from``, and
    ``valid_tied``, ``test_tied``: whether the target has the time of the item before it (null
    without times, and for users without such a target)."""
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
        # Copied into each model and engine, with what they need to serve.
        preprocessor = {
            "history": config.history,
            "unknown_ids": "skip",
            "valid_repeats": prepared.metrics["valid_repeats"],
        }
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
    """Build the dataset of a log.

    Raises:
        DataError: The core leaves fewer than two users, or the split leaves no test target (a
            temporal split: no validation target).
    """
    if config.split.by == "time":
        _check_dated(config, read_log)
    rows = sorting.sort(config, read_log)
    users, kept = sorting.core(config, rows)
    splitter = Splitter(config, read_log.clock, rows.item_ids.len())
    parts = [*splitter.split(rows, _sampled(users, rows.user_ids, config), kept)]
    rows.rows.close()
    _check_targets(config, read_log.clock, splitter, parts, rows.item_ids)
    items, item_rows = _vocabulary(splitter, rows.item_ids, config)
    items, texts = _with_texts(items, config)
    sequences = _sequences(parts, item_rows, rows.user_ids)
    metrics = _metrics(config, read_log, items, sequences)
    if texts is not None:
        metrics["texts"] = texts.height - texts["text"].null_count()
    metrics |= {"duplicates": rows.repeats} | _tie_metrics(
        config, splitter, rows.ascents, metrics, sequences
    )
    metrics["valid_repeats"] = Dataset(items, sequences, config.history).repeats
    log.info(
        "%d users, %d items, %d interactions; %d test users",
        metrics["users"], metrics["items"], metrics["interactions"], metrics["test_users"],
    )  # fmt: skip
    return Prepared(items, sequences, texts, metrics)


def _sampled(users: Mask, user_ids: pl.Series, config: PrepareConfig) -> Mask:
    """Return ``config.users`` of the users: those with the smallest seeded keys."""
    inside = np.flatnonzero(users)
    if config.users is None or config.users >= inside.size:
        return users
    order = np.argsort(id_keys(user_ids.gather(inside), config.seed), kind="stable")
    chosen = np.zeros_like(users)
    chosen[inside[order[: config.users]]] = True
    return chosen


def _check_targets(
    config: PrepareConfig,
    clock: Clock | None,
    splitter: Splitter,
    parts: list[Bucket],
    item_ids: pl.Series,
) -> None:
    """Raise :class:`DataError` if nobody has a test target (by time: a validation target)."""
    split = config.split
    if split.by == "leave-one-out":
        what = "no user has two interactions, so leave-one-out has no test target"
        remedy = "Name a log with several interactions per user."
        listed = item_ids.filter(item_ids.str.contains(LIST))
        if config.users is not None and config.core < 2:
            remedy = "Raise core to 2, or sample more users: these may have one interaction each."
        elif 2 * listed.len() > item_ids.len():
            remedy = (
                f"{config.columns.item} seems to hold lists, such as {listed[0][:SHOWN]!r}: write "
                "one row per interaction, or lines of a user and the items (format: sequences)."
            )
    else:
        span = " to ".join(_span(clock, splitter) or ())
        what = f"no user has interactions both before and from {split.test} on"
        remedy = f"Set split.test to a day within the log, which covers {span}."
    if not any(part.tested.any() for part in parts):
        raise DataError(f"{config.source}: {what}.", remedy)
    if not any(part.validated.any() for part in parts):
        if split.by == "time":
            raise DataError(
                f"{config.source}: no user has interactions both before {split.valid} and from "
                f"then until {split.test}, so there are no validation targets.",
                f"Set split.valid and split.test to other days of the log, which covers {span}.",
            )
        log.warning("No user has three interactions: there are no validation targets")


def _check_dated(config: PrepareConfig, read_log: Log) -> None:
    """Raise :class:`DataError` if a split by days has no dates."""
    if read_log.clock is not None and read_log.clock.unit is not None:
        return
    remedy = (
        f"They look like {DAY}: write them as 2023-11-14"
        if read_log.form == DAY
        else "Set columns.time to a column of dates, columns.time_unit to the unit of the numbers"
    )
    raise DataError(
        f"{config.source}: the times in {config.columns.time} are numbers without a unit, "
        "which cannot be split by date.",
        f"{remedy}, or split: {{by: leave-one-out}}.",
    )


def _sequences(
    parts: list[Bucket], item_rows: NDArray[np.int32], user_ids: pl.Series
) -> pl.DataFrame:
    """Return the table of users, in one piece; ``parts`` are used up."""
    frames = []
    while parts:
        frames.append(parts.pop(0).frame(item_rows, user_ids))
    return pl.concat(frames, rechunk=True)


def _vocabulary(
    splitter: Splitter, item_ids: pl.Series, config: PrepareConfig
) -> tuple[pl.DataFrame, NDArray[np.int32]]:
    """Return the items, and the row of each of ``item_ids`` (0 for a dropped item)."""
    taken = np.flatnonzero(splitter.taken)
    taken = taken[np.argsort(-splitter.trained[taken], kind="stable")]
    rows = np.zeros(item_ids.len(), dtype=np.int32)
    rows[taken] = np.arange(1, taken.size + 1, dtype=np.int32)
    items = pl.DataFrame(
        {
            "row": rows[taken],
            "item": item_ids.gather(taken),
            "count": splitter.trained[taken].astype(np.int32),
        }
    )
    if config.titles is None:
        return items.with_columns(pl.lit(None, pl.String).alias("title")), rows
    titles = read_titles(fetch(config.titles.source), config.titles)
    items = items.join(titles, on="item", how="left", maintain_order="left")
    named = items.height - items["title"].null_count()
    if named == 0:
        log.warning(
            "No item of the log has a title in %s; its ids are like %s, those of the log like %s",
            config.titles.source, *map(_examples, (titles["item"], items["item"])),
        )  # fmt: skip
    elif named < items.height:
        log.info("%d of %d items have a title", named, items.height)
    return items, rows


def _examples(ids: pl.Series) -> str:
    return ", ".join(map(repr, ids.head(2))) or "nothing"


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
    config: PrepareConfig, read_log: Log, items: pl.DataFrame, sequences: pl.DataFrame
) -> dict[str, Any]:
    """Return the metrics of the manifest."""
    length, valid, test = pl.col("items").list.len(), pl.col("valid_from"), pl.col("test_from")
    counted = sequences.select(
        all=length.cast(pl.Int64).sum(),
        valid=((valid > 0) & (valid < test)).sum(),
        test=((test > 0) & (test < length)).sum(),
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
        "interactions": counted["all"].item(),
        "train_interactions": int(items["count"].sum()),
        "valid_users": counted["valid"].item(),
        "test_users": counted["test"].item(),
        "titles": items.height - items["title"].null_count(),
        "rows": read_log.rows,
        "malformed": {"rows": read_log.malformed.height, **dict(faults.iter_rows())},
        "fingerprint": fingerprint,
    }


def _span(clock: Clock | None, splitter: Splitter) -> list[str] | None:
    """Return the first and the last day (or number) of the interactions."""
    if clock is None or splitter.span is None:
        return None
    return [clock.text(time) for time in splitter.span]


def _tie_metrics(
    config: PrepareConfig, splitter: Splitter, ascents: Ascents, metrics: dict[str, Any],
    sequences: pl.DataFrame,
) -> dict[str, Any]:  # fmt: skip
    """Return what is known of times and ties, for the manifest."""
    order = {"pairs": ascents.pairs, "ascending": ascents.share, "p_value": ascents.p_value}
    clock, total = splitter.clock, metrics["interactions"]
    if clock is None or splitter.resolution is None:
        known = ("time_unit", "time_span", "time_resolution", "tied_share", "tied_before")
        return dict.fromkeys([*known, "test_users_tied"]) | {"order_of_ids": order}
    if splitter.tied:
        log.info(
            "%d of %d interactions (%.0f %%) share a time stamp with another of the same user; %s",
            splitter.tied, total, 100 * splitter.tied / total,
            "they are sorted by a seeded hash"
            if config.ties == "shuffle"
            else "they stay in the order of the log (ties: keep)",
        )  # fmt: skip
    return {
        "time_unit": clock.unit,
        "time_span": _span(clock, splitter),
        "time_resolution": splitter.resolution.name,
        "tied_share": splitter.tied / total,
        "tied_before": splitter.tied_before / total,
        "test_users_tied": int(sequences["test_tied"].sum()),
        "order_of_ids": order,
    }


def _write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
