"""Train a SASRec with OpenMP threads that sleep and that spin: ``python benchmarks/waiting.py``.

Each way trains in a process of its own, alone and beside a process that keeps as many threads
busy as there are cores; the ways are interleaved. ``slmc`` sets ``OMP_WAIT_POLICY=PASSIVE`` where
the environment says nothing.
"""

import os
import statistics
import subprocess
import sys

STEPS, WARMUP, ROUNDS = 60, 10, 3
TRAIN = f"""
import time, numpy as np, torch
from slmc.model import packing
from slmc.model.sasrec import Sasrec, SasrecModelConfig
from slmc import catalogue
torch.manual_seed(0)
model = Sasrec(SasrecModelConfig(num_items=12_101, dropout=0.3))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
items = torch.randint(1, 12_102, (64, 51))
segments = torch.arange(50).expand(64, 50) // 8 + 1
positions = torch.arange(50).expand(64, 50) % 8
def step():
    states = model.hidden_states(items[:, :-1].flatten(), packing.rows(segments, positions))
    loss = catalogue.cross_entropy(states, model.item_vectors(), items[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
for _ in range({WARMUP}):
    step()
begin = time.perf_counter()
for _ in range({STEPS}):
    step()
print((time.perf_counter() - begin) / {STEPS})
"""
BUSY = """
import threading, numpy as np
def spin():
    values = np.random.rand(400, 400)
    while True:
        values @ values
for _ in range({cores}):
    threading.Thread(target=spin, daemon=True).start()
threading.Event().wait()
"""


def seconds_per_step(policy: str) -> float:
    """Of a training in a new process, its threads waiting as ``policy`` says."""
    done = subprocess.run(
        [sys.executable, "-c", TRAIN],
        env=os.environ | {"OMP_WAIT_POLICY": policy},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def measure(where: str) -> None:
    """Print the seconds a step of both ways, and their ratio."""
    rounds = [(seconds_per_step("ACTIVE"), seconds_per_step("PASSIVE")) for _ in range(ROUNDS)]
    spin, sleep = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratios = [a / b for a, b in rounds]
    print(
        f"{where}: {1e3 * spin:.0f} ms a step spinning, {1e3 * sleep:.0f} ms asleep: "
        f"{statistics.median(ratios):.2f} times faster asleep ({min(ratios):.2f} to "
        f"{max(ratios):.2f}, {ROUNDS} rounds)"
    )


if __name__ == "__main__":
    cores = os.cpu_count() or 1
    print(f"{cores} cores")
    measure("alone")
    with subprocess.Popen(
        [sys.executable, "-c", BUSY.format(cores=cores)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    ) as busy:
        try:
            measure(f"beside {cores} busy threads")
        finally:
            busy.kill()
