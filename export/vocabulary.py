"""The vocabulary of an engine, ``items.jsonl``: row, original id and title, one line per item."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import polars as pl

from slmc.artefact import Artefact
from slmc.errors import ArtefactError, UsageError

FILE = "items.jsonl"


@dataclass(frozen=True)
class Vocabulary:
    """V items in row order; row r is entry r - 1."""

    items: list[str]
    """Original ids."""
    titles: list[str | None]

    @classmethod
    def open(cls, file: Path) -> Self:
        """Read ``items.jsonl``; raises :class:`ArtefactError` if the file is not valid."""
        items, titles = [], []
        try:
            with file.open("rb") as lines:
                for row, line in enumerate(lines, start=1):
                    entry = json.loads(line)
                    if entry["row"] != row:
                        raise ValueError
                    items.append(str(entry["item"]))
                    titles.append(entry.get("title"))
        except (ValueError, KeyError, TypeError, OSError):
            raise ArtefactError(
                f"{file}:{len(items) + 1}: the line does not describe the item of that row.",
                "Run `slmc export` again.",
            ) from None
        return cls(items, titles)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Map from original id to row."""
        return {item: row for row, item in enumerate(self.items, start=1)}


def popularity(parquet: Path) -> pl.DataFrame:
    """Read ``row`` and ``count`` of an ``items.parquet``, the most popular item first.

    The count is the number of interactions in the training part; of equal counts the smaller row is
    first, as in the baseline ``popularity``.

    Raises:
        ArtefactError: The file cannot be read, or has no counts.
    """
    try:
        items = pl.read_parquet(parquet, columns=["row", "count"])
    except (OSError, pl.exceptions.PolarsError):
        raise ArtefactError(
            f"{parquet}: the training interactions of each item cannot be read.",
            "Run `slmc export` again.",
        ) from None
    return items.sort(["count", "row"], descending=[True, False])


def write(parquet: Path, file: Path) -> None:
    """Write ``items.jsonl`` from an ``items.parquet``."""
    items = pl.read_parquet(parquet, columns=["row", "item", "title"])
    with file.open("w", encoding="utf-8") as out:
        for row, item, title in items.iter_rows():
            entry = {"row": row, "item": item} | ({} if title is None else {"title": title})
            out.write(json.dumps(entry, ensure_ascii=False) + "\n")


def check_items_first(engine: Artefact, data: Artefact) -> None:
    """Raise ``UsageError`` unless an engine's first rows are the dataset's items.

    After them it may have items that are newer than the dataset.
    """
    _check(engine, data, newer=True)


def check_same_items(ranked: Artefact, data: Artefact) -> None:
    """Raise ``UsageError`` unless a model or engine has the dataset's items in the same rows."""
    _check(ranked, data, newer=False)


def _check(ranked: Artefact, data: Artefact, *, newer: bool) -> None:
    ranked_items, items = (
        pl.read_parquet(artefact.file("items.parquet"), columns=["item"])["item"]
        for artefact in (ranked, data)
    )
    if not (ranked_items.head(items.len()) if newer else ranked_items).equals(items):
        raise UsageError(
            f"{ranked.path} and {data.path} do not have the same items in the same rows.",
            "Name the dataset that the model was trained on with --data.",
        )
