"""Refuse texts that are no log as they are, each with what to do.

They are JSON over several lines, Python dictionaries, pointers of Git LFS, and web pages.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from slmc.errors import DataError

CONVERT = (
    "python -c 'import ast, json, sys; [print(json.dumps(ast.literal_eval(line))) "
    "for line in sys.stdin]'"
)
"""A command that reads Python dictionaries and writes JSON lines."""
SHOWN_NAMES = 3


def refuse_other_texts(path: Path, lines: Sequence[str]) -> None:
    """Raise :class:`DataError` for a pointer of Git LFS and for a web page.

    Args:
        path: The file, for messages.
        lines: Its first lines, without blank ones.
    """
    first = lines[0].lstrip().lower()
    if first.startswith("version https://git-lfs"):
        raise DataError(
            f"{path} is a pointer of Git LFS, not the file itself.",
            "Fetch the file: `git lfs pull`.",
        )
    if first.startswith(("<!doctype", "<html")):
        raise DataError(
            f"{path} is a web page, perhaps an error of the server it was downloaded from.",
            "Download the file again, and look at it.",
        )


def refuse_documents(path: Path, lines: Sequence[str]) -> None:
    """Raise :class:`DataError` for JSON that is not one object per line; arguments as above."""
    text = "\n".join(lines[:2]).lstrip()
    first = lines[0].strip()
    convert = "Write it as JSON lines: `{} FILE > log.jsonl`.".format
    if isinstance(row := _json(first), list) and row and not isinstance(row[0], dict | list):
        names = [f"a{number}: .[{number}]" for number in range(min(len(row), SHOWN_NAMES))]
        what, remedy = "a JSON array on each line", convert(f"jq -c '{{{', '.join(names)}}}'")
    elif re.match(r"\[\s*[\[{]", text):
        what, remedy = "one JSON array", convert("jq -c '.[]'")
    elif first == "{":
        what, remedy = "JSON over several lines", convert("jq -c '.'")
    elif re.match(r"\{[^\n]*\}\s*\{", first) and _is_one_after_the_other(first):
        what, remedy = "JSON objects without line ends between them", convert("jq -c '.'")
    elif re.match(r"\{\s*u?'[^']*'\s*:", first):
        raise DataError(
            f"{path} holds Python dictionaries, not JSON lines (their quotes are others).",
            f"Write them as JSON lines: `{CONVERT} < FILE > log.jsonl`.",
        )
    else:
        return
    raise DataError(f"{path} is {what}, not JSON lines (one object on each line).", remedy)


def _json(text: str) -> object:
    try:
        return json.loads(text) if text.startswith("[") else None
    except (ValueError, RecursionError):
        return None


def _is_one_after_the_other(text: str) -> bool:
    """Return whether a text begins with one JSON object and the beginning of another."""
    try:
        row, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and text[end:].lstrip().startswith("{")
