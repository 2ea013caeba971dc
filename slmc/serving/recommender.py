"""What users call: a model or an engine that recommends by original ids."""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any, Literal, overload
from uuid import UUID

import numpy as np
import polars as pl
from numpy.typing import NDArray

from slmc.artefact import Artefact
from slmc.errors import UsageError
from slmc.serving.answers import Empty, as_frame, popular
from slmc.serving.catalogue import Catalogue, Id, as_texts, shown
from slmc.serving.frames import Columns, find_columns, given_frame, holds_numbers, read_frame
from slmc.serving.histories import Histories
from slmc.serving.ranking import Batches, Best, Ranker, Wish, check_k

Unknown = Literal["skip", "error"]
"""What to do with ids that are not in the catalogue."""

log = logging.getLogger("slmc.recommend")


@dataclass(frozen=True)
class Recommendation:
    """A recommended item."""

    row: int
    item: Id
    """Original id."""
    title: str | None
    score: float


@dataclass(frozen=True)
class Recommendations(Sequence[Recommendation]):
    """The best items for a history, best first; a sequence of :class:`Recommendation`."""

    best: tuple[Recommendation, ...]
    by: Literal["model", "popular"] = "model"
    """``popular`` if the history had no known item: then the scores are training interactions."""

    @property
    def ids(self) -> list[Id]:
        """Original ids, best first."""
        return [one.item for one in self.best]

    @property
    def titles(self) -> list[str | None]:
        """Titles, None for an item without one."""
        return [one.title for one in self.best]

    @property
    def scores(self) -> list[float]:
        """Scores, falling."""
        return [one.score for one in self.best]

    @overload
    def __getitem__(self, index: int) -> Recommendation: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Recommendation, ...]: ...

    def __getitem__(self, index: int | slice) -> Recommendation | tuple[Recommendation, ...]:
        """The recommendation at a place, or several."""
        return self.best[index]

    def __len__(self) -> int:
        """Number of items: k, or less where fewer could be recommended."""
        return len(self.best)

    def __iter__(self) -> Iterator[Recommendation]:
        """The recommendations, best first."""
        return iter(self.best)


