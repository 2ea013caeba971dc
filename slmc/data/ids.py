"""Check the ids of a log: missing values, rounded numbers, and two spellings of an id.

An id is a text. Each different id of a column is checked once.
"""

import logging
import re
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

log = logging.getLogger("slmc.data")

MISSING = frozenset({
    "", "nan", "-nan", "+nan", "null", "none", "nil", "nat", "na", "n/a", "#n/a", "#na", "#n/a n/a",
    "<na>", "<null>", "(null)", "[null]", "{null}", "\\n", "#null!", "undefined", "1.#qnan",
    "-1.#qnan", "1.#ind", "-1.#ind",
})  # fmt: skip
"""Texts (in any case) that programs write for a missing value."""
INFINITE = frozenset({"inf", "+inf", "-inf", "infinity", "+infinity", "-infinity"})
"""Texts (in any case) that programs write for an infinite number."""
LOOKALIKES = 3
"""Least number of ids that look like a missing value for it to be read as an id itself."""
SHORTENED = r"^[+-]?(?:[0-9]\.[0-9]+[eE]\+?|[0-9][eE]\+)(?:1[6-9]|[2-9][0-9]|[0-9]{3,})$"
"""A number of 17 digits or more as a float prints it: its last digits are lost."""

ROUNDED = r"^[+-]?[0-9][.,]([0-9]+)[eE]\+0*([0-9]{1,3})$"
"""A number with an exponent as spreadsheets print it; its groups are decimals and exponent."""


class Ids:
    """The different ids of a column: their texts, and how many good rows each has.

    Rows hold the physical codes of polars' categories, 4 bytes each.
    """

    def __init__(self) -> None:
        """Start without ids."""
        self.rows = np.zeros(0, dtype=np.int64)
        """Code -> good rows."""
        self._known = np.zeros(0, dtype=np.bool_)
        self._categories: list[pl.Series] = []

    def add(self, column: pl.Series) -> pl.Series:
        """Add the categories of a column; return their codes, ``[N]`` UInt32, null for null."""
        codes = column.to_physical()
        different = column.unique().drop_nulls()
        numbers = different.to_physical().to_numpy()
        self._known = _grown(self._known, int(numbers.max(initial=0)) + 1)
        new = ~self._known[numbers]
        if new.any():
            self._known[numbers] = True
            self._categories.append(different.filter(pl.Series(new)))
        return codes

    def count(self, codes: pl.Series) -> None:
        """Count good rows."""
        counted = np.bincount(codes.to_numpy())
        self.rows = _grown(self.rows, counted.size)
        self.rows[: counted.size] += counted

    @property
    def used(self) -> int:
        """Number of ids with good rows."""
        return int(np.count_nonzero(self.rows))

    def texts(self) -> pl.Series:
        """Return the texts of all ids."""
        return self._all().cast(pl.String)

    def text_of(self, code: int) -> str:
        """Return the text of the id with a code."""
        everything = self._all()
        return str(everything.filter(everything.to_physical() == code).cast(pl.String)[0])

    def codes_of(self, reasons: dict[str, str]) -> dict[int, str]:
        """Return the codes of some ids, each with what ``reasons`` says of it."""
        everything = self._all()
        chosen = everything.filter(everything.cast(pl.String).is_in([*reasons]))
        return {
            code: reasons[text]
            for code, text in zip(chosen.to_physical(), chosen.cast(pl.String), strict=True)
        }

    def sorted(self) -> tuple[NDArray[np.uint32], pl.Series]:
        """Return code -> place, and the texts of ids with good rows, sorted by code points."""
        everything = self._all()
        codes = everything.to_physical().to_numpy()
        size = int(codes.max(initial=0)) + 1
        used = codes[_grown(self.rows, size)[codes] > 0]
        texts = pl.Series(used).cat.to(pl.Categorical()).cast(pl.String)
        order = texts.arg_sort()
        places = np.zeros(size, dtype=np.uint32)
        places[used[order.to_numpy()]] = np.arange(used.size, dtype=np.uint32)
        return places, texts.gather(order)

    def _all(self) -> pl.Series:
        return pl.concat([pl.Series([], dtype=pl.Categorical()), *self._categories])


def _grown(array: NDArray[Any], size: int) -> NDArray[Any]:
    """Return an array of at least ``size`` entries, with zeros at the end."""
    if size <= array.size:
        return array
    grown = np.zeros(max(size, array.size * 2), dtype=array.dtype)
    grown[: array.size] = array
    return grown


def invalid(ids: pl.Series, name: str) -> dict[str, str]:
    """Return the invalid ids of a column, each with the reason.

    A token for a missing value is valid if it is a word and at least half of the column's other
    ids are words of the same length and case (``NA`` among country codes, ``NAN`` among airports).
    A warning is logged for it.

    Args:
        ids: The different ids of a column, as texts.
        name: The column, for messages.
    """
    lower = ids.str.to_lowercase()
    missing = ids.filter(lower.is_in(list(MISSING))).to_list()
    others = ids.filter(~lower.is_in(list(MISSING)))
    reasons = {}
    for token in missing:
        similar = _similar(token, others)
        if similar.len() >= max(LOOKALIKES, others.len() / 2):
            log.warning(
                "%s %s is read as an id, because most ids of the column look like it (%s): "
                "leave the field empty where it means a missing value",
                name, token, ", ".join(similar.sort().head(LOOKALIKES)),
            )  # fmt: skip
        else:
            reasons[token] = f"{name} is {token or 'empty'}"
    infinite = ids.filter(lower.is_in(list(INFINITE)))
    reasons |= {token: f"{name} is {token}, which is not an id" for token in infinite}
    shortened = ids.filter(ids.str.contains(SHORTENED))
    reasons |= {
        token: f"{name} is {token}: the last digits are lost, since it was stored as a float"
        for token in shortened
    }
    rounded = [*filter(lost_digits, ids.filter(ids.str.contains(ROUNDED)))]
    if rounded:  # then 4E+12 is rounded, too
        rounded += ids.filter(ids.str.contains(r"^[+-]?[0-9][eE]\+[0-9]+$")).to_list()
    return reasons | {
        token: f"{name} is {token}: the last digits are lost, as when a spreadsheet saves a long "
        "number; export the column as text"
        for token in rounded
        if token not in reasons
    }


def lost_digits(text: str) -> bool:
    """Return whether a number such as ``4.00638E+12`` has fewer digits than it stands for.

    Spreadsheets and ``%g`` print large numbers so. (Java prints ``1.2345678E7``, without a plus
    sign and with all digits.)
    """
    match = re.fullmatch(ROUNDED, text)
    return match is not None and int(match[2]) > len(match[1])


def _similar(token: str, others: pl.Series) -> pl.Series:
    """Return the other ids that are words of the same length and case as the token."""
    if not token.isalpha():
        return others.clear()
    case = "[A-Z]" if token.isupper() else "[a-z]" if token.islower() else "[A-Za-z]"
    return others.filter(others.str.contains(f"^{case}{{{len(token)}}}$"))
