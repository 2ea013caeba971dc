import hashlib
import struct
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from slmc.data.split import by_time, id_keys, k_core, leave_one_out, tie_keys


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=60),
    st.integers(1, 4),
    st.sets(st.integers(0, 7)),
)
def test_the_core_is_the_plain_one(
    pairs: list[tuple[int, int]], core: int, firsts: set[int]
) -> None:
    left = list(enumerate(pairs))
    while True:
        users, items = (Counter(pair[side] for _, pair in left) for side in (0, 1))
        stays = [(n, p) for n, p in left if users[p[0]] >= core and items[p[1]] >= core]
        if len(stays) == len(left):
            break
        left = stays
    array = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)
    cuts = [int(np.searchsorted(array[:, 0], first)) for first in sorted({*firsts, 0})]
    parts = [(part[:, 0], part[:, 1]) for part in np.split(array, cuts)]
    user_stays, item_stays = k_core(lambda: parts, 7, 7, core)
    stays = [pair for pair in pairs if user_stays[pair[0]] and item_stays[pair[1]]]
    assert stays == [pair for _, pair in left]


def test_leave_one_out_by_length() -> None:
    valid, test = leave_one_out(np.array([1, 2, 3, 10]))
    assert valid.tolist() == [1, 1, 1, 8]
    assert test.tolist() == [1, 1, 2, 9]


def test_temporal_cuts() -> None:
    day = np.array([1, 2, 3, 4, 5, 0.5, 1.0, 4.0, 9.0])
    valid, test = by_time(day < 2, day < 4, np.array([5, 3, 1]))
    assert valid.tolist() == [1, 2, 0]  # the start of a day belongs to it
    assert test.tolist() == [3, 2, 0]


def test_ties_are_ordered_by_the_seed_and_not_by_the_id() -> None:
    ids = [str(n) for n in range(400)]
    zeros = np.zeros(400)
    orders = []
    for seed in (1, 2):
        user = np.repeat(id_keys(["u"], seed), 400)
        orders.append(np.argsort(np.argsort(tie_keys(user, id_keys(ids, seed), zeros))))
    for order in orders:
        assert abs(np.corrcoef(order, np.arange(400))[0, 1]) < 0.15  # 3 standard errors
    assert abs(np.corrcoef(*orders)[0, 1]) < 0.15


def test_the_order_of_ties_differs_between_users_and_times() -> None:
    items = id_keys([str(n) for n in range(400)], 17)
    users = [np.repeat(id_keys([name], 17), 400) for name in "ab"]
    base = np.argsort(tie_keys(users[0], items, np.zeros(400)))
    assert (base != np.argsort(tie_keys(users[1], items, np.zeros(400)))).sum() > 300
    assert (base != np.argsort(tie_keys(users[0], items, np.ones(400)))).sum() > 300


def test_keys_are_blake2b_and_splitmix64() -> None:
    """A plain reference: another key would silently change every dataset with ties."""

    def mix(key: int) -> int:
        key = (key + 0x9E3779B97F4A7C15) % 2**64
        key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        key = (key ^ key >> 27) * 0x94D049BB133111EB % 2**64
        return key ^ key >> 31

    salt = (17).to_bytes(16, "little")
    user, item = (
        int.from_bytes(hashlib.blake2b(name, digest_size=8, salt=salt).digest(), "little")
        for name in (b"196", b"242")
    )
    when = int.from_bytes(struct.pack("<d", 881250949.0), "little")
    assert id_keys(["196", "242"], 17).tolist() == [user, item]
    keys = tie_keys(id_keys(["196"], 17), id_keys(["242"], 17), np.array([881250949.0]))
    assert keys.tolist() == [mix(user ^ mix(item ^ mix(when)))]