class Served:
    """What models and engines have in common."""

    def __init__(self, artefact: Artefact, ranker: Ranker) -> None:
        """Take a ranker and read its catalogue; :func:`slmc.load` makes these objects."""
        self.artefact, self.ranker = artefact, ranker
        self.catalogue = Catalogue.open(
            artefact.path, ranker.num_items, of_engine=artefact.manifest.kind == "engine"
        )

    def __repr__(self) -> str:
        """``<Engine of 1,682 items: runs/movies/09-export>``."""
        return f"<{type(self).__name__} of {len(self.catalogue):,} items: {self.artefact.path}>"

    @property
    def items(self) -> pl.DataFrame:
        """The catalogue: ``row``, ``item`` (original id), ``title``, training ``count``."""
        return self.catalogue.frame()

    @cached_property
    def excludes_seen(self) -> bool:
        """Whether ``exclude_seen=None`` excludes seen items: if users of the data rarely repeat.

        Raises:
            UsageError: It is not known: the artefact is from an early version of slmc, and its
                dataset is not in the cache.
        """
        from slmc.data.dataset import RARE_REPEATS

        repeats = _valid_repeats(self.artefact)
        if repeats is None:
            raise UsageError(
                f"exclude_seen: {self.artefact.path} does not say how often users repeat an item, "
                "and the dataset that it was made from is not in the cache.",
                "Pass exclude_seen=True or exclude_seen=False.",
            )
        return repeats < RARE_REPEATS

    def recommend(
        self,
        history: Iterable[Any],
        k: int = 10,
        exclude_seen: bool | None = True,
        allow: Iterable[Any] | None = None,
        deny: Iterable[Any] | None = None,
        *,
        unknown: Unknown = "skip",
        empty: Empty = "popular",
    ) -> Recommendations:
        """The k best items for a history.

        Ids that come in as whole numbers or UUIDs come out as such; all others come out as the
        texts of the log.

        Args:
            history: Original ids, oldest first.
            k: Number of items. Fewer are returned if fewer can be recommended.
            exclude_seen: Leave out the items of the history, also those that are too old for the
                model to read. None: as users of the training data do, see :attr:`excludes_seen`.
            allow: Recommend only these items.
            deny: Never recommend these items.
            unknown: ``skip`` leaves ids out that are not in the catalogue, with a warning.
            empty: For a history without a known item: ``popular`` gives the most popular items of
                the training data, ``skip`` none, ``error`` raises.

        Raises:
            UsageError: An argument has a wrong type or value, k is out of range, no item may be
                recommended, an id is unknown or the history is empty and that is an error.

        Example::

            engine = slmc.load("runs/movies")
            for one in engine.recommend([50, 181, 172], k=5):
                print(one.item, one.title, one.score)
        """
        texts, kind = as_texts(history)
        wish = self._wish(k, exclude_seen, allow, deny)
        _check_choice("empty", empty, Empty)
        rows = self._rows(texts, unknown, warn=empty != "popular")
        if not rows and empty == "error":
            raise no_known_id(texts, self.catalogue)
        if not rows and empty == "popular":
            log.warning(
                "none of the ids is in the vocabulary: %s; these are the most popular items. "
                "Ids of the log are, for example, %s",
                shown(texts) or "the list is empty", self.catalogue.example,
            )  # fmt: skip
        if not rows and empty == "skip":
            return Recommendations(())
        if rows:
            items, scores = self._batches.start(Histories.of([rows]), wish)()
            best = items[0][items[0] > 0], scores[0][items[0] > 0]
        else:
            best = popular(self.catalogue, wish)
        kind = kind if self.catalogue.has_kind(kind) else str
        return Recommendations(self._named(best, kind), "model" if rows else "popular")

    def recommend_batch(
        self,
        frame: Any,
        k: int = 10,
        exclude_seen: bool | None = True,
        allow: Iterable[Any] | None = None,
        deny: Iterable[Any] | None = None,
        *,
        user: str | None = None,
        item: str | None = None,
        items: str | None = None,
        time: str | None = None,
        unknown: Unknown = "skip",
        empty: Empty = "popular",
    ) -> Any:
        """The k best items for each user of a data frame.

        The frame has one row per user, with a list of items, or one row per interaction (user,
        item, time). Columns with usual names are found; others are named.

        Args:
            frame: A Polars frame (also lazy) or a pandas frame.
            k: As in :meth:`recommend`, like the other arguments that are not described here.
            exclude_seen: See there.
            allow: See there.
            deny: See there.
            user: Column of users. Without one, a frame of lists gets a column ``row``, from 1.
            item: Column of items, for one row per interaction.
            items: Column of lists of items, for one row per user.
            time: Column of times; without one, rows are in time order.
            unknown: See there.
            empty: See there; ``skip`` leaves the user out.

        Returns:
            A frame of the same library, one row per user in the order of their first row: the
            users, ``items``, ``scores`` and ``titles`` (lists, best first), and ``by``
            (``model`` or ``popular``). Items have the type in which they came in.

        Raises:
            DataError: A column is missing, or cannot be read.
            UsageError: As :meth:`recommend`.
        """
        wish = self._wish(k, exclude_seen, allow, deny)
        _check_choice("empty", empty, Empty)
        table, from_pandas = given_frame(frame)
        columns = find_columns(table.schema, Columns(user, items, item, time), "the frame")
        histories = read_frame(table, columns)
        rows = self.catalogue.rows(histories.ids)
        if (rows == 0).any():
            unique = histories.ids.filter(pl.Series(rows == 0)).unique(maintain_order=True)
            refuse_or_warn(unique.fill_null("null").to_list(), unknown, self.catalogue)
        known, _ = Histories.known(rows, histories.lengths)
        answer = self._batches.start(known, wish)()
        whole = holds_numbers(table.schema, columns) and self.catalogue.has_kind(int)
        answers = as_frame(
            self.catalogue, histories.users, known.lengths, answer, wish,
            int if whole else str, empty, titles=True,
        )  # fmt: skip
        return _to_pandas(answers) if from_pandas else answers

    def embed(self, histories: Iterable[Iterable[Any]]) -> NDArray[np.float32]:
        """The user vector of each history, ``[B, d]``; a score is its product with an item vector.

        Unknown ids are skipped, with a warning.

        Args:
            histories: Lists of original ids, oldest first.

        Raises:
            UsageError: A history has no known id, or there is no history.
        """
        if isinstance(histories, str | bytes) or not isinstance(histories, Iterable):
            raise UsageError(
                f"histories: expected a list of histories, not {histories!r}.",
                'Pass a list of lists, such as [["50", "181"]].',
            )
        rows = [self._rows(as_texts(one)[0], "skip") for one in histories]
        missing = [str(place) for place, one in enumerate(rows) if not one]
        if missing or not rows:
            raise UsageError(
                f"histories without a known id have no vector: number {shown(missing)}, from 0."
                if missing
                else "histories: the list is empty.",
                f"Use ids of the log, for example {self.catalogue.example}.",
            )
        many = Histories.of(rows)
        groups = many.by_length(np.arange(len(rows)), self.ranker.batch)
        newest = (many.padded(group, self.ranker.history) for group in groups)
        vectors: NDArray[np.float32] = np.concatenate([self.ranker.vectors(one) for one in newest])
        return vectors[np.argsort(np.concatenate(groups))]

    def _wish(
        self,
        k: object,
        exclude_seen: bool | None,
        allow: Iterable[Any] | None,
        deny: Iterable[Any] | None,
    ) -> Wish:
        if isinstance(k, bool) or not isinstance(k, Integral):
            raise UsageError(f"k: expected a whole number, not {k!r}.", "Pass a number such as 10.")
        if not isinstance(exclude_seen, bool | None):
            raise UsageError(
                f"exclude_seen: expected True, False or None, not {exclude_seen!r}.",
                "Pass one of these.",
            )
        exclude = self.excludes_seen if exclude_seen is None else exclude_seen
        return Wish(check_k(self.ranker, int(k)), exclude, self.catalogue.mask(allow, deny))

    def _rows(self, texts: Sequence[str], unknown: Unknown, *, warn: bool = True) -> list[int]:
        """Rows of the known ids; with ``warn``, also warns if none is known."""
        row_of = self.catalogue.row_of
        missing = [text for text in texts if text not in row_of]
        if warn or len(missing) < len(texts) or unknown != "skip":
            refuse_or_warn(missing, unknown, self.catalogue)
        return [row_of[text] for text in texts if text in row_of]

    def _named(self, best: Best, kind: type[Id]) -> tuple[Recommendation, ...]:
        convert = {int: int, UUID: UUID}.get(kind, str)
        items, titles = self.catalogue.items, self.catalogue.titles
        return tuple(
            Recommendation(row, convert(items[row - 1]), titles[row - 1], score)
            for row, score in zip(best[0].tolist(), best[1].tolist(), strict=True)
        )

    @cached_property
    def _batches(self) -> Batches:
        return Batches(self.ranker)


