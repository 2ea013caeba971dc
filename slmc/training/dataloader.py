"""The dataloader: which packed rows each optimizer step trains on.

Rows and their order are pure functions of seed and epoch, so a resumed run sees the same batches.
"""

import math

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from slmc.data.batches import Rows
from slmc.errors import UsageError
from slmc.training.types import Batch, TrainSetup


class Dataloader:
    """Batches of one process, by epoch and step.

    Raises:
        UsageError: A step has fewer rows than there are processes.
    """

    def __init__(self, setup: TrainSetup, accelerator: Accelerator) -> None:
        """Pack the rows of the first epoch."""
        self.setup = setup
        self.rows_per_step = setup.config.rows
        self.processes, self.process = accelerator.num_processes, accelerator.process_index
        self._packed: tuple[int, Rows] | None = None
        self._order: tuple[int, NDArray[np.int64]] | None = None
        if self.rows_per_step < self.processes:
            raise UsageError(
                f"rows: {self.rows_per_step} rows cannot be divided among {self.processes} "
                "processes.",
                f"Set rows to at least {self.processes}, or start fewer processes.",
            )
        first = self._rows(0)
        self.steps = math.ceil(len(first.item_ids) / self.rows_per_step)
        """Optimizer steps of an epoch."""
        self.tokens = int((first.item_ids != 0).sum())
        """Tokens of an epoch."""

    def batch(self, epoch: int, step: int) -> Batch:
        """Return this process's part of the batch of a step of an epoch, both counted from 0.

        The batch of a step is the same for any number of processes: they divide its rows. Losses
        are means over positions with a target; weighted by :attr:`Batch.weight`, their mean over
        the processes is the mean over the whole batch.
        """
        rows, order = self._rows(epoch), self._shuffled(epoch)
        start = step * self.rows_per_step
        whole = order[start : start + self.rows_per_step]
        index = whole[self.process :: self.processes]
        weight = 1.0
        if self.processes > 1:
            targets = [int((rows.targets[part] > 0).sum()) for part in (index, whole)]
            weight = self.processes * targets[0] / max(1, targets[1])
        if not len(index):  # the last step has fewer rows than there are processes
            index = order[:1]

        def on_device(array: NDArray[np.int64]) -> Tensor:
            return torch.from_numpy(array[index]).to(self.setup.placement.device)

        return Batch(
            on_device(rows.item_ids),
            on_device(rows.targets),
            on_device(rows.positions),
            on_device(rows.segments),
            index=index,
            packing=self.setup.epochs.packing(epoch),
            weight=weight,
        )

    def _rows(self, epoch: int) -> Rows:
        packing = self.setup.epochs.packing(epoch)
        if self._packed is None or self._packed[0] != packing:
            self._packed = packing, self.setup.epochs.pack(packing)
        return self._packed[1]

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        """Row numbers in the order of an epoch."""
        if self._order is None or self._order[0] != epoch:
            rng = np.random.default_rng((self.setup.config.seed, epoch, 1))
            self._order = epoch, rng.permutation(len(self._rows(epoch).item_ids))
        return self._order[1]
