"""Cross-entropy over 100,000 items: chunked, against plain PyTorch with all logits at once.

``python benchmarks/catalogue_loss.py`` prints time and peak memory of each, measured in separate
processes.
"""

import multiprocessing
import resource

import torch
from timing import machine

from slmc.export.runtime.sessions import seconds_of
from slmc.training import catalogue

POSITIONS, ITEMS, WIDTH = 3_200, 100_000, 64


def loss_and_gradients(chunked: bool) -> None:
    """Compute loss and gradients of one batch of positions."""
    torch.manual_seed(0)
    queries = torch.randn(POSITIONS, WIDTH, requires_grad=True)
    items = torch.randn(ITEMS + 1, WIDTH, requires_grad=True)
    targets = torch.randint(1, ITEMS + 1, (POSITIONS,))
    if chunked:
        loss = catalogue.cross_entropy(queries, items, targets)
    else:
        loss = torch.nn.functional.cross_entropy(queries @ items[1:].T, targets - 1)
    loss.backward()


def measure(chunked: bool, queue: "multiprocessing.Queue[tuple[float, float]]") -> None:
    """Put the seconds and the additional peak memory in MB into the queue."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loss_and_gradients(chunked)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    queue.put((seconds_of(lambda: loss_and_gradients(chunked)), peak / 1024))


if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    print(machine(), f"{POSITIONS} positions, {ITEMS} items")
    for name, chunked in (("plain", False), ("chunked", True)):
        queue = context.Queue()
        process = context.Process(target=measure, args=(chunked, queue))
        process.start()
        elapsed, memory = queue.get()
        process.join()
        print(f"{name:7}  {elapsed:.2f} s  {memory:,.0f} MB")
