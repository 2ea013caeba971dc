"""Histories in every form that ``slmc score`` reads, and its answers."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

HISTORIES: dict[str, list[int]] = {
    "a": [101, 102],
    "b": [140, 139, 138, 137, 136, 135, 134, 133],
    "c": [],
    "d": [105, 999],
    "e": [999],
}
"""Longer than the model reads, empty, with an unknown item, and with nothing else."""


def lists(users: list[Any] | None = None) -> pl.DataFrame:
    return pl.DataFrame({"user": users or [*HISTORIES], "items": [*HISTORIES.values()]})


def interactions() -> pl.DataFrame:
    """Without users c (no row); the newest rows first, users alternating."""
    rows = [
        (user, item, 1_700_000_000 + place)
        for user, items in HISTORIES.items()
        for place, item in enumerate(items)
    ]
    names = ["user_id", "item_id", "timestamp"]
    return pl.DataFrame(rows, schema=names, orient="row").sort("timestamp", descending=True)


def as_lists(answer: pl.DataFrame) -> dict[str, list[int]]:
    user = answer.columns[0]
    found = zip(answer[user].to_list(), answer["items"].to_list(), strict=True)
    return {str(one): [int(item) for item in items] for one, items in found}


def write(frame: pl.DataFrame, file: Path) -> None:
    texts = frame.with_columns(pl.col(pl.List).cast(pl.List(pl.String)).list.join(" "))
    if file.name.endswith(".jsonl.gz"):
        file.write_bytes(gzip.compress(frame.write_ndjson().encode()))
    elif file.suffix == ".jsonl":
        frame.write_ndjson(file)
    elif file.suffix == ".csv":
        texts.write_csv(file)
    elif file.suffix == ".tsv":
        texts.write_csv(file, separator="\t")
    elif file.suffix == ".txt":
        lines = (f"{user} {items}".strip() for user, items in texts.iter_rows())
        file.write_text("\n".join(lines) + "\n")
    else:
        frame.write_parquet(file)


def many(file: Path, users: int) -> None:
    rng = np.random.default_rng(1)
    lists = [rng.integers(101, 141, 1 + user % 7).tolist() for user in range(users)]
    pl.DataFrame({"user": range(users), "items": lists}).write_parquet(file)
