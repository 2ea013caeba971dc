"""Ids of a log: which stand for a missing value, which cannot be told apart, which are doubtful.

An id is a text. All checks are of the different ids of a column, not of its rows.
"""

import logging

import polars as pl

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
"""Ids of a token's shape that must stand beside it, for it to be an id and no missing value."""
SHORTENED = r"^[+-]?(?:[0-9]\.[0-9]+[eE]\+?|[0-9][eE]\+)(?:1[6-9]|[2-9][0-9]|[0-9]{3,})$"
"""A number of 17 digits or more as a float is written: its last digits are lost."""


def faults(ids: pl.Series, name: str) -> dict[str, str]:
    """Which of a column's ids are none, and why.

    A token for a missing value is an id where it is a word and at least half of the column's
    other ids are words of the same length and case (``NA`` among country codes, ``NAN`` among
    airports); that is warned of.

    Args:
        ids: The different ids of a column, as texts.
        name: The column, for messages.
    """
    lower = ids.str.to_lowercase()
    missing = ids.filter(lower.is_in(list(MISSING))).to_list()
    others = ids.filter(~lower.is_in(list(MISSING)))
    reasons = {}
    for token in missing:
        alike = _alike(token, others)
        if alike.len() >= max(LOOKALIKES, others.len() / 2):
            log.warning(
                "%s %s is taken as an id, because most ids there look like it (%s): "
                "leave the field empty where it stands for a missing value",
                name, token, ", ".join(alike.sort().head(LOOKALIKES)),
            )  # fmt: skip
        else:
            reasons[token] = f"{name} is {token or 'empty'}"
    infinite = ids.filter(lower.is_in(list(INFINITE)))
    reasons |= {token: f"{name} is {token}, which is no id" for token in infinite}
    shortened = ids.filter(ids.str.contains(SHORTENED))
    return reasons | {
        token: f"{name} is {token}: a float has lost the last digits" for token in shortened
    }


def warn_of_two_spellings(ids: pl.Series, name: str) -> None:
    """Warn of ids that are written with and without ``.0``, and are taken for different ones."""
    spelt = ids.filter(ids.str.contains(r"^[+-]?[0-9]+\.0*$"))
    plain = spelt.str.replace(r"\.0*$", "")
    twice = plain.filter(plain.is_in(ids.implode()))
    if not twice.is_empty():
        example, count = twice.sort()[0], twice.n_unique()
        other = spelt.filter(plain == example)[0]
        log.warning(
            "%s: %s in two ways, such as %s and %s, and taken for two: write it in one way",
            name, "1 id is written" if count == 1 else f"{count} ids are each written",
            example, other,
        )  # fmt: skip


def _alike(token: str, others: pl.Series) -> pl.Series:
    """Other ids that are words as the token is: letters alone, as many, of the same case."""
    if not token.isalpha():
        return others.clear()
    case = "[A-Z]" if token.isupper() else "[a-z]" if token.islower() else "[A-Za-z]"
    return others.filter(others.str.contains(f"^{case}{{{len(token)}}}$"))
