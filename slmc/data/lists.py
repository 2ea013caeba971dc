"""Lists that a file without lists writes as texts."""

import polars as pl

from slmc.errors import DataError


def split_lists(texts: pl.Series, what: str, separator: str | None = None) -> pl.Series:
    """Lists of ids that are written as texts: JSON arrays, or ids between separators.

    Args:
        texts: One list per row.
        what: The table, for messages.
        separator: Separator of ids; None for blanks.

    Raises:
        DataError: A text that begins like a JSON array is none.
    """
    as_json = texts.str.starts_with("[").fill_null(False)
    if separator is None:
        ids = texts.str.extract_all(r"\S+")
    else:
        parts = texts.str.split(separator).list.eval(pl.element().str.strip_chars())
        ids = parts.list.eval(pl.element().filter(pl.element() != ""))
    if not as_json.any():
        return ids
    try:
        arrays = texts.zip_with(as_json, texts.clear().extend_constant(None, texts.len()))
        return ids.zip_with(~as_json, arrays.str.json_decode(pl.List(pl.String)))
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{what}: column {texts.name!r} has a broken JSON array ({reason}).",
            "Write arrays of ids, such as [1, 2], or ids between blanks.",
        ) from None
