"""Item texts: columns of a table of items, cleaned and joined by a template.

HTML is removed, runs of white space become one space, and a text is cut to ``max_chars``
characters, at the end of a word.
"""

import html
import logging
import re
import string
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from slmc.data.config import ItemTable
from slmc.data.formats import read_table
from slmc.data.sniff import detect_layouts
from slmc.errors import DataError

log = logging.getLogger("slmc.data")

LEAST_SHARE = 0.5
"""Share of the items that must have a text; below it the ids of the table are probably others."""
TAG = re.compile(r"<(?:[a-zA-Z/!][^<>]*)>|<!--.*?-->", re.DOTALL)
SPACE = re.compile(r"\s+")
BETWEEN = ". "
"""Separator of the columns without a template."""


def read_texts(paths: Sequence[Path], table: ItemTable) -> pl.DataFrame:
    """Read ``item``, ``title`` and ``text`` of each item; of several rows the first one counts.

    Args:
        paths: Local files of the table.
        table: Its columns and template.

    Returns:
        ``title`` is the column of that name, null without one; ``text`` is null where every column
        is empty.

    Raises:
        DataError: The files cannot be read, or lack a column.
    """
    wanted = table.roles
    layouts = detect_layouts(paths, wanted, table.format, table.separator, table.header)
    if layouts[0].format == "sequences":
        raise DataError(
            f"{paths[0]} is in the sequence format, which has no texts.",
            "Set items.source to a table with a row for each item.",
        )
    frames = []
    for path, layout in zip(paths, layouts, strict=True):
        rows = read_table(path, layout, wanted)
        if rows.malformed.height:
            log.warning(
                "%s: %d malformed rows; their texts are left out; the first: line %d: %s",
                path, rows.malformed.height, *rows.malformed.select("line", "reason").row(0),
            )  # fmt: skip
        frames.append(rows.frame.drop("line").with_columns(pl.all().cast(pl.String)))
    rows_by_item = pl.concat(frames).filter(pl.col("item").is_not_null())
    first = rows_by_item.unique("item", keep="first", maintain_order=True)
    titles, texts = [], []
    for values in first.drop("item").iter_rows():
        columns = dict(zip(table.columns, values, strict=True))
        titles.append(cleaned(columns.get("title") or "") or None)
        texts.append(text_of(columns, table))
    return first.select("item").with_columns(
        title=pl.Series(titles, dtype=pl.String), text=pl.Series(texts, dtype=pl.String)
    )


def text_of(values: dict[str, str | None], table: ItemTable) -> str | None:
    """Return the text of one item; None if all its columns are empty.

    Args:
        values: Column -> value in the table.
        table: Template and largest number of characters.
    """
    # A description can be megabytes of HTML; this much is enough for a text.
    bound = 8 * table.max_chars
    clean = {name: cleaned(value[:bound]) if value else "" for name, value in values.items()}
    if not any(clean.values()):
        return None
    if table.template is None:
        text = BETWEEN.join(value for value in clean.values() if value)
    else:
        parts = string.Formatter().parse(table.template)
        text = "".join(literal + (clean[name] if name else "") for literal, name, _, _ in parts)
        text = SPACE.sub(" ", text).strip()
    return text if len(text) <= table.max_chars else cut(text, table.max_chars)


def cleaned(text: str) -> str:
    """Return a text without HTML, with entities resolved and single spaces."""
    return SPACE.sub(" ", html.unescape(TAG.sub(" ", text))).strip()


def cut(text: str, most: int) -> str:
    """Return the first words of a text, at most ``most`` characters; a long first word is cut."""
    head = text[: most + 1]
    words = head.rpartition(" ")[0] if not head.endswith(" ") else head.rstrip()
    return (words or text)[:most]


def texts_for(items: pl.Series, texts: pl.DataFrame, source: str) -> pl.DataFrame:
    """Return the titles and texts of a vocabulary, in its order.

    Args:
        items: Original ids.
        texts: Of :func:`read_texts`.
        source: Name of the table, for messages.

    Returns:
        Columns ``title`` and ``text``, null where the table has none.

    Raises:
        DataError: Under half of the items have a text, or all texts are the same.
    """
    joined = items.to_frame("item").join(texts, on="item", how="left", maintain_order="left")
    known = joined["text"].drop_nulls()
    share = known.len() / items.len()
    if share < LEAST_SHARE:
        shown = ", ".join(repr(item) for item in items.head(2))
        other = ", ".join(repr(item) for item in texts["item"].head(2)) or "nothing"
        raise DataError(
            f"{source} has a text for {share:.1%} of the {items.len()} items of the log; the ids "
            f"of the log are like {shown}, those of the table like {other}.",
            "Set items.item to the column of the log's ids, or name the table of this log.",
        )
    if known.len() > 1 and known.n_unique() == 1:
        raise DataError(
            f"{source}: all items have the same text, {known[0][:60]!r}.",
            "Set items.columns to columns that tell items apart.",
        )
    log.info("%d of %d items (%.1f %%) have a text", known.len(), items.len(), 100 * share)
    return joined.select("title", "text")
