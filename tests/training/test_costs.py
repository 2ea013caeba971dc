"""How many users a validation ranks where the softmax is sampled."""

import logging
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from slmc.model.sasrec import Sasrec, SasrecModelConfig
from slmc.training.costs import LEAST_USERS, PER_SCORE, VALIDATION_SHARE, Costs
from slmc.training.softmax import Softmax

ITEMS, WIDTH, HISTORY, ROWS = 200_000, 8, 10, 4


def costs(users: int, negatives: int = 1_000) -> Costs:
    """Of a small SASRec and users with 11 items each: 10 tokens to train on."""
    model = Sasrec(SasrecModelConfig(num_items=ITEMS, item_dim=WIDTH, history=HISTORY))
    sequences = [np.ones(11, dtype=np.int32)] * users
    data = SimpleNamespace(num_items=ITEMS, history=HISTORY, train_sequences=lambda: sequences)
    return Costs(model, cast(Any, data), Softmax(ITEMS, negatives), ROWS)


def test_costs_are_counted_by_hand() -> None:
    counted = costs(3)
    layers = HISTORY * WIDTH + 2 * (2 * 2 * WIDTH + 3 * WIDTH * (WIDTH + 1) + WIDTH * (WIDTH + 1))
    layers += 2 * (4 * WIDTH * (WIDTH + 1) + WIDTH * (4 * WIDTH + 1)) + 2 * WIDTH
    assert counted.tokens == 30
    assert counted.per_history_item == 2 * layers
    assert counted.per_token == 6 * layers + (1_000 + ROWS * HISTORY) * (6 * WIDTH + PER_SCORE)
    assert counted.per_user == ITEMS * (4 * WIDTH + PER_SCORE)


def test_users_are_ranked_within_a_tenth_of_an_epoch(caplog: pytest.LogCaptureFixture) -> None:
    counted = costs(500_000)
    with caplog.at_level(logging.INFO, logger="slmc.train"):
        users = counted.affordable_users(10, 10_000, "sasrec")
    per_user = counted.per_user + 10 * counted.per_history_item
    epoch = counted.per_token * counted.tokens
    assert LEAST_USERS < users < 10_000
    assert users * per_user <= VALIDATION_SHARE * epoch < (users + 1) * per_user
    assert caplog.messages == [
        f"sasrec: validation ranks {users:,} users (validation_users: 10,000), "
        "about 10 % of an epoch"
    ]
    # What the loop computes from it: one validation an epoch, not several.
    share = VALIDATION_SHARE * 3 * counted.tokens / counted.in_tokens(users, 10 * users)
    assert int(share * 1.001) == 1


@pytest.mark.parametrize(("users", "most", "ranked"), [(1, 10_000, LEAST_USERS), (10**6, 70, 70)])
def test_few_users_are_always_ranked(users: int, most: int, ranked: int) -> None:
    assert costs(users).affordable_users(10, most, "sasrec") == ranked
