"""What happens to an exported graph before it is written: each pass changes a model in place.

The graph that torch gives carries stack traces with paths of the machine, and the item table
twice; both go. Letters: B histories, V items, d item width.
"""

from collections.abc import Sequence
from typing import Any

INPUT, TOP_ITEMS, TOP_SCORES = "item_ids", "top_items", "top_scores"
EXCLUDE_SEEN, ALLOWED = "exclude_seen", "allowed"
"""Further inputs of the graph with masks: bool ``[1 or B]``, and bool ``[1 or B, V + 1]``; where
nothing is asked for, ``[false]`` and ``[[true]]``."""
HISTORIES, NUMBER, FIRST = "histories", "number_of_histories", "first_history"
"""Values inside the graph: the rows that the decoder sees, how many histories were given, and 0."""
SCORES, USER_VECTORS = "scores", "user_vectors"
"""Values inside the graph: ``[B, V + 1]``, and ``[B, d]``."""
ALL_SCORES = "all_scores"
"""What takes the place of the scores where the best of them are computed again: ``[B, V + 1]`` or
longer, with noise at row 0 and behind V."""


def more_outputs(asked: Sequence[str], rows: int, width: int) -> dict[str, list[Any]]:
    """Type and shape of what is given out beside the best items: name -> [type, shape]."""
    known = {SCORES: rows, USER_VECTORS: width}
    return {name: ["float32", ["batch", known[name]]] for name in asked if name in known}
