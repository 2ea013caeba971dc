"""The items of a model or an engine: original ids, titles, popularity, and their rows.

Letters: V items; row 0 is padding.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any, Self
from uuid import UUID

import numpy as np
import polars as pl
from numpy.typing import NDArray

from slmc.errors import ArtefactError, UsageError
from slmc.export.vocabulary import FILE, Vocabulary, popularity

PARQUET = "items.parquet"
EXAMPLES = 3
SHOWN = 5
"""Ids that a message lists."""
Id = str | int | UUID
KINDS: tuple[type[Id], ...] = (int, UUID)
"""Types of ids, besides text, that are given back in the type in which they came in."""

log = logging.getLogger("slmc.serving")


@dataclass(frozen=True, eq=False)
class Catalogue:
    """V items in row order; row r is entry r - 1."""

    items: pl.Series
    """Original ids, as texts."""
    titles: list[str | None]
    parquet: Path
    """The ``items.parquet`` with the training interactions."""

    @classmethod
    def open(cls, folder: Path, num_items: int, *, of_engine: bool) -> Self:
        """Read the catalogue of a model or an engine that ranks ``num_items`` items.

        Args:
            folder: The artefact.
            num_items: V.
            of_engine: Whether it is an engine, which has its catalogue as ``items.jsonl``.

        Raises:
            ArtefactError: The file is broken, or has another number of items.
        """
        file, parquet = folder / FILE, folder / PARQUET
        if of_engine:
            vocabulary = Vocabulary.open(file)
            texts, titles = pl.Series("item", vocabulary.items, pl.String), vocabulary.titles
        else:
            file = parquet
            try:
                frame = pl.read_parquet(parquet, columns=["item", "title"])
            except (pl.exceptions.PolarsError, OSError):
                raise ArtefactError(
                    f"{parquet} does not describe the items.", "Copy the artefact again."
                ) from None
            texts, titles = frame["item"], frame["title"].to_list()
        if texts.len() != num_items:
            raise ArtefactError(
                f"{file} names {texts.len()} items, the engine ranks {num_items}.",
                "Run `slmc export` again.",
            )
        return cls(texts, titles, parquet)

    def __len__(self) -> int:
        """V."""
        return self.items.len()

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Map from original id to row."""
        return {item: row for row, item in enumerate(self.items, start=1)}

    @cached_property
    def popular(self) -> pl.DataFrame:
        """``row`` and training ``count`` of all items, the most popular first.

        Raises:
            ArtefactError: The artefact does not have them.
        """
        return popularity(self.parquet)

    def rows(self, ids: pl.Series) -> NDArray[np.int32]:
        """The row of each id of a column, 0 for an unknown or missing one."""
        found = ids.cast(pl.String).cast(self._categories, strict=False).to_physical()
        return (found.cast(pl.Int64) + 1).fill_null(0).to_numpy().astype(np.int32)

    def ids(self, rows: NDArray[np.integer[Any]], kind: type[Id] = str) -> pl.Series:
        """The ids of rows 1..V, as texts or as 64-bit integers."""
        return (self._numbers if kind is int else self.items).gather(rows.ravel() - 1)

    def has_kind(self, kind: type[Id]) -> bool:
        """Whether each id of the catalogue is the text of a value of ``kind``."""
        if kind is int:
            return self._numbers.len() == len(self)
        return kind is str or self._are_uuids

    def mask(
        self, allow: Iterable[Any] | None, deny: Iterable[Any] | None
    ) -> NDArray[np.bool_] | None:
        """Which rows may be recommended, ``[V + 1]``; None if all may.

        Args:
            allow: Original ids; only these may be recommended. Unknown ones are skipped, with a
                warning.
            deny: Original ids that must not be recommended.

        Raises:
            UsageError: No item remains.
        """
        if allow is None and deny is None:
            return None
        mask = np.full(len(self) + 1, allow is None)
        if allow is not None:
            mask[self._known(allow, "allow")] = True
        if deny is not None:
            mask[self._known(deny, "deny")] = False
        mask[0] = False
        if not mask.any():
            raise UsageError(
                "no item remains: allow and deny exclude the whole catalogue.",
                f"Use ids of the log, for example {self.example}.",
            )
        return mask

    @property
    def example(self) -> str:
        """The first ids, for messages."""
        return ", ".join(self.items.head(EXAMPLES).to_list())

    def frame(self) -> pl.DataFrame:
        """``row``, ``item``, ``title`` and training ``count`` of each item; raises as above."""
        columns = {
            "row": pl.Series(range(1, len(self) + 1), dtype=pl.Int32),
            "item": self.items,
            "title": pl.Series(self.titles, dtype=pl.String),
        }
        counts = self.popular.select(pl.col("row").cast(pl.Int32), "count")
        return pl.DataFrame(columns).join(counts, on="row", how="left", maintain_order="left")

    def _known(self, ids: Iterable[Any], role: str) -> list[int]:
        texts, _ = as_texts(ids, role, ordered=False)
        unknown = [text for text in texts if text not in self.row_of]
        if unknown:
            log.warning(
                "%s: %s not in the vocabulary: %s",
                role, "1 id is" if len(unknown) == 1 else f"{len(unknown)} ids are",
                shown(unknown),
            )  # fmt: skip
        return [self.row_of[text] for text in texts if text in self.row_of]

    @cached_property
    def _categories(self) -> pl.Enum:
        return pl.Enum(self.items)

    @cached_property
    def _numbers(self) -> pl.Series:
        """The ids as integers; empty if one is not an integer as Python writes it."""
        numbers = self.items.cast(pl.Int64, strict=False)
        same = numbers.cast(pl.String).equals(self.items, null_equal=False)
        return numbers if same else numbers.clear()

    @cached_property
    def _are_uuids(self) -> bool:
        try:
            return all(str(UUID(item)) == item for item in self.items)
        except ValueError:
            return False


def as_texts(
    ids: object, name: str = "history", *, ordered: bool = True
) -> tuple[list[str], type[Id]]:
    """Ids as texts, as the catalogue stores them, and their common type.

    Args:
        ids: Texts, whole numbers or UUIDs.
        name: What they are, for messages.
        ordered: Whether their order counts: then a set is refused.

    Raises:
        UsageError: Not a list of ids.
    """
    unordered = ordered and isinstance(ids, set | frozenset | dict)
    if isinstance(ids, str | bytes) or unordered or not isinstance(ids, Iterable):
        kind = f"a {type(ids).__name__}" if unordered else repr(ids)
        raise UsageError(
            f"{name}: expected a list of ids, not {kind}.", 'Pass a list such as ["50", "181"].'
        )
    listed, kinds = list(ids), set()
    for one in listed:
        # Floats are refused: 50.0 could stand for "50" or "50.0".
        if isinstance(one, bool | np.bool_) or not isinstance(one, str | Integral | UUID):
            raise UsageError(
                f"{name}: {one!r} has type {type(one).__name__}.",
                "Pass ids as text, as in the log, or as whole numbers.",
            )
        kinds.add(next((kind for kind in KINDS if isinstance(one, kind)), None) or _kind(one))
    return [str(one) for one in listed], kinds.pop() if len(kinds) == 1 else str


def _kind(one: object) -> type[Id]:
    return int if isinstance(one, Integral) else str  # NumPy's integers are no ints


def shown(ids: Sequence[str]) -> str:
    """The first of several ids, for messages."""
    more = len(ids) - SHOWN
    return ", ".join(ids[:SHOWN]) + (f" and {more} more" if more > 0 else "")
