"""The teacher's states at every training position: computed once, then memory-mapped from disk.

The teacher is frozen, so its hidden states after each block and its user vectors are the same
for every student, ablation and epoch over one packing. They are stored under
``$SLMC_CACHE/states`` as float16 arrays, in a folder named by a digest of everything that they
depend on.
"""

import hashlib
import json
import logging
import math
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from slmc import cache
from slmc.artefact import canonical, versions
from slmc.data.batches import Rows
from slmc.distill.config import DistillConfig
from slmc.errors import BrokenRunError
from slmc.model import packing
from slmc.model.device import Placement
from slmc.model.loading import Recommender
from slmc.model.recommender import RecommenderConfig, SequentialRecommender

BATCH = 16
FLUSH_EVERY = 20
"""Batches between two checkpoints from which a killed computation continues."""
LARGEST = 2.0**14
"""Larger states are stored divided by a power of two, so that none overflows float16."""

log = logging.getLogger("slmc.distill")


@dataclass(frozen=True)
class TeacherStates:
    """The teacher's states for ``R`` rows of ``L`` tokens, memory-mapped."""

    blocks: NDArray[np.float16] | None
    """``[R, L, B, H]`` divided by :attr:`unit`; ``None`` if no loss term needs them."""
    queries: NDArray[np.float16] | None
    """``[R, L, d]`` user vectors; ``None`` if no loss term needs them."""
    unit: float
    mean_square: NDArray[np.float32] | None
    """``[B, H]`` mean square of the block states over the real tokens."""

    def block_states(self, index: NDArray[np.int64], mask: Tensor) -> Tensor:
        """Return ``[N, B, H]`` float32, at the positions ``mask`` ``[R', L]`` of rows ``index``."""
        assert self.blocks is not None, "the block states were not computed"
        return torch.from_numpy(self.blocks[index]).to(mask.device)[mask].float() * self.unit

    def user_vectors(self, index: NDArray[np.int64], mask: Tensor) -> Tensor:
        """Return ``[N, d]`` float32, as :meth:`block_states`."""
        assert self.queries is not None, "the user vectors were not computed"
        return torch.from_numpy(self.queries[index]).to(mask.device)[mask].float()


@dataclass(frozen=True)
class Request:
    """The states of a teacher that are needed at every position of a packing."""

    teacher: Recommender
    """In evaluation mode, on the placement's device."""
    digest: str
    """Digest of the teacher's artefact."""
    rows: Rows
    """A packing of the training sequences, ``R`` rows of ``L`` tokens."""
    ends: tuple[int, ...]
    """Last layer of each block; empty if the block states are not needed."""
    placement: Placement
    """Device and precision."""
    blocks: bool
    """Whether the block states are needed."""
    queries: bool
    """Whether the user vectors are needed."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the stored arrays, by the name of their file."""
        count, length = self.rows.item_ids.shape
        shapes: dict[str, tuple[int, ...]] = {}
        if self.blocks:
            config = self.teacher.config
            on_llm = isinstance(config, RecommenderConfig)
            width = config.backbone_config.hidden_size if on_llm else config.item_dim
            shapes["blocks.npy"] = (count, length, len(self.ends), width)
        if self.queries:
            shapes["queries.npy"] = (count, length, self.teacher.config.item_dim)
        return shapes

    @property
    def size_bytes(self) -> int:
        """Size of the stored arrays."""
        return sum(math.prod(shape) for shape in self.shapes.values()) * np.float16().itemsize

    def folder(self, *kept: str) -> Path:
        """Return the folder in the cache, or that of something else derived from these states."""
        digest = hashlib.sha256(self.rows.item_ids.tobytes() + self.rows.segments.tobytes())
        key = {
            "teacher": self.digest,
            "rows": digest.hexdigest(),
            "ends": self.ends,
            "kept": [*kept] if kept else [self.blocks, self.queries],
            "dtype": str(self.placement.dtype),
            "versions": versions(DistillConfig.libraries),
        }
        return cache.root() / "states" / hashlib.sha256(canonical(key)).hexdigest()

    @torch.no_grad()
    def forward(self, index: slice | NDArray[np.int64]) -> tuple[Tensor | None, Tensor]:
        """Run the teacher on some rows; T is their number of tokens, padding included.

        Returns:
            Block states ``[T, B, H]``, if needed, and user vectors ``[T, d]``.
        """
        device = self.placement.device
        tokens, segments, positions = (
            torch.from_numpy(a[index]).to(device)
            for a in (self.rows.item_ids, self.rows.segments, self.rows.positions)
        )
        layout = packing.rows(segments, positions)
        with (
            torch.autocast(device.type, self.placement.dtype, enabled=self.placement.mixed),
            self._collected() as states,
        ):
            queries = self.teacher.head(self.teacher.hidden_states(tokens.flatten(), layout))
        return (torch.stack(states, dim=1).float() if self.blocks else None), queries

    def _collected(self) -> AbstractContextManager[list[Tensor]]:
        """Collect the states after each block, or nothing if they are not needed."""
        if not self.blocks or not isinstance(self.teacher, SequentialRecommender):
            return nullcontext([])
        return self.teacher.block_states(self.ends)


