"""Check the ids of a log: missing values, rounded numbers, and two spellings of an id.

An id is a text. Each different id of a column is checked once.
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
"""Least number of ids that look like a missing value for it to be read as an id itself."""
SHORTENED = r"^[+-]?(?:[0-9]\.[0-9]+[eE]\+?|[0-9][eE]\+)(?:1[6-9]|[2-9][0-9]|[0-9]{3,})$"
"""A number of 17 digits or more as a float prints it: its last digits are lost."""


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
    return reasons | {
        token: f"{name} is {token}: the last digits are lost, since it was stored as a float"
        for token in shortened
    }


def warn_of_two_spellings(ids: pl.Series, name: str) -> None:
    """Warn of ids that are written both with and without ``.0``, and count as different ids."""
    spelt = ids.filter(ids.str.contains(r"^[+-]?[0-9]+\.0*$"))
    plain = spelt.str.replace(r"\.0*$", "")
    twice = plain.filter(plain.is_in(ids.implode()))
    if not twice.is_empty():
        example, count = twice.sort()[0], twice.n_unique()
        other = spelt.filter(plain == example)[0]
        log.warning(
            "%s: %s in two ways, such as %s and %s; they count as different ids. Write each id in "
            "one way",
            name, "1 id is written" if count == 1 else f"{count} ids are each written",
            example, other,
        )  # fmt: skip


def _similar(token: str, others: pl.Series) -> pl.Series:
    """Return the other ids that are words of the same length and case as the token."""
    if not token.isalpha():
        return others.clear()
    case = "[A-Z]" if token.isupper() else "[a-z]" if token.islower() else "[A-Za-z]"
    return others.filter(others.str.contains(f"^{case}{{{len(token)}}}$"))
