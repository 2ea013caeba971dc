"""Neighbours of new items, counted in a log of interactions. Does not import torch.

Two items are neighbours if a user took them at most :data:`WINDOW` interactions apart. The weight
is the sum over these places of 1 / distance.
"""

import logging

import polars as pl

from slmc.data.config import PrepareConfig
from slmc.data.readers import read, refuse_malformed, warn_malformed
from slmc.data.sources import fetch

WINDOW = 5
"""Largest distance of neighbours in a history, in interactions."""
MOST = 50
"""Neighbours of an item: those with the largest weights."""

log = logging.getLogger("slmc.export")


def count_neighbours(
    source: str, config: PrepareConfig, known: pl.Series, wanted: pl.Series | None = None
) -> pl.DataFrame:
    """Count the neighbours of items of a log.

    Args:
        source: A log, written as ``data.source``.
        config: Settings of the dataset: the columns and the share of malformed rows that is
            allowed. The format is detected anew.
        known: Ids of the items that have a vector: only these are neighbours.
        wanted: Ids of the items whose neighbours are counted; None: all that are not known.

    Returns:
        ``item``, ``neighbours`` and ``weights`` (lists, the largest weight first) of each item
        of the log that is wanted, empty where it has no known neighbour.

    Raises:
        DataError: The log cannot be read, or too many rows are malformed.
    """
    interactions = read(fetch(source), columns=config.columns)
    refuse_malformed(interactions, config.max_malformed)
    warn_malformed(interactions)
    rows = interactions.frame.with_columns(pl.col("item").cast(pl.String))
    if interactions.timed:
        rows = rows.sort("time", maintain_order=True)
    rows = rows.sort(pl.col("user").to_physical(), maintain_order=True).select("user", "item")
    is_known = pl.col("item").is_in(known.implode())
    rows = rows.with_columns(
        known=is_known,
        wanted=~is_known if wanted is None else pl.col("item").is_in(wanted.implode()),
    )
    pairs = [_pairs(rows, distance) for distance in (*range(-WINDOW, 0), *range(1, WINDOW + 1))]
    counted = (
        pl.concat(pairs)
        .group_by("item", "neighbour")
        .agg(pl.col("weight").sum())
        .sort(["item", "weight", "neighbour"], descending=[False, True, False])
        .group_by("item", maintain_order=True)
        .agg(
            pl.col("neighbour").head(MOST).alias("neighbours"),
            pl.col("weight").head(MOST).alias("weights"),
        )
    )
    items = rows.filter("wanted").select(pl.col("item").unique(maintain_order=True))
    return items.join(counted, on="item", how="left", maintain_order="left").with_columns(
        pl.col("neighbours").fill_null([]), pl.col("weights").fill_null([])
    )


def _pairs(rows: pl.DataFrame, distance: int) -> pl.DataFrame:
    """The pairs of a wanted item and a known one ``distance`` places after it."""
    other = pl.all().shift(-distance)
    moved = rows.select(other.name.prefix("other_"))
    return (
        pl.concat([rows, moved], how="horizontal")
        .filter(
            pl.col("wanted"),
            pl.col("other_known"),
            pl.col("user") == pl.col("other_user"),
            pl.col("item") != pl.col("other_item"),
        )
        .select(
            "item",
            pl.col("other_item").alias("neighbour"),
            pl.lit(1 / abs(distance)).alias("weight"),
        )
    )
