"""A prepared dataset: training sequences, and targets with their histories for each split."""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from slmc.artefact import Artefact
from slmc.errors import UsageError

Rows = NDArray[np.int32]

RARE_REPEATS = 0.01
"""Seen items are excluded if fewer validation targets than this share are repeats."""

USERS_AT_ONCE = 1 << 16
"""Users whose histories are searched for repeats at once."""


@dataclass(frozen=True)
class Targets:
    """The U users of a split: their histories, and the items that they took next."""

    users: list[str]
    histories: list[Rows]
    """Rows of the newest items before the target, oldest first; at most ``history``."""
    targets: NDArray[np.int64]
    """``[U]`` row of the item that was taken next."""
    seen: list[Rows]
    """Sorted rows of all different items before the target, older ones included."""
    same_time: NDArray[np.bool_] | None = None
    """``[U]`` whether the target has the time of the item before it; None if that is not known."""

    def sample(self, most: int, seed: int) -> "Targets":
        """Return a seeded sample of at most ``most`` users, in their order."""
        if len(self.users) <= most:
            return self
        rng = np.random.default_rng(seed)
        chosen = np.sort(rng.choice(len(self.users), size=most, replace=False))
        return Targets(
            users=[self.users[user] for user in chosen],
            histories=[self.histories[user] for user in chosen],
            targets=self.targets[chosen],
            seen=[self.seen[user] for user in chosen],
            same_time=None if self.same_time is None else self.same_time[chosen],
        )


@dataclass(frozen=True)
class Dataset:
    """Histories of users as rows of a vocabulary; row 0 is padding."""

    items: pl.DataFrame
    """``row``, ``item`` (original id), ``count`` (in the training part), ``title``."""
    sequences: pl.DataFrame
    """``user``, ``items`` (rows in time order), ``valid_from``, ``test_from``, ``valid_tied``,
    ``test_tied``; see :attr:`slmc.data.prepare.Prepared.users`."""
    history: int
    """Length of the histories that a model sees."""

    @classmethod
    def open(cls, artefact: Artefact) -> Self:
        """Read a dataset artefact; raises :class:`ArtefactError` if it is of another kind."""
        preprocessor = json.loads(artefact.file("preprocessor.json").read_text())
        return cls(
            items=pl.read_parquet(artefact.file("items.parquet")),
            sequences=pl.read_parquet(artefact.file("sequences/users.parquet")),
            history=preprocessor["history"],
        )

    @staticmethod
    def texts(artefact: Artefact) -> list[str | None]:
        """Return the text of each item in the order of rows, None for an item without one.

        Raises:
            UsageError: The dataset was prepared without a table of items.
        """
        if "texts.parquet" not in artefact.manifest.files:
            raise UsageError(
                f"the dataset {artefact.path} has no texts of items.",
                "Set data.items to a table of items, or item_embeddings to one without text.",
            )
        return pl.read_parquet(artefact.file("texts.parquet"))["text"].to_list()

    @property
    def num_items(self) -> int:
        """Number of items, V; rows go from 1 to V."""
        return self.items.height

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Training interactions of each row, ``[V + 1]``; 0 for the padding row."""
        return np.concatenate([[0], self.items["count"].to_numpy()]).astype(np.int64)

    def train_sequences(self) -> list[Rows]:
        """Return the training part of each user's items, without empty ones."""
        cuts = self.sequences["valid_from"].to_numpy()
        parts = (rows[:cut] for rows, cut in zip(self._rows, cuts, strict=True))
        return [part for part in parts if part.size]

    def targets(self, split: Literal["valid", "test"]) -> Targets:
        """Return the targets of a split, without users that have no history or no target."""
        valid, test = (self.sequences[name].to_numpy() for name in ("valid_from", "test_from"))
        lengths = np.array([rows.size for rows in self._rows])
        cuts, ends = (valid, test) if split == "valid" else (test, lengths)
        chosen = np.flatnonzero((cuts > 0) & (cuts < ends))
        before = [self._rows[user][: cuts[user]] for user in chosen]
        return Targets(
            users=self.sequences["user"].gather(chosen).to_list(),
            histories=[rows[-self.history :] for rows in before],
            targets=np.array([self._rows[user][cuts[user]] for user in chosen], dtype=np.int64),
            seen=[np.unique(rows) for rows in before],
            same_time=self._same_time(f"{split}_tied", chosen),
        )

    def _same_time(self, column: str, chosen: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Return whether targets are tied; None without times, or in an older dataset."""
        if column not in self.sequences.columns:
            return None
        tied = self.sequences[column].gather(chosen)
        return None if tied.null_count() else tied.to_numpy()

    @cached_property
    def repeats(self) -> float:
        """Share of validation targets that the user has taken before; 0 without targets."""
        lengths = self.sequences["items"].list.len().to_numpy().astype(np.int64)
        cuts, ends = (
            self.sequences[name].to_numpy().astype(np.int64) for name in ("valid_from", "test_from")
        )
        starts = np.cumsum(lengths) - lengths
        chosen = (cuts > 0) & (cuts < ends)
        again = 0
        for begin in range(0, lengths.size, USERS_AT_ONCE):
            part = np.flatnonzero(chosen[begin : begin + USERS_AT_ONCE]) + begin
            target = self._flat[starts[part] + cuts[part]]
            user = np.repeat(np.arange(part.size), cuts[part])
            place = np.arange(user.size) - np.repeat(np.cumsum(cuts[part]) - cuts[part], cuts[part])
            seen = self._flat[starts[part][user] + place] == target[user]
            again += np.unique(user[seen]).size
        return again / int(chosen.sum()) if chosen.any() else 0.0

    def excludes_seen(self, setting: bool | Literal["auto"]) -> bool:
        """Return whether a setting of ``exclude_seen`` excludes seen items on this data."""
        return self.repeats < RARE_REPEATS if setting == "auto" else setting

    @cached_property
    def _rows(self) -> list[Rows]:
        """The rows of each user, as views of one array."""
        return np.split(self._flat, np.cumsum(self.sequences["items"].list.len().to_numpy())[:-1])

    @cached_property
    def _flat(self) -> Rows:
        """The rows of all users, concatenated."""
        flat = self.sequences["items"].explode(empty_as_null=False)
        return flat.to_numpy().astype(np.int32, copy=False)
