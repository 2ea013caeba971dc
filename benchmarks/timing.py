"""Time two versions of a computation, interleaved, and print their ratio with its spread."""

import platform
import statistics
from collections.abc import Callable

import torch

from slmc.export.runtime.sessions import seconds_of


def compare(
    title: str, plain: Callable[[], object], ours: Callable[[], object], rounds: int
) -> None:
    """Print how many times faster ``ours`` is than ``plain``: median and quartiles of rounds."""
    pairs = []
    for function in (plain, ours):
        function()
    for _ in range(rounds):
        pairs.append((seconds_of(plain), seconds_of(ours)))
    ratios = [a / b for a, b in pairs]
    low, median, high = statistics.quantiles(ratios, n=4)
    slow, fast = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        f"{title}: {median:.2f}x (quartiles {low:.2f}-{high:.2f}, {rounds} rounds; "
        f"{1e3 * slow:.0f} ms plain, {1e3 * fast:.0f} ms ours)"
    )


def machine() -> str:
    """What the numbers were measured on."""
    return f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
