"""The one training loop: packed rows in, the weights of the best epoch out.

Every stage that trains (SASRec, teach, distill) gives the loop a task, a module that turns a
batch into named loss terms. The loop knows neither models nor losses. It runs through HF
Accelerate, so that ``accelerate launch`` spreads it over processes.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from slmc.checkpoint import Checkpoint, Progress
from slmc.config import TrainConfig
from slmc.data.batches import Rows
from slmc.errors import BrokenRunError
from slmc.model.device import Placement

BETA1 = 0.9
FINAL_LR = 0.02
"""Share of the peak learning rate at which the cosine decay ends."""
LARGEST_GRADIENT = 1e6
"""A norm that no run which learned has shown; the ones that diverged had 1e7 and more."""
STUCK_AFTER = 100
"""Steps after the warm-up from which a loss at log(items) counts as diverged."""
STUCK_MARGIN = 0.05
"""Nats below log(items) that count as having learned nothing."""

log = logging.getLogger("slmc.train")


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
class Outcome:
    """What a training run tells of itself, in JSON-able form."""

    epochs: list[dict[str, float]]
    """Mean of every loss term, and the validation cross-entropy, by epoch."""
    best_epoch: int
    stopped_early: bool
    steps: int


def train(
    task: nn.Module,
    groups: Sequence[dict[str, Any]],
    epochs: Epochs,
    config: TrainConfig,
    *,
    name: str,
    placement: Placement,
    num_items: int,
    validate: Callable[[], float],
    resume: Path,
) -> Outcome:
    """Train ``task`` in place and leave it with the weights of its best epoch.

    Args:
        task: ``task(batch)`` gives the loss terms by name, ``ce`` and their sum ``total`` among
            them.
        groups: Parameter groups for AdamW, each with ``params`` and its peak ``lr``.
        epochs: Where rows come from.
        config: Settings of the loop.
        name: Name of the stage in the log.
        placement: Device and precision.
        num_items: ``V``; a loss that stays at ``log(V)`` has learned nothing.
        validate: Cross-entropy on the validation targets, in nats; the best epoch has the
            lowest.
        resume: Folder of the checkpoint; a run that was killed goes on from it, with the same
            bits on the same machine and number of threads.

    Raises:
        BrokenRunError: A loss or gradient is not finite, or the run diverged.
    """
    return _Run(task, groups, epochs, config, name, placement, num_items, validate, resume).go()


class _Run:
    def __init__(
        self,
        task: nn.Module,
        groups: Sequence[dict[str, Any]],
        epochs: Epochs,
        config: TrainConfig,
        name: str,
        placement: Placement,
        num_items: int,
        validate: Callable[[], float],
        resume: Path,
    ) -> None:
        self.epochs, self.config, self.name = epochs, config, name
        self.placement, self.num_items, self.validate = placement, num_items, validate
        if placement.device.index is not None:
            torch.cuda.set_device(placement.device)
        self.accelerator = Accelerator(cpu=placement.device.type == "cpu")
        torch.manual_seed(config.seed)
        self.raw = task.to(placement.device)
        fused = placement.device.type in ("cpu", "cuda")
        optimizer = torch.optim.AdamW(
            _decayed(groups, config.weight_decay), betas=(BETA1, config.beta2), fused=fused
        )
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.task, self.optimizer = self.accelerator.prepare(self.raw, optimizer)
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self.parameters = {n: p for n, p in self.raw.named_parameters() if id(p) in trained}
        self.checkpoint = Checkpoint(resume / "train.safetensors", self.parameters, optimizer)
        self.progress = Progress()
        self.saved_at = time.monotonic()
        self.packed: tuple[int, Rows] | None = None

    def go(self) -> Outcome:
        if self.checkpoint.exists():
            self.progress = self.checkpoint.load()
            log.info("%s goes on from step %d", self.name, self.progress.step)
        self.total = self.config.epochs * self._steps(0)
        while self.progress.epoch < self.config.epochs and not self._stop():
            self._epoch(self.progress.epoch)
        self.checkpoint.restore_best()
        self.accelerator.free_memory()
        return Outcome(
            self.progress.history, self.progress.best_epoch, self._stop(), self.progress.step
        )

    def _stop(self) -> bool:
        return self.progress.epoch - self.progress.best_epoch >= self.config.patience

    def _rows(self, epoch: int) -> Rows:
        packing = self.epochs.packing(epoch)
        if self.packed is None or self.packed[0] != packing:
            self.packed = packing, self.epochs.pack(packing)
        return self.packed[1]

    def _steps(self, epoch: int) -> int:
        rows = len(self._rows(epoch).item_ids)
        return math.ceil(rows / (self.config.rows * self.accelerator.num_processes))

    def _epoch(self, epoch: int) -> None:
        self.task.train()
        rows, steps = self._rows(epoch), self._steps(epoch)
        order = np.random.default_rng((self.config.seed, epoch, 1)).permutation(len(rows.item_ids))
        for step in range(self.progress.step_in_epoch, steps):
            terms = self._step(self._batch(rows, order, step, epoch))
            self._log(terms, epoch)
            self._maybe_save()
        self._end_epoch(epoch)

    def _batch(self, rows: Rows, order: NDArray[np.int64], step: int, epoch: int) -> Batch:
        world = self.accelerator.num_processes
        start = (step * world + self.accelerator.process_index) * self.config.rows
        index = order[start : start + self.config.rows]
        if not len(index):  # the last step of this process has no rows of its own
            index = order[: self.config.rows]

        def taken(array: NDArray[np.int64]) -> Tensor:
            return torch.from_numpy(array[index]).to(self.placement.device)

        return Batch(
            taken(rows.item_ids),
            taken(rows.targets),
            taken(rows.positions),
            taken(rows.segments),
            index=index,
            packing=self.epochs.packing(epoch),
        )

    def _step(self, batch: Batch) -> dict[str, float]:
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * schedule(self.progress.step, self.config.warmup, self.total)
        with torch.autocast(
            self.placement.device.type, self.placement.dtype, enabled=self.placement.mixed
        ):
            terms: dict[str, Tensor] = self.task(batch)
        self.accelerator.backward(terms["total"])
        norm = self.accelerator.clip_grad_norm_(self.parameters.values(), self.config.clip)
        values = torch.stack([t.detach().float() for t in (*terms.values(), norm)]).tolist()
        found = dict(zip((*terms, "grad_norm"), values, strict=True))
        self._check(found)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        self.progress.step_in_epoch += 1
        for term, value in found.items():
            self.progress.sums[term] = self.progress.sums.get(term, 0.0) + value
        return found

    def _check(self, found: dict[str, float]) -> None:
        bad = [term for term, value in found.items() if not math.isfinite(value)]
        if bad:
            raise self._diverged(f"{', '.join(bad)} is not a finite number")
        if found["grad_norm"] > LARGEST_GRADIENT:
            raise self._diverged(f"the gradient's norm is {found['grad_norm']:.1e}")

    def _diverged(self, what: str) -> BrokenRunError:
        return BrokenRunError(
            f"{self.name}: {what} at step {self.progress.step} of {self.total}.",
            f"Lower the learning rate (now {self.config.lr:g}), or lengthen the warm-up "
            f"(now {self.config.warmup} steps).",
        )

    def _log(self, terms: dict[str, float], epoch: int) -> None:
        progress = {
            "task": self.name,
            "done": self.progress.step,
            "total": self.total,
            "unit": "steps",
            "epoch": epoch,
            "lr": self.optimizer.param_groups[0]["lr"],
            "terms": terms,
        }
        log.debug("progress", extra={"progress": progress})

    def _end_epoch(self, epoch: int) -> None:
        steps = self.progress.step_in_epoch
        means = {term: total / steps for term, total in self.progress.sums.items()}
        uniform = math.log(self.num_items)
        waited = self.progress.step >= self.config.warmup + STUCK_AFTER
        if waited and means["ce"] > uniform - STUCK_MARGIN:
            raise self._diverged(
                f"the loss is {means['ce']:.2f}, as of a model that knows nothing ({uniform:.2f}),"
            )
        self.task.eval()
        means["valid_ce"] = self.validate()
        if not math.isfinite(means["valid_ce"]):
            raise self._diverged("the validation cross-entropy is not a finite number")
        log.info(
            "%s epoch %d of %d: ce %.4f, validation ce %.4f",
            self.name,
            epoch + 1,
            self.config.epochs,
            means["ce"],
            means["valid_ce"],
        )
        self.progress.history.append(means)
        if means["valid_ce"] < self.progress.best:
            self.progress.best, self.progress.best_epoch = means["valid_ce"], epoch + 1
            self.checkpoint.remember_best()
        self.progress.epoch, self.progress.step_in_epoch = epoch + 1, 0
        self.progress.sums = {}
        self._save()

    def _maybe_save(self) -> None:
        if time.monotonic() - self.saved_at >= self.config.checkpoint_s:
            self._save()

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            self.checkpoint.save(self.progress)
        self.saved_at = time.monotonic()


def schedule(step: int, warmup: int, total: int) -> float:
    """Share of the peak learning rate: linear warm-up, then cosine down to 2 %."""
    warmup = min(warmup, total // 2)
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return FINAL_LR + (1 - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * done))


def _decayed(groups: Sequence[dict[str, Any]], decay: float) -> list[dict[str, Any]]:
    """Split each group: matrices decay, vectors (norms, biases) do not."""
    split = []
    for group in groups:
        for matrices in (True, False):
            params = [p for p in group["params"] if (p.ndim >= 2) is matrices]
            if params:
                split.append(group | {"params": params, "weight_decay": decay if matrices else 0.0})
    return split
