"""The one training loop: packed rows in, the weights that rank best out.

Every stage that trains (SASRec, teach, distill) gives the loop a task, a module that turns a
batch into named loss terms, and a validation that ranks. The loop knows neither models nor
losses. It runs through HF Accelerate, so that ``accelerate launch`` spreads it over processes.
"""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from numpy.typing import NDArray
from torch import Tensor, nn

from slmc.config import TrainConfig
from slmc.data.batches import Rows
from slmc.errors import BrokenRunError
from slmc.evaluation.metrics import LOWER_IS_BETTER
from slmc.model.device import Placement
from slmc.training import schedule
from slmc.training.checkpoint import Checkpoint, Progress
from slmc.training.optimizer import adamw
from slmc.training.schedule import Decay
from slmc.training.types import Batch, Epochs, Outcome, Stopped, Validation

VALIDATION_SHARE = 0.1
"""Largest share of training that several validations of one epoch may cost."""
TRAINING_COST = 3
"""Cost of training on a token, as a multiple of computing it once (forward and backward)."""
MOST_VALIDATIONS = 8
"""Validations of one epoch, at most."""
LARGEST_GRADIENT = 1e6
"""A norm that no run which learned has shown; the ones that diverged had 1e7 and more."""
STUCK_AFTER = 100
"""Steps after the warm-up from which a loss at log(items) counts as diverged."""
STUCK_MARGIN = 0.05
"""Nats below log(items) that count as having learned nothing."""

log = logging.getLogger("slmc.train")


