"""Gates that make no sense are refused when they are read."""

from typing import Any

import pytest
from pydantic import ValidationError

from slmc.evaluation.gates import Gate


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (
            {"metric": "auc", "min": 0.5},
            "there is no metric 'auc' to gate; there are hr@K, ndcg@K, ndcg, mrr, ce, "
            "ce_calibrated, overlap@K, size_mb",
        ),
        (
            {"metric": "overlap@21", "baseline": "source", "min": 0.5},
            "overlap@21: an evaluation stores only the 20 best items",
        ),
        (
            {"metric": "mrr"},
            "a gate on mrr takes max_drop or min, and has none",
        ),
        (
            {"metric": "mrr", "max": 0.5},
            "a gate on mrr takes max_drop or min, and has max",
        ),
        (
            {"metric": "mrr", "baseline": "teach", "max_drop": "1%", "min": 0.1},
            "a gate on mrr takes max_drop or min, and has max_drop and min",
        ),
        (
            {"metric": "ce", "min": 0.5},
            "a gate on ce takes max_drop or max, and has min",
        ),
        (
            {"metric": "overlap@10", "baseline": "source", "max_drop": "1%"},
            "a gate on overlap@10 takes min, and has max_drop",
        ),
        (
            {"metric": "ce", "baseline": "teach", "max_drop": "3%"},
            "3% of ce would pass models that rank far worse; give a budget in nats, such as 0.02",
        ),
        ({"metric": "mrr", "max_drop": "1%"}, "max_drop needs a baseline"),
        (
            {"metric": "overlap@10", "min": 0.9},
            "overlap@10 needs a baseline to compare the top lists with",
        ),
        (
            {"metric": "mrr", "min": 0.1, "baseline": "teach"},
            "a gate on mrr with min or max takes no baseline",
        ),
        (
            {"metric": "size_mb", "max": 1, "baseline": "teach"},
            "a gate on size_mb with min or max takes no baseline",
        ),
        (
            {"metric": "size_mb", "max": 1, "segment": "cold-users"},
            "size_mb is not measured per user, so it has no segment cold-users",
        ),
    ],
)
def test_gates_that_make_no_sense(gate: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Gate(**gate)
    assert [error["msg"] for error in caught.value.errors()] == [f"Value error, {message}"]
