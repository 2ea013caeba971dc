"""Detect training runs that diverged or learn nothing."""

import math
from collections.abc import Mapping

from slmc.errors import BrokenRunError
from slmc.training.types import TrainSetup

LARGEST_GRADIENT = 1e6
"""Gradient norm above which a run has diverged: runs that learned stayed below it, those that
diverged reached 1e7 and more."""
STUCK_AFTER = 100
"""Steps after the warm-up from which a loss at log(items) counts as diverged."""
STUCK_MARGIN = 0.05
"""A loss less than this many nats below log(items) means that nothing was learned."""


def check_step(setup: TrainSetup, terms: Mapping[str, float], step: int, total: int) -> None:
    """Check the loss terms and the gradient norm of one optimizer step.

    Args:
        setup: Of the run.
        terms: Loss terms by name, and ``grad_norm``.
        step: Optimizer steps so far.
        total: Steps of the run, for the message.

    Raises:
        BrokenRunError: One is not finite, or the gradient is too large.
    """
    broken = [term for term, value in terms.items() if not math.isfinite(value)]
    if broken:
        raise _diverged(setup, f"{', '.join(broken)} is not a finite number", step, total)
    if terms["grad_norm"] > LARGEST_GRADIENT:
        raise _diverged(setup, f"the gradient norm is {terms['grad_norm']:.1e}", step, total)


def check_learning(setup: TrainSetup, ce: float, step: int, total: int) -> None:
    """Raise ``BrokenRunError`` if the mean training loss is that of a model without knowledge."""
    uniform = math.log(setup.num_items)
    if step >= setup.config.warmup + STUCK_AFTER and ce > uniform - STUCK_MARGIN:
        what = f"the loss is {ce:.2f}, that of a model that has learned nothing ({uniform:.2f}),"
        raise _diverged(setup, what, step, total)


def check_validation(
    setup: TrainSetup, metrics: Mapping[str, float], step: int, total: int
) -> None:
    """Raise ``BrokenRunError`` unless all validation metrics are finite."""
    broken = [metric for metric, value in metrics.items() if not math.isfinite(value)]
    if broken:
        what = f"the validation {broken[0]} is not a finite number"
        raise _diverged(setup, what, step, total)


def _diverged(setup: TrainSetup, what: str, step: int, total: int) -> BrokenRunError:
    return BrokenRunError(
        f"{setup.name}: {what} at step {step} of {total}.",
        f"Lower the learning rate (now {setup.config.lr:g}), or lengthen the warm-up "
        f"(now {setup.config.warmup} steps).",
    )
