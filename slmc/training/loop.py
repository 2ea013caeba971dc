"""The training loop: trains on packed rows and keeps the weights that rank best.

Every stage that trains (SASRec, teach, distill) passes a task, a module that turns a batch into
named loss terms, and a validation that ranks. The loop knows neither models nor losses. It uses
HF Accelerate: under ``accelerate launch`` or ``torchrun`` several processes divide the rows of
each step, on the same file system, with the result of one process.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from slmc import processes
from slmc.evaluation.metrics import LOWER_IS_BETTER
from slmc.model.text_items import TextItems
from slmc.training import schedule, stability
from slmc.training.checkpoint import Checkpoint, Progress
from slmc.training.clock import Clock
from slmc.training.costs import VALIDATION_SHARE
from slmc.training.dataloader import Dataloader
from slmc.training.optimizer import adamw, clip_gradients
from slmc.training.schedule import Decay
from slmc.training.types import Batch, Outcome, Stopped, TrainSetup

TRAINING_COST = 3
"""Cost of training on a token relative to a forward pass (forward and backward)."""
MOST_VALIDATIONS = 8
"""Largest number of validations per epoch."""

log = logging.getLogger("slmc.train")


def train(task: nn.Module, groups: Sequence[dict[str, Any]], setup: TrainSetup) -> Outcome:
    """Train ``task`` in place and keep the weights that rank best on validation users.

    The learning rate is constant until early stopping (the last ``config.patience`` validations
    are on average no better than those before them) or until a limit is near (``config.epochs``,
    ``config.max_minutes``). It then decays to 0, starting from the best weights so far
    (:mod:`slmc.training.schedule`). The weights at the end of the decay are kept, unless those of
    another validation rank better by more than the noise of validations on the plateau: at a
    constant rate single validations stand out by chance.

    Args:
        task: ``task(batch)`` returns the loss terms by name, including ``ce`` and their sum
            ``total``.
        groups: Parameter groups for AdamW, each with ``params`` and its peak ``lr``.
        setup: Config, data, validation, device and checkpoint of the run.

    Raises:
        BrokenRunError: A loss or gradient is not finite, or the run diverged.
    """
    return _Run(task, groups, setup).run()


class _Run:
    """One training run. A step is one optimizer step, counted over all epochs."""

    def __init__(
        self, task: nn.Module, groups: Sequence[dict[str, Any]], setup: TrainSetup
    ) -> None:
        config, device = setup.config, setup.placement.device
        self.setup, self.config = setup, config
        if device.index is not None:
            torch.cuda.set_device(device)
        self.accelerator = Accelerator(cpu=device.type == "cpu")
        torch.manual_seed(config.seed)
        unwrapped = task.to(device)
        if self.accelerator.num_processes > 1:
            # Not every backend of torch.distributed can add sparse gradients.
            for module in unwrapped.modules():
                if isinstance(module, nn.Embedding | TextItems):
                    module.sparse = False
        optimizer = adamw(groups, config, device)
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.task, self.optimizer = self.accelerator.prepare(unwrapped, optimizer)
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self.parameters = {n: p for n, p in unwrapped.named_parameters() if id(p) in trained}
        resume: Path = processes.agreed(setup.resume)
        self.checkpoint = Checkpoint(resume / "train.safetensors", self.parameters, optimizer)
        self.progress = Progress()

    def run(self) -> Outcome:
        if self.checkpoint.exists():
            self.progress = self.checkpoint.load()
            log.info("%s continues from step %d", self.setup.name, self.progress.step)
        self.data = Dataloader(self.setup, self.accelerator)
        self._plan()
        self.clock = Clock(self.setup, self.accelerator, self.progress.seconds)
        while self.progress.decay is None or self.progress.step < self.progress.decay.end:
            self._train_until_validation()
            self._validate()
            if self.progress.decay is None:
                self._maybe_begin_decay()
            self._save()
        kept = self._keep_best()
        self.accelerator.free_memory()
        processes.leave_to_main()
        return self._outcome(kept)

    def _plan(self) -> None:
        """Set the steps at which the run validates, and where its decay begins at the latest."""
        tokens, cost = self.data.tokens, max(1, self.setup.validation.tokens)
        affordable = int(VALIDATION_SHARE * TRAINING_COST * tokens / cost)
        parts = min(MOST_VALIDATIONS, max(1, affordable))
        within = schedule.validations(self.data.steps, parts)
        self.shortest_decay = within[0]
        self.validate_at = [
            epoch * self.data.steps + step for epoch in range(self.config.epochs) for step in within
        ]
        like = self.setup.like
        if like is None:
            self.total = self.validate_at[-1]
            self.latest = schedule.latest_start(self.total, self.validate_at)
        else:
            self.total, self.latest = like.end, like.start

    def _train_until_validation(self) -> None:
        """Take optimizer steps up to the next validation, or until time is over."""
        progress = self.progress
        ends = [*self.validate_at, progress.decay.end if progress.decay else self.latest]
        end = min(step for step in ends if step > progress.step)
        self.task.train()
        while progress.step < end and not self._out_of_time():
            batch = self.data.batch(*divmod(progress.step, self.data.steps))
            terms = self._step(replace(batch, done=progress.step / self.total))
            self._log_step(terms)
            if self.clock.checkpoint_due():
                self._save()

    def _step(self, batch: Batch) -> dict[str, float]:
        """Take one optimizer step; returns the loss terms and the gradient norm."""
        progress, placement = self.progress, self.setup.placement
        self.lr_share = schedule.rate(progress.step, self.config.warmup, progress.decay)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * self.lr_share
        with torch.autocast(placement.device.type, placement.dtype, enabled=placement.mixed):
            losses: dict[str, Tensor] = self.task(batch)
        if self.accelerator.num_processes > 1:
            losses = {name: batch.weight * term for name, term in losses.items()}
        self.accelerator.backward(losses["total"])
        norm = self._clip()
        values = torch.stack([t.detach().float() for t in (*losses.values(), norm)])
        means = cast(Tensor, self.accelerator.reduce(values, "mean")).tolist()
        terms = dict(zip((*losses, "grad_norm"), means, strict=True))
        stability.check_step(self.setup, terms, progress.step, self.total)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        progress.add(terms)
        return terms

    def _clip(self) -> Tensor:
        """Clip the gradients; returns their norm before."""
        parameters = list(self.parameters.values())
        if any(p.grad is not None and p.grad.is_sparse for p in parameters):
            return clip_gradients(parameters, self.config.clip)
        norm: Tensor = self.accelerator.clip_grad_norm_(parameters, self.config.clip)
        return norm

    def _validate(self) -> None:
        """Rank the validation users, and remember the weights if they rank better."""
        progress, name = self.progress, self.setup.name
        means = progress.pop_means()
        stability.check_learning(self.setup, means["ce"], progress.step, self.total)
        self.task.eval()
        began = time.monotonic()
        # One process measures, so that all take the same decisions.
        measured = self.setup.validation.measure() if self.accelerator.is_main_process else None
        metrics: dict[str, float] = processes.agreed(measured)
        progress.validating += time.monotonic() - began
        stability.check_validation(self.setup, metrics, progress.step, self.total)
        epoch = progress.step / self.data.steps
        log.info(
            "%s epoch %.4g of at most %d: ce %.4f, validation %s",
            name,
            epoch,
            self.config.epochs,
            means["ce"],
            ", ".join(f"{metric} {value:.4f}" for metric, value in metrics.items()),
        )
        valid = {f"valid_{metric}": value for metric, value in metrics.items()}
        report = {"task": name, "done": progress.step, "terms": valid}
        log.debug("validation", extra={"progress": report})
        progress.history.append({"epoch": epoch, "lr": self.lr_share, **means, **valid})
        latest = self._curve()[-1]
        if latest > progress.best:
            progress.best, progress.best_step = latest, progress.step
            self.checkpoint.remember_best()

    def _maybe_begin_decay(self) -> None:
        """End the constant phase if ranking has stopped improving, or a limit is near."""
        step, like = self.progress.step, self.setup.like
        if like is not None:
            if step >= like.start:
                self._begin_decay(like, "like")
            return
        left = self.total - step
        if schedule.plateau(self._curve_of_constant_loss(), self.config.patience):
            most = self.clock.affordable(left, step)
            useful = self.progress.best_step
            decay = schedule.after(step, useful, least=self.shortest_decay, most=most)
            self._begin_decay(decay, "plateau")
        elif step >= self.latest:
            self._begin_decay(Decay(step, self.clock.affordable(left, step)), "epochs")
        elif self._out_of_time():
            most = self.clock.affordable(left, step)
            self._begin_decay(schedule.after(step, step, least=1, most=most), "minutes")

    def _begin_decay(self, decay: Decay, why: Stopped) -> None:
        self.progress.decay, self.progress.stopped = decay, why
        self.checkpoint.restore_best()
        log.info(
            "%s: the learning rate decays over %.2f epochs, from the weights of epoch %.2f",
            self.setup.name,
            decay.steps / self.data.steps,
            self.progress.best_step / self.data.steps,
        )

    def _keep_best(self) -> int:
        """Keep the weights at the end of the decay, or earlier ones that are better beyond noise.

        Returns the step at which the kept weights were reached.
        """
        progress = self.progress
        noise = schedule.noise(self._constant_phase()[-2 * self.config.patience :])
        if self._curve()[-1] >= progress.best - noise:
            return progress.step
        self.checkpoint.restore_best()
        return progress.best_step

    def _outcome(self, kept: int) -> Outcome:
        progress, config = self.progress, self.config
        assert progress.decay is not None and progress.stopped is not None
        limited = progress.stopped in ("epochs", "minutes")
        improving = limited and schedule.improving(self._constant_phase(), config.patience)
        if improving:
            log.warning(
                "%s: training ended at its limit (%s) while ranking still improved; training "
                "longer may rank better",
                self.setup.name,
                f"epochs: {config.epochs}"
                if progress.stopped == "epochs"
                else f"max_minutes: {config.max_minutes:g}",
            )
        log.info(
            "%s: %.1f minutes, including %.1f minutes of validation",
            self.setup.name,
            self.clock.elapsed() / 60,
            progress.validating / 60,
        )
        return Outcome(
            epochs=progress.history,
            best_epoch=round(kept / self.data.steps, 3),
            selected_by=config.select_by,
            steps=progress.step,
            stopped=progress.stopped,
            still_improving=improving,
            decay=asdict(progress.decay),
        )

    def _curve(self) -> list[float]:
        """Return the ``select_by`` metric of each validation, signed so that larger is better."""
        metric = self.config.select_by
        sign = -1 if metric in LOWER_IS_BETTER else 1
        return [sign * entry[f"valid_{metric}"] for entry in self.progress.history]

    def _curve_of_constant_loss(self) -> list[float]:
        """Return the part of that curve in which the loss no longer changed."""
        start = self.setup.constant_from * self.total
        steps = (round(entry["epoch"] * self.data.steps) for entry in self.progress.history)
        return self._curve()[sum(step <= start for step in steps) if start else 0 :]

    def _constant_phase(self) -> list[float]:
        """Return the part of that curve before the decay."""
        assert self.progress.decay is not None
        steps = (round(entry["epoch"] * self.data.steps) for entry in self.progress.history)
        count = sum(step <= self.progress.decay.start for step in steps)
        return self._curve()[:count]

    def _out_of_time(self) -> bool:
        """Return whether ``max_minutes`` ends the constant phase now."""
        if self.progress.decay or self.setup.like:
            return False
        return self.clock.constant_phase_over() and self.progress.step > 0

    def _log_step(self, terms: dict[str, float]) -> None:
        progress = {
            "task": self.setup.name,
            "done": self.progress.step,
            "total": self.progress.decay.end if self.progress.decay else None,
            "unit": "steps",
            "epoch": (self.progress.step - 1) // self.data.steps,
            "lr": self.optimizer.param_groups[0]["lr"],
            "terms": terms,
        }
        log.debug("progress", extra={"progress": progress})

    def _save(self) -> None:
        self.progress.seconds = self.clock.elapsed()
        if self.accelerator.is_main_process:
            self.checkpoint.save(self.progress)
        self.clock.checkpoint_saved()
