"""The k-core of a log, the order of its rows, and the split of each history.

All splits have the same form: a user's items in time order are training before ``valid_from``;
the validation target is ``items[valid_from]`` if ``valid_from < test_from``; the test target is
``items[test_from]`` if it exists; the history of a target is everything before it.
"""

import hashlib
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Keys = NDArray[np.uint64]
Codes = NDArray[np.integer]


def k_core(
    parts: Callable[[], Iterable[tuple[Codes, Codes]]], users: int, items: int, core: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which users and items stay if rare ones are dropped repeatedly.

    Memory grows with users and items, not with interactions: an interaction stays if both its user
    and its item do.

    Args:
        parts: Returns user and item of each interaction (``[N]``, from 0), part by part; it is
            called several times. A part is sorted by user, and holds all interactions of the
            users between its first and its last.
        users: Number of users.
        items: Number of items.
        core: Least number of interactions of a user and of an item; repeats count.

    Returns:
        ``[users]`` and ``[items]``: the largest subset in which every user and item with an
        interaction has at least ``core``.
    """
    user_stays, item_stays = np.ones(users, dtype=np.bool_), np.ones(items, dtype=np.bool_)
    while True:
        item_rows = np.zeros(items, dtype=np.int64)
        for user, item in parts():
            if not user.size:
                continue
            stays = user_stays[user] & item_stays[item]
            first, last = int(user[0]), int(user[-1])
            rows = np.bincount(user[stays] - first, minlength=last - first + 1)
            user_stays[first : last + 1] = rows >= core
            stays &= user_stays[user]
            item_rows += np.bincount(item[stays], minlength=items)
        before = int(item_stays.sum())
        item_stays &= item_rows >= core
        if item_stays.sum() == before:
            return user_stays, item_stays


def id_keys(ids: Iterable[str], seed: int) -> Keys:
    """Return a 64-bit BLAKE2b key of each id, which depends only on the id and the seed."""
    salt = seed.to_bytes(16, "little")
    keys = (hashlib.blake2b(name.encode(), digest_size=8, salt=salt).digest() for name in ids)
    return np.frombuffer(b"".join(keys), dtype="<u8").astype(np.uint64)


def tie_keys(user_keys: Keys, item_keys: Keys, numbers: NDArray[np.float64]) -> Keys:
    """Return seeded keys, ``[N]``, that sort interactions with the same user and time.

    The key is a hash of (seed, user, item, time): it depends neither on the order of ids or rows,
    nor on other users. (Sorting ties by item id would leak popularity: low ids are often the old,
    popular items.)

    Args:
        user_keys: ``[N]`` :func:`id_keys` of the users.
        item_keys: ``[N]`` :func:`id_keys` of the items.
        numbers: ``[N]`` times from :meth:`slmc.data.clock.Clock.numbers`; they are only hashed.
    """
    return _mix(user_keys ^ _mix(item_keys ^ _mix(numbers.view(np.uint64))))


def _mix(keys: Keys) -> Keys:
    """Return the finaliser of SplitMix64 (Steele, Lea & Flood 2014)."""
    keys = keys + np.uint64(0x9E3779B97F4A7C15)
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


def leave_one_out(lengths: Ints) -> tuple[Ints, Ints]:
    """Return valid_from and test_from, ``[U]``: the last interaction is the test target.

    The one before it is the validation target. A user with two interactions has no validation
    target; a user with one has no target.
    """
    return np.maximum(lengths - 2, 1), np.maximum(lengths - 1, 1)


def by_time(
    before_valid: NDArray[np.bool_], before_test: NDArray[np.bool_], lengths: Ints
) -> tuple[Ints, Ints]:
    """Return valid_from and test_from, ``[U]``: a user's interactions before each period.

    Args:
        before_valid: ``[N]`` whether an interaction is before the validation period; rows are
            sorted by user.
        before_test: ``[N]`` whether it is before the test period.
        lengths: ``[U]`` interactions of each user.
    """
    ends = np.cumsum(lengths)

    def count(before: NDArray[np.bool_]) -> Ints:
        running = np.concatenate([[0], np.cumsum(before)])
        return np.asarray(running[ends] - running[ends - lengths], dtype=np.int64)

    return count(before_valid), count(before_test)