class Recommender(Served):
    """A model in PyTorch; :func:`slmc.load` opens it."""


class Engine(Served):
    """An engine in ONNX Runtime; :func:`slmc.load` opens it. PyTorch is not imported."""


def refuse_or_warn(ids: Sequence[str], unknown: Unknown, catalogue: Catalogue) -> None:
    """Warn of ids that are not in the catalogue, or raise ``UsageError`` if ``unknown`` says so."""
    _check_choice("unknown", unknown, Unknown)
    if ids and unknown == "error":
        raise UsageError(
            f"ids that are not in the vocabulary: {shown(ids)}.",
            f"Use the ids of the log, for example {catalogue.example}, or set unknown to skip.",
        )
    if ids:
        log.warning("skipped ids that are not in the vocabulary: %s", shown(ids))


def no_known_id(ids: Sequence[str], catalogue: Catalogue) -> UsageError:
    """The error for a history without a known id."""
    return UsageError(
        f"none of the ids is in the vocabulary: {shown(ids) or 'the list is empty'}.",
        f"Use the ids of the log, for example {catalogue.example}.",
    )


def _valid_repeats(artefact: Artefact) -> float | None:
    """Share of the validation targets that repeat an item of the history; None if unknown."""
    stored = json.loads(artefact.file("preprocessor.json").read_text()).get("valid_repeats")
    if stored is not None:
        return float(stored)
    # Artefacts of early versions do not have it, but their datasets do.
    from slmc.pipeline import find

    digest = artefact.manifest.parents.get("data")
    dataset = find(digest) if digest is not None else None
    repeats = None if dataset is None else dataset.manifest.metrics.get("valid_repeats")
    return None if repeats is None else float(repeats)


def _check_choice(name: str, value: object, choices: Any) -> None:
    allowed: tuple[str, ...] = choices.__args__
    if value not in allowed:
        raise UsageError(
            f"{name}: expected {' or '.join(map(repr, allowed))}, not {value!r}.",
            "Pass one of these.",
        )


def _to_pandas(answers: pl.DataFrame) -> Any:
    """A pandas frame with lists as objects; needs no pyarrow."""
    import pandas

    return pandas.DataFrame({name: answers[name].to_list() for name in answers.columns})