def compute(request: Request) -> TeacherStates:
    """Return the states, computed unless they are cached.

    Raises:
        BrokenRunError: A state is not finite.
    """
    if not request.shapes:
        return TeacherStates(blocks=None, queries=None, unit=1.0, mean_square=None)
    out = request.folder()
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.parent / f".{out.name}.lock"):
        if not out.is_dir():
            staged = out.parent / f".{out.name}.partial"
            _Computation(request, staged).go()
            os.replace(staged, out)
    return _open(out)


def _open(folder: Path) -> TeacherStates:
    def mapped(name: str) -> NDArray[np.float16] | None:
        file = folder / name
        return np.load(file, mmap_mode="r", allow_pickle=False) if file.is_file() else None

    square = folder / "mean_square.npy"
    return TeacherStates(
        blocks=mapped("blocks.npy"),
        queries=mapped("queries.npy"),
        unit=json.loads((folder / "progress.json").read_text())["unit"],
        mean_square=np.load(square, allow_pickle=False) if square.is_file() else None,
    )


class _Computation:
    """Fills the arrays batch by batch; a killed computation continues from its last checkpoint."""

    def __init__(self, request: Request, folder: Path) -> None:
        self.request, self.rows, self.folder = request, request.rows, folder
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint = folder / "progress.json"
        state: dict[str, Any] = (
            json.loads(checkpoint.read_text()) if checkpoint.is_file() else {"done": 0, "unit": 0.0}
        )
        self.done = int(state["done"])
        self.unit = float(state["unit"])
        self.blocks, self.queries = self._array("blocks.npy"), self._array("queries.npy")

    def _array(self, name: str) -> NDArray[np.float16] | None:
        shape = self.request.shapes.get(name)
        if shape is None:
            return None
        file = self.folder / name
        mode = "r+" if file.is_file() and self.done else "w+"
        array: NDArray[np.float16] = np.lib.format.open_memmap(
            file, mode=mode, dtype=np.float16, shape=shape if mode == "w+" else None
        )
        return array

    def go(self) -> None:
        total = len(self.rows.item_ids)
        for number, start in enumerate(range(self.done, total, BATCH)):
            self._batch(slice(start, start + BATCH))
            done = min(start + BATCH, total)
            progress = {"task": "teacher states", "done": done, "total": total, "unit": "rows"}
            log.debug("progress", extra={"progress": progress})
            if number % FLUSH_EVERY == FLUSH_EVERY - 1 or done == total:
                self._save(done)
        if self.blocks is not None:
            np.save(self.folder / "mean_square.npy", self._mean_square())

    def _batch(self, part: slice) -> None:
        states, queries = self.request.forward(part)
        if self.blocks is not None and states is not None:
            self.unit = self.unit or unit_of(states)
            self._store(self.blocks, part, states / self.unit)
        if self.queries is not None:
            self._store(self.queries, part, queries)

    def _store(self, array: NDArray[np.float16], part: slice, values: Tensor) -> None:
        array[part] = as_half(values).cpu().numpy().reshape(array[part].shape)

    def _save(self, done: int) -> None:
        for array in (self.blocks, self.queries):
            if isinstance(array, np.memmap):
                array.flush()
        self.done, self.unit = done, self.unit or 1.0
        staged = self.folder / "progress.partial"
        # `slmc cache gc` removes states by the digest of their teacher.
        state = {"done": done, "unit": self.unit, "teacher": self.request.digest}
        staged.write_text(json.dumps(state))
        os.replace(staged, self.folder / "progress.json")

    def _mean_square(self) -> NDArray[np.float32]:
        assert self.blocks is not None
        total = np.zeros(self.blocks.shape[2:], dtype=np.float64)
        for start in range(0, len(self.blocks), BATCH):
            real = self.rows.segments[start : start + BATCH] > 0
            states = self.blocks[start : start + BATCH][real].astype(np.float32)
            total += np.square(states).sum(axis=0, dtype=np.float64)
        mean = total / (self.rows.segments > 0).sum() * self.unit**2
        square: NDArray[np.float32] = mean.astype(np.float32)
        return square


def as_half(values: Tensor) -> Tensor:
    """Return values in float16.

    Raises:
        BrokenRunError: One is not finite.
    """
    half = values.half()
    if not torch.isfinite(half).all():
        raise BrokenRunError(
            "teacher states: a state is not finite in float16 "
            f"(largest magnitude {values.abs().max().item():.3g}).",
            "Look at the teacher's training log; train it with a lower learning rate.",
        )
    return half


def unit_of(states: Tensor) -> float:
    """Return the power of two by which states are divided to fit float16."""
    largest = states.abs().max().item()
    return 2.0 ** max(0, math.ceil(math.log2(largest / LARGEST))) if largest > 0 else 1.0