def train(
    task: nn.Module,
    groups: Sequence[dict[str, Any]],
    epochs: Epochs,
    config: TrainConfig,
    *,
    name: str,
    placement: Placement,
    num_items: int,
    validation: Validation,
    resume: Path,
    like: Decay | None = None,
) -> Outcome:
    """Train ``task`` in place and leave it with the weights that rank best on validation users.

    The rate is constant until the last ``config.patience`` validations are on average no better
    than those before them, or a bound nears (``config.epochs``, ``config.max_minutes``); then it
    decays to 0 from the best weights so far (:mod:`slmc.training.schedule`). The weights at the end
    of the decay are kept, unless those of another validation rank better by more than validations
    differ on the plateau: at a constant rate single ones stand out by chance.

    Args:
        task: ``task(batch)`` gives the loss terms by name, ``ce`` and their sum ``total`` among
            them.
        groups: Parameter groups for AdamW, each with ``params`` and its peak ``lr``.
        epochs: Where rows come from.
        config: Settings of the loop.
        name: Name of the stage in the log.
        placement: Device and precision.
        num_items: ``V``; a loss that stays at ``log(V)`` has learned nothing.
        validation: Ranks validation users; once an epoch, or several times where that costs
            less than a tenth of training.
        resume: Folder of the checkpoint; a run that was killed goes on from it, with the same
            bits on the same machine and number of threads.
        like: Decay of the run that this one is compared with, to train for as many steps.

    Raises:
        BrokenRunError: A loss or gradient is not finite, or the run diverged.
    """
    run = _Run(task, groups, epochs, config, name, placement, num_items, validation, resume, like)
    return run.go()


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
        validation: Validation,
        resume: Path,
        like: Decay | None,
    ) -> None:
        self.epochs, self.config, self.name = epochs, config, name
        self.placement, self.num_items, self.validation = placement, num_items, validation
        self.like = like
        if placement.device.index is not None:
            torch.cuda.set_device(placement.device)
        self.accelerator = Accelerator(cpu=placement.device.type == "cpu")
        torch.manual_seed(config.seed)
        self.raw = task.to(placement.device)
        optimizer = adamw(groups, config, placement.device)
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.task, self.optimizer = self.accelerator.prepare(self.raw, optimizer)
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self.parameters = {n: p for n, p in self.raw.named_parameters() if id(p) in trained}
        self.checkpoint = Checkpoint(resume / "train.safetensors", self.parameters, optimizer)
        self.progress = Progress()
        self.packed: tuple[int, Rows] | None = None
        self.order: tuple[int, NDArray[np.int64]] | None = None

    def go(self) -> Outcome:
        if self.checkpoint.exists():
            self.progress = self.checkpoint.load()
            log.info("%s goes on from step %d", self.name, self.progress.step)
        rows = self._rows(0)
        self.steps = math.ceil(
            len(rows.item_ids) / (self.config.rows * self.accelerator.num_processes)
        )
        self.marks = self._marks(int((rows.item_ids != 0).sum()))
        self.total = self.marks[-1] if self.like is None else self.like.end
        self.latest = (
            schedule.latest_start(self.total, self.marks) if self.like is None else self.like.start
        )
        self.resumed_at = self.saved_at = time.monotonic()
        self.spent = self.progress.seconds
        while self.progress.decay is None or self.progress.step < self.progress.decay.end:
            self._period()
        kept = self._choose()
        self.accelerator.free_memory()
        return self._outcome(kept)

    def _choose(self) -> int:
        """Keep the weights at the end of the decay, or earlier ones that rank better beyond noise.

        Returns the step at which the kept weights were reached.
        """
        progress = self.progress
        noise = schedule.noise(self._constant()[-2 * self.config.patience :])
        if self._curve()[-1] >= progress.best - noise:
            return progress.step
        self.checkpoint.restore_best()
        return progress.best_step

    def _outcome(self, kept: int) -> Outcome:
        progress = self.progress
        assert progress.decay is not None and progress.stopped is not None
        bounded = progress.stopped in ("epochs", "minutes")
        improving = bounded and schedule.improving(self._constant(), self.config.patience)
        if improving:
            log.warning(
                "%s: reached its bound (%s) while ranking still improved; more may rank better",
                self.name,
                f"epochs: {self.config.epochs}"
                if progress.stopped == "epochs"
                else f"max_minutes: {self.config.max_minutes:g}",
            )
        minutes = self._elapsed() / 60, progress.validating / 60
        log.info("%s: %.1f minutes, of which validation took %.1f", self.name, *minutes)
        return Outcome(
            epochs=progress.history,
            best_epoch=round(kept / self.steps, 3),
            selected_by=self.config.select_by,
            steps=progress.step,
            stopped=progress.stopped,
            still_improving=improving,
            decay=asdict(progress.decay),
        )

    def _marks(self, tokens: int) -> list[int]:
        """Steps after which there is a validation, up to the bound of the run."""
        affordable = VALIDATION_SHARE * TRAINING_COST * tokens / max(1, self.validation.tokens)
        parts = min(MOST_VALIDATIONS, max(1, int(affordable)))
        within = schedule.validations(self.steps, parts)
        self.least = within[0]
        return [e * self.steps + mark for e in range(self.config.epochs) for mark in within]

    def _rows(self, epoch: int) -> Rows:
        packing = self.epochs.packing(epoch)
        if self.packed is None or self.packed[0] != packing:
            self.packed = packing, self.epochs.pack(packing)
        return self.packed[1]

    def _period(self) -> None:
        """Train up to the next validation, measure, and decide how to go on."""
        progress = self.progress
        ends = [mark for mark in self.marks if mark > progress.step]
        ends += [progress.decay.end] if progress.decay else [self.latest]
        end = min(mark for mark in ends if mark > progress.step)
        self.task.train()
        while progress.step < end and not self._out_of_time():
            terms = self._step(self._batch(*divmod(progress.step, self.steps)))
            self._log(terms)
            self._maybe_save()
        self._measure()
        if progress.decay is None:
            self._decide()
        self._save()

    def _decide(self) -> None:
        """End the constant phase if ranking has stopped improving, or a bound is near."""
        progress = self.progress
        if self.like is not None:
            if progress.step >= self.like.start:
                self._begin_decay(self.like, "like")
            return
        left = self.total - progress.step
        if schedule.plateau(self._curve(), self.config.patience):
            decay = schedule.after(
                progress.step, progress.best_step, least=self.least, most=self._affordable(left)
            )
            self._begin_decay(decay, "plateau")
        elif progress.step >= self.latest:
            self._begin_decay(Decay(progress.step, self._affordable(left)), "epochs")
        elif self._out_of_time():
            decay = schedule.after(
                progress.step, progress.step, least=1, most=self._affordable(left)
            )
            self._begin_decay(decay, "minutes")

    def _begin_decay(self, decay: Decay, why: Stopped) -> None:
        self.progress.decay, self.progress.stopped = decay, why
        self.checkpoint.restore_best()
        log.info(
            "%s: the rate decays over %.2f epochs, from the weights of epoch %.2f",
            self.name,
            decay.steps / self.steps,
            self.progress.best_step / self.steps,
        )

    def _batch(self, epoch: int, step: int) -> Batch:
        rows = self._rows(epoch)
        if self.order is None or self.order[0] != epoch:
            rng = np.random.default_rng((self.config.seed, epoch, 1))
            self.order = epoch, rng.permutation(len(rows.item_ids))
        order = self.order[1]
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
        self.share = schedule.rate(self.progress.step, self.config.warmup, self.progress.decay)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * self.share
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
        self.progress.summed += 1
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

    def _log(self, terms: dict[str, float]) -> None:
        progress = {
            "task": self.name,
            "done": self.progress.step,
            "total": self.progress.decay.end if self.progress.decay else None,
            "unit": "steps",
            "epoch": (self.progress.step - 1) // self.steps,
            "lr": self.optimizer.param_groups[0]["lr"],
            "terms": terms,
        }
        log.debug("progress", extra={"progress": progress})

    def _measure(self) -> None:
        """Rank the validation users, and remember the weights if they rank better."""
        progress = self.progress
        means = {term: total / progress.summed for term, total in progress.sums.items()}
        uniform = math.log(self.num_items)
        if progress.step >= self.config.warmup + STUCK_AFTER and means["ce"] > (
            uniform - STUCK_MARGIN
        ):
            raise self._diverged(
                f"the loss is {means['ce']:.2f}, as of a model that knows nothing ({uniform:.2f}),"
            )
        self.task.eval()
        began = time.monotonic()
        measured = self.validation.measure()
        progress.validating += time.monotonic() - began
        bad = [metric for metric, value in measured.items() if not math.isfinite(value)]
        if bad:
            raise self._diverged(f"the validation {bad[0]} is not a finite number")
        valid = {f"valid_{metric}": value for metric, value in measured.items()}
        epoch = progress.step / self.steps
        log.info(
            "%s epoch %.4g of at most %d: ce %.4f, validation %s",
            self.name,
            epoch,
            self.config.epochs,
            means["ce"],
            ", ".join(f"{metric} {value:.4f}" for metric, value in measured.items()),
        )
        log.debug(
            "validation",
            extra={"progress": {"task": self.name, "done": progress.step, "terms": valid}},
        )
        progress.history.append({"epoch": epoch, "lr": self.share, **means, **valid})
        if self._curve()[-1] > progress.best:
            progress.best, progress.best_step = self._curve()[-1], progress.step
            self.checkpoint.remember_best()
        progress.sums, progress.summed = {}, 0

    def _curve(self) -> list[float]:
        """The metric that chooses, validation by validation, larger if better."""
        metric = self.config.select_by
        sign = -1 if metric in LOWER_IS_BETTER else 1
        return [sign * one[f"valid_{metric}"] for one in self.progress.history]

    def _constant(self) -> list[float]:
        """The part of that curve before the decay."""
        assert self.progress.decay is not None
        steps = (round(one["epoch"] * self.steps) for one in self.progress.history)
        before = sum(step <= self.progress.decay.start for step in steps)
        return self._curve()[:before]

    def _elapsed(self) -> float:
        """Seconds of training so far, those before a kill included."""
        return self.spent + time.monotonic() - self.resumed_at

    def _out_of_time(self) -> bool:
        """Whether the constant phase has used up its part of ``max_minutes``."""
        if self.config.max_minutes is None or self.progress.decay or self.like:
            return False
        late = self._elapsed() > 60 * self.config.max_minutes * (1 - schedule.DECAY)
        return self._agreed(int(late)) > 0 and self.progress.step > 0

    def _affordable(self, left: int) -> int:
        """Of ``left`` steps those for which there is time, at least one."""
        if self.config.max_minutes is None:
            return left
        elapsed = self._elapsed()
        time_left = max(0.0, 60 * self.config.max_minutes - elapsed)
        return max(1, min(left, self._agreed(int(self.progress.step * time_left / elapsed))))

    def _agreed(self, value: int) -> int:
        """The main process's value: clocks differ, and all processes must take the same steps."""
        if self.accelerator.num_processes == 1:
            return value
        shared = torch.tensor(value, device=self.placement.device)
        return int(broadcast(shared).item())

    def _maybe_save(self) -> None:
        if time.monotonic() - self.saved_at >= self.config.checkpoint_s:
            self._save()

    def _save(self) -> None:
        self.progress.seconds = self._elapsed()
        if self.accelerator.is_main_process:
            self.checkpoint.save(self.progress)
        self.saved_at = time.monotonic()
