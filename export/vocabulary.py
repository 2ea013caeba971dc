"""The vocabulary of an engine, ``items.jsonl``: rows, original ids and titles, a line an item."""

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
    """V items by row; row r is the entry r - 1."""

    items: list[str]
    """Original ids."""
    titles: list[str | None]

    @classmethod
    def open(cls, file: Path) -> Self:
        """Read ``items.jsonl``; raises :class:`ArtefactError` if it is not one."""
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
                f"{file}:{len(items) + 1}: not the item of that row.",
                "Make the engine again with `slmc export`.",
            ) from None
        return cls(items, titles)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Original id -> row."""
        return {item: row for row, item in enumerate(self.items, start=1)}


def write(parquet: Path, file: Path) -> None:
    """Write ``items.jsonl`` for the items of an ``items.parquet``."""
    items = pl.read_parquet(parquet, columns=["row", "item", "title"])
    with file.open("w", encoding="utf-8") as out:
        for row, item, title in items.iter_rows():
            entry = {"row": row, "item": item} | ({} if title is None else {"title": title})
            out.write(json.dumps(entry, ensure_ascii=False) + "\n")


def check_same(ranked: Artefact, data: Artefact) -> None:
    """Raise ``UsageError`` unless a model or engine numbers the items as the dataset does."""
    own, theirs = (
        pl.read_parquet(artefact.file("items.parquet"), columns=["item"])["item"]
        for artefact in (ranked, data)
    )
    if not own.equals(theirs):
        raise UsageError(
            f"{ranked.path} and {data.path} do not number the same items.",
            "Name the dataset that the model was trained on with --data.",
        )
