"""Recommend in Spark: a function for ``DataFrame.mapInPandas``, and its schema.

Nothing of Spark is imported here: the function gets frames of pandas from Spark's Python workers,
and the schema is a text.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import polars as pl

from slmc.errors import ArtefactError, DataError, UsageError
from slmc.serving.answers import Empty
from slmc.serving.catalogue import as_texts
from slmc.serving.frames import Columns, find_columns
from slmc.serving.opening import load
from slmc.serving.ranking import check_k
from slmc.serving.recommender import Served, Unknown

TYPES: dict[str, pl.DataType] = {
    "tinyint": pl.Int8(), "smallint": pl.Int16(), "int": pl.Int32(), "bigint": pl.Int64(),
    "string": pl.String(),
}  # fmt: skip
"""Types of Spark that hold ids."""


@dataclass(frozen=True)
class Recommend:
    """Maps frames with one row per user to frames with the best items of each."""

    engine: str
    """Folder of the engine or model; each executor reads it there."""
    digest: str
    schema: str
    """Columns and types of the result, as Spark writes them."""
    columns: Columns
    types: dict[str, str]
    """Column -> type, as Spark writes it; of users and of lists."""
    whole: bool
    """Whether items of the result are integers."""
    k: int
    exclude_seen: bool
    allow: tuple[str, ...] | None
    deny: tuple[str, ...] | None
    unknown: Unknown
    empty: Empty
    threads: int

    def __call__(self, frames: Iterator[Any]) -> Iterator[Any]:
        """What Spark calls for each partition: frames of pandas in, and as many out."""
        served = _opened(self.engine, self.digest, self.threads)
        for frame in frames:
            yield self._answers(served, frame)

    def _answers(self, served: Served, frame: Any) -> Any:
        import pyarrow

        columns = []
        for name, kind in self.types.items():
            listed = kind.startswith("array<")
            inner = pyarrow.string() if kind.endswith("string>") else pyarrow.int64()
            given = pyarrow.Array.from_pandas(
                frame[name], type=pyarrow.list_(inner) if listed else None
            )
            series = pl.Series(name, pl.from_arrow(given))
            columns.append(series if listed else series.cast(TYPES[kind]))
        answers = served.recommend_batch(
            pl.DataFrame(columns), self.k, self.exclude_seen, self.allow, self.deny,
            user=self.columns.user, items=self.columns.items, unknown=self.unknown,
            empty=self.empty,
        ).drop("titles")  # fmt: skip
        item = pl.Int64 if self.whole else pl.String
        return answers.with_columns(pl.col("items").cast(pl.List(item))).to_pandas()


def recommender(
    engine: str,
    frame: Any,
    k: int = 10,
    exclude_seen: bool = False,
    allow: Iterable[Any] | None = None,
    deny: Iterable[Any] | None = None,
    *,
    user: str | None = None,
    items: str | None = None,
    unknown: Unknown = "skip",
    empty: Empty = "popular",
    threads: int = 1,
) -> Recommend:
    """A function for ``DataFrame.mapInPandas``, which recommends to the users of a data frame.

    The result has one row per user: the user, ``items`` and ``scores`` (lists, best first), and
    ``by`` (``model`` or ``popular``), the same rows as those of ``slmc score``. Each Python worker
    of Spark opens the engine once.

    Args:
        engine: Folder of an engine, a model or a run; the executors read it at the same path.
        frame: The data frame that will be mapped; only its schema is read.
        k: Items per user.
        exclude_seen: Whether to leave out all items of the history.
        allow: Recommend only these items.
        deny: Never recommend these items.
        user: Column of users; by default it is found by its name.
        items: Column of lists of items, oldest first; by default it is found.
        unknown: ``skip`` leaves items out that are not in the catalogue; ``error`` fails.
        empty: For users without a known item: ``popular``, ``skip`` or ``error``.
        threads: Cores of each Python worker.

    Raises:
        ArtefactError: There is no engine or model.
        DataError: The frame has no column of users or of lists of items, or one of another type.
        UsageError: Another argument does not fit.

    Example::

        recommend = slmc.spark.recommender("runs/mine", histories, k=10)
        top = histories.mapInPandas(recommend, recommend.schema)
    """
    if not hasattr(getattr(frame, "schema", None), "fields"):
        raise UsageError(
            f"frame: expected a data frame of Spark, not {type(frame).__name__}.",
            "Pass the frame that mapInPandas will map.",
        )
    types = {field.name: field.dataType.simpleString() for field in frame.schema.fields}
    columns = _columns(types, Columns(user, items))
    served = load(engine, threads=threads)
    listed = types[columns.items or ""]
    whole = listed != "array<string>" and served.catalogue.has_kind(int)
    used = {name: types[name] for name in columns.named.values()}
    result = (
        f"`{columns.user}` {types[columns.user or '']}, "
        f"items array<{'bigint' if whole else 'string'}>, scores array<float>, `by` string"
    )
    return Recommend(
        str(served.artefact.path.resolve()), served.artefact.digest, result, columns, used, whole,
        check_k(served.ranker, k), exclude_seen, _texts(allow, "allow"), _texts(deny, "deny"),
        unknown, empty, threads,
    )  # fmt: skip


def _columns(types: dict[str, str], named: Columns) -> Columns:
    schema: dict[str, pl.DataType] = {
        name: pl.List(pl.String()) if kind.startswith("array<") else TYPES.get(kind, pl.Null())
        for name, kind in types.items()
    }
    columns = find_columns(schema, named, "the frame")
    listed, owner = types.get(columns.items or ""), types.get(columns.user or "")
    if columns.items is None or listed not in {f"array<{kind}>" for kind in TYPES}:
        raise DataError(
            f"the frame: no column holds lists of items; it has {_shown(types)}.",
            "Make lists: groupBy(user) and collect_list, as in the documentation, or name items.",
        )
    if owner not in TYPES:
        raise DataError(
            f"the frame: no column holds users as texts or integers; it has {_shown(types)}.",
            "Name it: user.",
        )
    return columns


def _shown(types: dict[str, str]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in types.items())


def _texts(ids: Iterable[Any] | None, role: str) -> tuple[str, ...] | None:
    return None if ids is None else tuple(as_texts(ids, role, ordered=False)[0])


@lru_cache(maxsize=2)
def _opened(engine: str, digest: str, threads: int) -> Served:
    """The engine, opened once per process."""
    served = load(engine, threads=threads)
    if served.artefact.digest != digest:
        raise ArtefactError(
            f"{engine} is another artefact on this machine than where the job was started.",
            "Name a folder that all machines share.",
        )
    return served
