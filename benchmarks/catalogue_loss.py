"""Cross-entropy over 100,000 items: ours in chunks, against plain PyTorch on all scores at once.

``python benchmarks/catalogue_loss.py`` prints time and the largest memory of each, measured in a
process of its own.
"""

import multiprocessing
import resource

import torch
from timing import machine

from slmc.export.runtime.sessions import seconds_of
from slmc.training import catalogue

POSITIONS, ITEMS, WIDTH = 3_200, 100_000, 64


def step(ours: bool) -> None:
    """Loss and gradients of one batch of positions."""
    torch.manual_seed(0)
    queries = torch.randn(POSITIONS, WIDTH, requires_grad=True)
    items = torch.randn(ITEMS + 1, WIDTH, requires_grad=True)
    targets = torch.randint(1, ITEMS + 1, (POSITIONS,))
    if ours:
        loss = catalogue.cross_entropy(queries, items, targets)
    else:
        loss = torch.nn.functional.cross_entropy(queries @ items[1:].T, targets - 1)
    loss.backward()


def measured(ours: bool, queue: "multiprocessing.Queue[tuple[float, float]]") -> None:
    """Put seconds of a step and MB at the peak beyond those before it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(ours)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    queue.put((seconds_of(lambda: step(ours)), peak / 1024))


if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    print(machine(), f"{POSITIONS} positions, {ITEMS} items")
    for name, ours in (("plain", False), ("ours", True)):
        queue = context.Queue()
        process = context.Process(target=measured, args=(ours, queue))
        process.start()
        elapsed, memory = queue.get()
        process.join()
        print(f"{name:5}  {elapsed:.2f} s  {memory:,.0f} MB")
