"""The files of ``--allow`` and ``--deny``: ids of items."""

import polars as pl

from slmc.data.files import has_parquet_magic, line_blocks
from slmc.data.formats import parquet_errors
from slmc.data.sources import fetch
from slmc.errors import DataError
from slmc.serving.frames import Columns, find_columns, text_of


def read_ids(name: str, option: str) -> list[str]:
    """The ids of a file for ``--allow`` or ``--deny``: one per line, or a table's item column.

    Raises:
        DataError: The file cannot be read, or has no column of items.
    """
    ids: list[str] = []
    for path in fetch(name):
        if not has_parquet_magic(path):
            for lines in line_blocks(path):
                if lines.malformed:
                    line, _, reason = lines.malformed[0]
                    raise DataError(f"{path}, line {line}: {reason}.", f"Fix {option}.")
                ids += lines.filled["text"].str.strip_chars().to_list()
            continue
        with parquet_errors(path):
            frame = pl.read_parquet(path)
        if frame.width == 1:
            column = frame.columns[0]
        else:
            found = find_columns(frame.schema, Columns(user=frame.columns[0]), str(path))
            column = found.item or found.items or ""
        ids += [one for one in text_of(frame[column], str(path)).to_list() if one]
    return ids
