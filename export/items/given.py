"""Check what a file says about new items: their vectors, or their neighbours and weights."""

import logging
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from slmc.errors import UsageError
from slmc.export.items.item_file import NEIGHBOURS, VECTOR, WEIGHTS

LEAST_KNOWN = 0.5
"""Share of the neighbours that the model must know; below it the ids are probably others."""
SHOWN = 3
"""Unknown ids that a message lists."""

log = logging.getLogger("slmc.export")


def given_vectors(
    rows: pl.DataFrame, table: NDArray[np.float32], file: Path, model: Path
) -> NDArray[np.float32]:
    """Return the vectors of a file, ``[N, d]``.

    Args:
        rows: ``item`` and ``vector``, lists of numbers.
        table: The item table ``[R, d]``; row 0 is padding.
        file: The file, for messages.
        model: The model, for messages.

    Raises:
        UsageError: A vector is missing, has another width, is all zeros, or has a value that is
            not a finite number.
    """
    width = table.shape[1]
    lists, items = rows[VECTOR], rows["item"]
    lengths = lists.list.len().fill_null(0)
    wrong = (lengths != width).arg_max() if (lengths != width).any() else None
    if wrong is not None:
        has = f"{lengths[wrong]} numbers" if lengths[wrong] else "no numbers"
        raise UsageError(
            f"{file}: the vector of {items[wrong]!r} has {has}; the item table of {model} has "
            f"{width}.",
            f"Give vectors of {width} numbers, in the space of the table: "
            "--outputs user_vectors writes the table beside the engine.",
        )
    flat = lists.explode().cast(pl.Float64, strict=False).fill_null(np.nan)
    vectors = flat.to_numpy().reshape(-1, width).astype(np.float32)
    norms = np.linalg.norm(vectors, axis=1)
    for fault, what in (
        (~np.isfinite(vectors).all(axis=1), "has a value that is not a finite number"),
        (norms == 0, "is all zeros"),
    ):
        if fault.any():
            raise UsageError(
                f"{file}: the vector of {items[int(fault.argmax())]!r} {what}.",
                "Write finite numbers, not all zero, or leave the item out.",
            )
    longest = float(np.linalg.norm(table[1:], axis=1).max())
    above = int((norms > longest).sum())
    if above:
        log.warning(
            "%s: %d of %d vectors are longer than every vector of the item table (%.3g): such "
            "items may be recommended to everyone",
            file, above, len(norms), longest,
        )  # fmt: skip
    return vectors


def known_neighbours(items: pl.DataFrame, known: pl.DataFrame, file: str) -> pl.DataFrame:
    """Add the ``rows`` of the neighbours that the model knows, and their ``weights``.

    Args:
        items: ``item``, ``title``, ``neighbours`` and perhaps ``weights``; without weights all
            neighbours of an item count the same.
        known: ``row`` and ``item`` of the model's vocabulary.
        file: The file, for messages.

    Raises:
        UsageError: Weights do not belong to neighbours, are not positive, or under half of the
            neighbours are known.
    """
    ids = items[NEIGHBOURS].cast(pl.List(pl.String)).fill_null([])
    frame = items.with_columns(ids.alias(NEIGHBOURS))
    if WEIGHTS in items.columns:
        weights = items[WEIGHTS].cast(pl.List(pl.Float64), strict=False)
        frame = frame.with_columns(weights.alias(WEIGHTS))
        _check_weights(frame, items[WEIGHTS], file)
    else:
        ones = ids.list.eval(pl.lit(1.0).repeat_by(pl.len()).explode())
        frame = frame.with_columns(ones.alias(WEIGHTS))
    pairs = (
        frame.select("item", NEIGHBOURS, WEIGHTS)
        .filter(pl.col(NEIGHBOURS).list.len() > 0)
        .explode(NEIGHBOURS, WEIGHTS)
        .with_columns(pl.col(NEIGHBOURS).str.strip_chars())
        .join(
            known.select("row", pl.col("item").alias(NEIGHBOURS)),
            on=NEIGHBOURS,
            how="left",
            maintain_order="left",
        )
    )
    _check_share(pairs, known["item"], file)
    found = (
        pairs.filter(pl.col("row").is_not_null(), pl.col("item") != pl.col(NEIGHBOURS))
        .group_by("item", maintain_order=True)
        .agg(pl.col("row").alias("rows"), WEIGHTS)
    )
    joined = items.select("item", "title").join(found, on="item", how="left", maintain_order="left")
    return joined.with_columns(pl.col("rows").fill_null([]), pl.col(WEIGHTS).fill_null([]))


def _check_weights(frame: pl.DataFrame, written: pl.Series, file: str) -> None:
    lengths = frame.select(
        pl.col("item"), ids=pl.col(NEIGHBOURS).list.len(), weights=pl.col(WEIGHTS).list.len()
    )
    uneven = lengths.filter(pl.col("ids") != pl.col("weights").fill_null(0))
    if uneven.height:
        item, ids, weights = uneven.row(0)
        raise UsageError(
            f"{file}: {item!r} has {ids} neighbours and {weights or 0} weights.",
            "Write one weight for each neighbour, or leave the column of weights out.",
        )
    flat = frame.select("item", WEIGHTS).explode(WEIGHTS).filter(pl.col(WEIGHTS).is_not_null())
    lost = written.list.len().fill_null(0).sum() != flat.height  # a text that is no number
    bad = flat.filter(~pl.col(WEIGHTS).is_finite() | (pl.col(WEIGHTS) <= 0))
    if lost or bad.height:
        holder = bad["item"][0] if bad.height else _without_number(frame)
        raise UsageError(
            f"{file}: {holder!r} has a weight that is not a positive number.",
            "Write weights above 0, such as counts, or leave these neighbours out.",
        )


def _without_number(frame: pl.DataFrame) -> str:
    nulls = frame.filter(pl.col(WEIGHTS).list.eval(pl.element().is_null()).list.any())
    return str(nulls["item"][0])


def _check_share(pairs: pl.DataFrame, known: pl.Series, file: str) -> None:
    """Warn of unknown neighbours, or refuse the file if they are more than half."""
    unknown = pairs.filter(pl.col("row").is_null())[NEIGHBOURS]
    if not unknown.len():
        return
    share = unknown.len() / pairs.height
    shown = ", ".join(repr(one) for one in unknown.unique(maintain_order=True).head(SHOWN))
    if share > 1 - LEAST_KNOWN:
        examples = ", ".join(repr(one) for one in known.head(2))
        raise UsageError(
            f"{file}: {share:.1%} of the {pairs.height} neighbours are not in the model's "
            f"vocabulary, for example {shown}.",
            f"Use ids of the model, such as {examples}.",
        )
    log.warning(
        "%s: %d of %d neighbours (%.1f %%) are not in the model's vocabulary and are left out, for "
        "example %s",
        file, unknown.len(), pairs.height, 100 * share, shown,
    )  # fmt: skip
