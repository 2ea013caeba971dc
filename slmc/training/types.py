"""What a training run needs, and what it returns."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from slmc.config import TrainConfig
from slmc.data.batches import Rows
from slmc.model.device import Placement
from slmc.training.schedule import Decay

Stopped = Literal["plateau", "epochs", "minutes", "like"]


@dataclass(frozen=True)
class Batch:
    """``R`` packed rows of ``L`` tokens on the device, and their row numbers in the packing."""

    tokens: Tensor
    targets: Tensor
    positions: Tensor
    segments: Tensor
    index: NDArray[np.int64]
    """``[R]`` row numbers within the packing."""
    packing: int
    """Number of the packing that the rows come from."""
    weight: float = 1.0
    """Weight of the losses of this part of a batch that several processes divide."""
    done: float = 0.0
    """Steps before this one, as a share of the run's largest number of steps."""


@dataclass(frozen=True)
class Epochs:
    """The rows of each epoch: ``packings`` packings are repeated, or each epoch has a new one."""

    pack: Callable[[int], Rows]
    """Rows of packing ``p``, a pure function of it."""
    packings: int | None = None

    def packing(self, epoch: int) -> int:
        """Number of the packing that an epoch uses."""
        return epoch if self.packings is None else epoch % self.packings


@dataclass(frozen=True)
class Validation:
    """How the model is validated during training."""

    measure: Callable[[], dict[str, float]]
    """Metric -> mean over the validation users; includes ``ce`` and the metric of ``select_by``."""
    tokens: int
    """Cost of one validation, in forward passes of a token: items in the ranked histories."""


@dataclass(frozen=True)
class TrainSetup:
    """Everything but the model that :func:`slmc.training.loop.train` needs."""

    config: TrainConfig
    epochs: Epochs
    """Source of the training rows."""
    validation: Validation
    """Ranks validation users once per epoch, or several times where that costs less than a tenth
    of training."""
    name: str
    """Name of the stage in the log."""
    placement: Placement
    """Device and precision."""
    num_items: int
    """``V``; a loss that stays at ``log(V)`` means that nothing was learned."""
    resume: Path
    """Folder of the checkpoint. A killed run continues from it, with the same bits on the same
    machine and number of threads."""
    constant_from: float = 0.0
    """Share of the largest number of steps from which on the loss no longer changes; early
    stopping only looks at validations after it."""
    like: Decay | None = None
    """Decay of the run that this control run is compared with: it trains for as many steps."""


@dataclass(frozen=True)
class Outcome:
    """The result of a training run, JSON-able."""

    epochs: list[dict[str, float]]
    """For each validation: ``epoch``, ``lr`` as a share of its peak, the mean of every loss term
    since the previous validation, and ``valid_NAME`` for each metric."""
    best_epoch: float
    """Epochs after which the kept weights were reached; 0 if nothing was trained."""
    selected_by: str
    """Metric that selected them."""
    steps: int
    stopped: Stopped
    """Why the constant phase ended: early stopping (``plateau``), a limit was reached
    (``epochs``, ``minutes``), or the run it is compared with ended it there (``like``)."""
    still_improving: bool
    """Whether a limit ended the run while ranking still improved."""
    decay: dict[str, int]
    """``start`` and ``steps`` of the learning-rate decay."""

    @classmethod
    def untrained(cls, selected_by: str) -> "Outcome":
        """Return the outcome of a model that is used without training."""
        return cls([], 0.0, selected_by, 0, "epochs", False, {"start": 0, "steps": 0})
