"""The teacher's states without a cache: the teacher runs on the rows of every batch.

For logs whose states do not fit on the disk, or into ``max_cache``. Values are rounded to float16
as stored ones are, so that training differs only where the teacher's own matmuls round
differently in batches of another size.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from slmc.distill.states import BATCH, Request, as_half, unit_of


@dataclass
class LiveStates:
    """States of a request, computed where they are asked for; as ``states.TeacherStates``."""

    request: Request
    unit: float
    """Stored states are divided by it; here it only decides how values are rounded."""
    mean_square: NDArray[np.float32] | None
    """``[B, H]`` mean square of the block states over the real tokens; ``None`` if not needed."""
    _last: tuple[NDArray[np.int64], Tensor | None, Tensor] | None = field(default=None, repr=False)
    """Rows and states of the last batch, which several loss terms ask for."""

    @classmethod
    def of(cls, request: Request, *, mean_square: bool) -> "LiveStates":
        """Prepare the states of a request; ``mean_square`` takes one pass over all rows.

        Raises:
            BrokenRunError: A state is not finite.
        """
        states, _ = request.forward(slice(BATCH))
        unit = 1.0 if states is None else unit_of(states)
        wanted = mean_square and request.blocks
        return cls(request, unit, _mean_square(request, unit) if wanted else None)

    def block_states(self, index: NDArray[np.int64], mask: Tensor) -> Tensor:
        """Return ``[N, B, H]`` float32, at the positions ``mask`` ``[R', L]`` of rows ``index``."""
        states, _ = self._of(index)
        assert states is not None, "the block states are not computed"
        return states.to(mask.device)[mask.flatten()]

    def user_vectors(self, index: NDArray[np.int64], mask: Tensor) -> Tensor:
        """Return ``[N, d]`` float32, as :meth:`block_states`."""
        _, queries = self._of(index)
        return queries.to(mask.device)[mask.flatten()]

    def _of(self, index: NDArray[np.int64]) -> tuple[Tensor | None, Tensor]:
        if self._last is None or self._last[0] is not index:
            states, queries = self.request.forward(index)
            if states is not None:
                states = as_half(states / self.unit).float() * self.unit
            self._last = index, states, as_half(queries).float()
        return self._last[1:]


def _mean_square(request: Request, unit: float) -> NDArray[np.float32]:
    """Return the mean square of the states of a request, from the cache if it is there."""
    out = request.folder("mean_square")
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.parent / f".{out.name}.lock"):
        if not out.is_dir():
            staged = out.parent / f".{out.name}.partial"
            staged.mkdir(exist_ok=True)
            np.save(staged / "mean_square.npy", _computed_mean_square(request, unit))
            # `slmc cache gc` removes it by the digest of the teacher.
            (staged / "progress.json").write_text(json.dumps({"teacher": request.digest}))
            os.replace(staged, out)
    square: NDArray[np.float32] = np.load(Path(out) / "mean_square.npy", allow_pickle=False)
    return square


def _computed_mean_square(request: Request, unit: float) -> NDArray[np.float32]:
    segments = request.rows.segments
    total = np.zeros(request.shapes["blocks.npy"][2:], dtype=np.float64)
    for start in range(0, len(segments), BATCH):
        part = slice(start, start + BATCH)
        states, _ = request.forward(part)
        assert states is not None
        real = torch.from_numpy(segments[part].flatten() > 0).to(states.device)
        half = as_half(states / unit)[real].cpu().numpy().astype(np.float32)
        total += np.square(half).sum(axis=0, dtype=np.float64)
    mean = total / (segments > 0).sum() * unit**2
    square: NDArray[np.float32] = mean.astype(np.float32)
    return square
