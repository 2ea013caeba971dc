"""Names of the engine's inputs and outputs, and of values that passes find by name.

Letters: B histories, V items, d item width.
"""

from collections.abc import Sequence
from typing import Any

INPUT, TOP_ITEMS, TOP_SCORES = "item_ids", "top_items", "top_scores"
EXCLUDE_SEEN, ALLOWED = "exclude_seen", "allowed"
"""Further inputs of the graph with masks: bool ``[1 or B]``, and bool ``[1 or B, V + 1]``;
``[false]`` and ``[[true]]`` where no mask is wanted."""
HISTORIES, NUMBER, FIRST = "histories", "number_of_histories", "first_history"
"""Values inside the graph: the rows that the decoder sees, the number of histories in the request,
and 0."""
SCORES, USER_VECTORS = "scores", "user_vectors"
"""Values inside the graph: ``[B, V + 1]``, and ``[B, d]``."""
ALL_SCORES = "all_scores"
"""Replaces the scores where the best of them are computed again: ``[B, V + 1]`` or longer, with
noise in column 0 and in columns after V."""


def extra_outputs(requested: Sequence[str], rows: int, width: int | str) -> dict[str, list[Any]]:
    """Return the outputs in addition to the best items: name -> [type, shape]."""
    widths = {SCORES: rows, USER_VECTORS: width}
    return {name: ["float32", ["batch", widths[name]]] for name in requested if name in widths}
