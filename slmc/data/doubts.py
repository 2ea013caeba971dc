"""Warnings of ids that are probably not what they seem: two spellings of one id, marks, guests.

The rows are kept as they are, because such ids may be real.
"""

import logging
from collections.abc import Mapping

import polars as pl

from slmc.data.ids import Ids

log = logging.getLogger("slmc.data")

INVISIBLE = r"[\u00ad\u200b-\u200f\u2060\ufeff]"
"""Soft hyphen, characters of no width, marks of direction, byte order mark."""
LOOKS = "written with other characters that look the same"
CASE_SHARE = 0.01
"""Share of ids that differ only by case from which on a warning is logged: ids of random letters
(``aB3`` and ``ab3``) do so rarely."""
MARKS = {'="…"': r'^=".*"$', "'…'": r"^'.*'$"}
"""Marks around an id that spreadsheets and databases write to say that it is text."""
MANY_ROWS = 0.05
"""Share of the rows of one user from which on a warning is logged."""
MANY_TIMES = 10
"""Multiple of the mean of the other users from which on it is."""


def warn_of_two_spellings(ids: pl.Series, name: str) -> None:
    """Warn of ids that are written in two ways, and count as different ids.

    Args:
        ids: The different ids of a column, as texts.
        name: The column, for messages.
    """
    ids = ids.drop_nulls()
    spelt = ids.filter(ids.str.contains(r"^[+-]?[0-9]+\.0*$"))
    _warn(ids, spelt.str.replace(r"\.0*$", ""), spelt, name, "written in two ways")
    spelt = ids.filter(ids.str.contains(r"^0[0-9]+$"))
    _warn(
        ids, spelt.str.replace(r"^0+([0-9])", "$1"), spelt, name, "written with and without zeros"
    )
    wide = ids.filter(ids.str.len_bytes() > ids.str.len_chars())
    plain = wide.str.replace_all(INVISIBLE, "").str.normalize("NFC")
    _warn(ids, plain.filter(plain != wide), wide.filter(plain != wide), name, LOOKS)
    cased = ids.to_frame("id").with_columns(lower=pl.col("id").str.to_lowercase())
    cased = cased.filter(pl.col("lower").is_duplicated())
    if cased.height >= max(2, CASE_SHARE * ids.len()):
        first = cased.filter(pl.col("lower") == cased["lower"].min())["id"].sort()
        _say(name, cased["lower"].n_unique(), "written in two cases", first[1], first[0])


def warn_of_marks(ids: pl.Series, name: str) -> None:
    """Warn of a column in which most ids stand in marks that are not part of them.

    Args:
        ids: The different ids of a column, as texts.
        name: The column, for messages.
    """
    ids = ids.drop_nulls()
    for mark, pattern in MARKS.items():
        marked = ids.filter(ids.str.contains(pattern))
        if 2 * marked.len() > ids.len():
            log.warning(
                "%s: %d of %d ids are written as %s, such as %s; the marks count as part of the "
                "id. Leave them out if they are not",
                name, marked.len(), ids.len(), mark, marked[0],
            )  # fmt: skip


def _warn(ids: pl.Series, plain: pl.Series, spelt: pl.Series, name: str, how: str) -> None:
    """Warn of ids whose plain form is another id.

    Args:
        ids: All ids.
        plain: The plain forms of some.
        spelt: These ids as they are.
        name: The column.
        how: How the two are written.
    """
    twice = pl.DataFrame({"plain": plain, "id": spelt})
    twice = twice.filter(pl.col("plain").is_in(ids.implode())).sort("plain", "id")
    if twice.height:
        _say(name, twice["plain"].n_unique(), how, *twice.row(0))


def _say(name: str, count: int, how: str, example: str, other: str) -> None:
    shown = (ascii(example), ascii(other)) if how == LOOKS else (example, other)
    log.warning(
        "%s: %s %s, such as %s and %s; they count as different ids. Write each id in one way",
        name, "1 id is" if count == 1 else f"{count} ids are each", how, *shown,
    )  # fmt: skip


def warn_of_one_for_many(ids: Mapping[str, Ids], names: Mapping[str, str]) -> None:
    """Warn of a user with so many rows that it may stand for all guests, or be a program."""
    users = ids["user"]
    total, number = int(users.rows.sum()), users.used
    if number < 2:
        return
    code = int(users.rows.argmax())
    most = int(users.rows[code])
    if most >= MANY_ROWS * total and most >= MANY_TIMES * (total - most) / (number - 1):
        log.warning(
            "%s %s has %d of %d rows (%.0f %%), %.0f times the mean of the others: if it stands "
            "for guests without an id, or for a program, leave these rows out",
            names["user"], users.text_of(code), most, total, 100 * most / total,
            most * (number - 1) / (total - most),
        )  # fmt: skip
