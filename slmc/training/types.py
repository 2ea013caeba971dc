"""What a training run is given, and what it tells of itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from slmc.data.batches import Rows

Stopped = Literal["plateau", "epochs", "minutes", "like"]


@dataclass(frozen=True)
class Batch:
    """``R`` packed rows of ``L`` tokens on the device, and which rows of the epoch they are."""

    tokens: Tensor
    targets: Tensor
    positions: Tensor
    segments: Tensor
    index: NDArray[np.int64]
    """``[R]`` row numbers within the packing."""
    packing: int
    """Which packing the rows come from."""


@dataclass(frozen=True)
class Epochs:
    """The rows of each epoch; ``packings`` of them, in turn, or a new one each time."""

    pack: Callable[[int], Rows]
    """Rows of packing ``p``, a pure function of it."""
    packings: int | None = None

    def packing(self, epoch: int) -> int:
        """Number of the packing that an epoch uses."""
        return epoch if self.packings is None else epoch % self.packings


@dataclass(frozen=True)
class Validation:
    """How the ranking of the model in training is measured."""

    measure: Callable[[], dict[str, float]]
    """Metric -> mean over the validation users, ``ce`` and the one of ``select_by`` among them."""
    tokens: int
    """Items of the histories that are ranked: what one validation costs."""


@dataclass(frozen=True)
class Outcome:
    """What a training run tells of itself, in JSON-able form."""

    epochs: list[dict[str, float]]
    """For each validation: ``epoch``, ``lr`` as a share of its peak, the mean of every loss term
    since the validation before, and ``valid_NAME`` for each metric."""
    best_epoch: float
    """Epochs after which the weights that are kept were reached; 0 if nothing was trained."""
    selected_by: str
    """Metric that chose them."""
    steps: int
    stopped: Stopped
    """Why the constant phase ended: ranking stopped improving (``plateau``), a bound was reached
    (``epochs``, ``minutes``), or the run it is compared with ended it there (``like``)."""
    still_improving: bool
    """Whether a bound ended the run before ranking had stopped improving."""
    decay: dict[str, int]
    """``start`` and ``steps`` of the decay."""

    @classmethod
    def untrained(cls, selected_by: str) -> "Outcome":
        """Of a model that is taken as it is."""
        return cls([], 0.0, selected_by, 0, "epochs", False, {"start": 0, "steps": 0})
