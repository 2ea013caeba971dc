"""Rows of a batch: sequences of several users packed without padding, or padded on the left.

Letters: R rows, L row length, B histories.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Sequences = Sequence[NDArray[np.int32]]


@dataclass(frozen=True)
class Rows:
    """Packed sequences, ``[R, L]`` each.

    A token may attend to itself and to earlier tokens of the same segment of its row.
    """

    item_ids: Ints
    """Row of the item; 0 is padding, at the right end of a row."""
    targets: Ints
    """Row of the next item at positions with a loss; 0 elsewhere."""
    positions: Ints
    """Position in the segment, from 0 at the start of each segment and each row."""
    segments: Ints
    """Number of the sequence (from 1, in shuffled order); 0 is padding."""


def pack(
    sequences: Sequences,
    length: int,
    rng: np.random.Generator,
    *,
    targets: Literal["all", "last"] = "all",
    prompt: tuple[int, int] = (0, 0),
) -> Rows:
    """Pack sequences, in shuffled order, into rows of one length.

    Args:
        sequences: Item rows of each user, oldest first; those with one item are left out.
        length: L, the length of a row.
        rng: Shuffles the sequences. The same state gives the same packing.
        targets: ``all``: every next item is a target exactly once; the sequences are concatenated
            and cut where a row is full. ``last``: only the last item of each user is a target;
            the newest ``length`` items before it stay in one row, never cut.
        prompt: Number of prompt tokens before and after the items of a history. Rows get longer
            by their sum; prompt token j is written as -1 - j. Only with ``targets="last"``.
    """
    if any(prompt) and targets == "all":
        raise ValueError("a prompt encloses whole histories: it needs targets='last'")
    order = rng.permutation(len(sequences))
    chosen = [sequences[user] for user in order if sequences[user].size > 1]
    if targets == "last":
        return _pack_last([rows[-length - 1 :] for rows in chosen], length, rng, prompt)
    return _pack_all(chosen, length)


def pad_left(histories: Sequences, length: int | None = None) -> Ints:
    """Return ``[B, L]``: the newest items of each history at the right, zeros before them.

    Args:
        histories: Item rows of each history, oldest first.
        length: L; by default the length of the longest history.
    """
    if length is None:
        length = max((rows.size for rows in histories), default=0)
    padded = np.zeros((len(histories), length), dtype=np.int64)
    for row, rows in zip(padded, histories, strict=True):
        kept = rows[max(0, rows.size - length) :]
        row[length - kept.size :] = kept
    return padded


def _pack_all(sequences: Sequences, length: int) -> Rows:
    sizes = np.array([rows.size - 1 for rows in sequences], dtype=np.int64)
    total = int(sizes.sum())
    starts = np.cumsum(sizes) - sizes
    token = np.arange(total)
    # A segment that is cut continues in the next row as a new context: its positions restart.
    begin = np.maximum(np.repeat(starts, sizes), token - token % length)
    shape = (-(-total // length), length)
    streams = (
        _concatenated([rows[:-1] for rows in sequences]),
        _concatenated([rows[1:] for rows in sequences]),
        token - begin,
        np.repeat(1 + np.arange(sizes.size), sizes),
    )
    return Rows(*(_scattered(token, stream, shape) for stream in streams))


def _pack_last(
    sequences: Sequences, length: int, rng: np.random.Generator, prompt: tuple[int, int]
) -> Rows:
    length += sum(prompt)
    before, after = np.split(-1 - np.arange(sum(prompt)), prompt[:1])
    inputs = [np.concatenate([before, rows[:-1], after]) for rows in sequences]
    sizes = np.array([tokens.size for tokens in inputs], dtype=np.int64)
    row, offset = first_fit_decreasing(sizes, length)
    shape = (int(row.max(initial=-1)) + 1, length)
    row = rng.permutation(shape[0])[row]  # else the first batches hold the longest histories
    starts = row * length + offset
    place = _flat_indices(starts, sizes)
    tokens = _scattered(place, _concatenated(inputs), shape)
    last = _scattered(starts + sizes - 1, np.array([rows[-1] for rows in sequences]), shape)
    positions = _scattered(place, place - np.repeat(starts, sizes), shape)
    segments = _scattered(place, np.repeat(1 + np.arange(sizes.size), sizes), shape)
    return Rows(tokens, last, positions, segments)


def first_fit_decreasing(sizes: Ints, capacity: int) -> tuple[Ints, Ints]:
    """Put pieces into rows, the largest first, each into the first row with enough room.

    Filling one row after the other with the largest piece that still fits gives the same rows.
    Rows with the same sizes are therefore filled at once, by counts of sizes.

    Args:
        sizes: ``[N]`` sizes of the pieces, each between 1 and ``capacity``.
        capacity: Size of a row.

    Returns:
        ``[N]`` the row of each piece, and ``[N]`` its offset in that row.
    """
    waiting = np.bincount(sizes, minlength=capacity + 1)
    queue = np.argsort(sizes, kind="stable")  # pieces by size: each size is a slice
    head = np.cumsum(waiting) - waiting
    row, offset = np.zeros_like(sizes), np.zeros_like(sizes)
    filled = 0
    while waiting.any():
        parts, room = [], capacity
        for size in np.flatnonzero(waiting)[::-1].tolist():
            number = min(int(waiting[size]), room // size)
            if number:
                parts.append((size, number, capacity - room))
                room -= number * size
        copies = min(int(waiting[size]) // number for size, number, _ in parts)
        for size, number, start in parts:
            pieces = queue[head[size] : head[size] + copies * number].reshape(copies, number)
            row[pieces] = filled + np.arange(copies)[:, None]
            offset[pieces] = start + size * np.arange(number)
            head[size] += copies * number
            waiting[size] -= copies * number
        filled += copies
    return row, offset


def _flat_indices(starts: Ints, sizes: Ints) -> Ints:
    """Return the indices ``start … start + size - 1`` of all pieces, concatenated."""
    before = np.cumsum(sizes) - sizes
    return np.repeat(starts - before, sizes) + np.arange(int(sizes.sum()))


def _concatenated(parts: Sequences) -> Ints:
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts]).astype(np.int64, copy=False)


def _scattered(places: Ints, values: NDArray[np.integer], shape: tuple[int, int]) -> Ints:
    """Return zeros of ``shape`` with ``values`` at the flat indices ``places``."""
    out = np.zeros(shape[0] * shape[1], dtype=np.int64)
    out[places] = values
    return out.reshape(shape)
