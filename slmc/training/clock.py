"""The time limit of a training run, ``max_minutes``, and the time it has taken so far."""

import time

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from slmc.training.schedule import DECAY
from slmc.training.types import TrainSetup


class Clock:
    """Measures training time, including the time before a run was killed."""

    def __init__(self, setup: TrainSetup, accelerator: Accelerator, spent: float) -> None:
        """Start the clock at ``spent`` seconds, which the checkpoint holds."""
        minutes = setup.config.max_minutes
        self.limit = None if minutes is None else 60 * minutes
        self.checkpoint_s = setup.config.checkpoint_s
        self.device, self.processes = setup.placement.device, accelerator.num_processes
        self.spent = spent
        self.started = self.saved = time.monotonic()

    def elapsed(self) -> float:
        """Return the seconds of training so far."""
        return self.spent + time.monotonic() - self.started

    def constant_phase_over(self) -> bool:
        """Return whether the constant phase has used up its part of the time limit."""
        if self.limit is None:
            return False
        return self._agreed(int(self.elapsed() > self.limit * (1 - DECAY))) > 0

    def affordable(self, left: int, done: int) -> int:
        """Return how many of the ``left`` steps fit into the remaining time, at least one.

        Args:
            left: Steps up to the limit of epochs.
            done: Steps so far, which give the time per step.
        """
        if self.limit is None:
            return left
        elapsed = self.elapsed()
        remaining = max(0.0, self.limit - elapsed)
        return max(1, min(left, self._agreed(int(done * remaining / elapsed))))

    def checkpoint_due(self) -> bool:
        """Return whether ``checkpoint_s`` seconds have passed since the last checkpoint."""
        return time.monotonic() - self.saved >= self.checkpoint_s

    def checkpoint_saved(self) -> None:
        """Note that a checkpoint was just written."""
        self.saved = time.monotonic()

    def _agreed(self, value: int) -> int:
        """Return the main process's value: clocks differ, but all processes take the same steps."""
        if self.processes == 1:
            return value
        shared = torch.tensor(value, device=self.device)
        return int(broadcast(shared).item())
