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
from slmc.training.types import Batch, TrainSetup


class Dataloader:
    """Batches of one process, by epoch and step."""

    def __init__(self, setup: TrainSetup, accelerator: Accelerator) -> None:
        """Pack the rows of the first epoch."""
        self.setup = setup
        self.rows_per_step = setup.config.rows
        self.processes, self.process = accelerator.num_processes, accelerator.process_index
        self._packed: tuple[int, Rows] | None = None
        self._order: tuple[int, NDArray[np.int64]] | None = None
        first = self._rows(0)
        self.steps = math.ceil(len(first.item_ids) / (self.rows_per_step * self.processes))
        """Optimizer steps of an epoch."""
        self.tokens = int((first.item_ids != 0).sum())
        """Tokens of an epoch."""

    def batch(self, epoch: int, step: int) -> Batch:
        """Return the batch of a step of an epoch, both counted from 0."""
        rows, order = self._rows(epoch), self._shuffled(epoch)
        start = (step * self.processes + self.process) * self.rows_per_step
        index = order[start : start + self.rows_per_step]
        if not len(index):  # no rows are left for this process in the last step
            index = order[: self.rows_per_step]

        def on_device(array: NDArray[np.int64]) -> Tensor:
            return torch.from_numpy(array[index]).to(self.setup.placement.device)

        return Batch(
            on_device(rows.item_ids),
            on_device(rows.targets),
            on_device(rows.positions),
            on_device(rows.segments),
            index=index,
            packing=self.setup.epochs.packing(epoch),
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
