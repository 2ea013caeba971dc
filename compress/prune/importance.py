"""Importance of KV groups and MLP channels; the least important units are pruned.

Letters: ``U`` units of a layer, ``T`` tokens, ``n`` input columns of the output matrix per unit.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from slmc.compress.prune.units import Slice, Units
from slmc.data.batches import pack
from slmc.errors import BrokenRunError, UndecidedError
from slmc.model.layers import BATCH, Histories, forward
from slmc.model.recommender import SequentialRecommender
from slmc.training.next_item import NextItem
from slmc.training.softmax import Softmax
from slmc.training.types import Batch

Method = Literal["magnitude", "activation", "taylor"]


@dataclass(frozen=True)
class Calibration:
    """The calibration set."""

    histories: Histories
    """Item rows of training histories, oldest first."""
    seed: int
    """Determines the order of histories in packed rows."""


def scores(
    method: Method, model: SequentialRecommender, units: Sequence[Units], on: Calibration
) -> list[Tensor]:
    """Return the importance ``[U]`` float64 for each entry of ``units``.

    Raises:
        BrokenRunError: An importance is not finite.
        UndecidedError: No calibration history has a next item (taylor).
    """
    measure: dict[Method, Callable[[], list[Tensor]]] = {
        "magnitude": lambda: [magnitude(one) for one in units],
        "activation": lambda: activation(model, units, on.histories),
        "taylor": lambda: taylor(model, units, on),
    }
    importance = [scores.cpu() for scores in measure[method]()]
    if not all(scores.isfinite().all() for scores in importance):
        raise BrokenRunError(
            f"prune: an importance by {method} is not a finite number.",
            "Check the model's validation cross-entropy: its training has probably diverged.",
        )
    return importance


@torch.no_grad()
def magnitude(units: Units) -> Tensor:
    """Return the sum of squares of all weights of a unit, ``[U]``."""
    parts = [
        one.per_unit(
            one.linear.weight.square(),
            None if one.linear.bias is None else one.linear.bias.square(),
        )
        for one in units.slices
    ]
    return torch.stack(parts).sum(dim=0)


@torch.no_grad()
def activation(
    model: SequentialRecommender, units: Sequence[Units], histories: Histories
) -> list[Tensor]:
    r"""Return the mean square over tokens of a unit's contribution to the hidden state, ``[U]``.

    With activations :math:`a` ``[n]`` of a unit and its columns :math:`O` of the output matrix
    this is :math:`E \lVert O a \rVert^2`: for a single channel Wanda's score (Sun et al. 2024,
    arXiv 2306.11695, equation 1) squared and summed over the outputs.
    """
    outputs = [one.output for one in units]
    grams = [torch.zeros(1, dtype=torch.float64)] * len(outputs)

    def add_gram(number: int, inputs: Tensor) -> None:
        picked = inputs.flatten(0, -2)[:, outputs[number].index]
        grams[number] = grams[number].to(inputs.device) + _gram(picked)

    with _watching(outputs, add_gram):
        tokens = forward(model, histories)
    weights = [_gram(one.linear.weight[:, one.index]) for one in outputs]
    return [(a * w).sum(dim=(1, 2)) / tokens for a, w in zip(grams, weights, strict=True)]


def taylor(model: SequentialRecommender, units: Sequence[Units], on: Calibration) -> list[Tensor]:
    """Return the sum of ``|w dL/dw|`` over all weights of a unit, ``[U]``.

    This is the first-order change of the loss when a weight becomes 0 (LLM-Pruner, Ma et al. 2023,
    arXiv 2305.11627, section 3.2, element-wise). L is the mean cross-entropy of the next item
    over the calibration histories, at the positions that training uses.
    """
    batches = list(_batches(model, on))
    total = sum(int((batch.targets > 0).sum()) for batch in batches)
    if not total:
        raise UndecidedError(
            "prune: no calibration history has two items, so there is no next item to predict.",
            "Set importance: activation or magnitude, or use a log with longer histories.",
        )
    task = NextItem(model, Softmax(model.config.num_items, None))
    with _differentiated(model, [one.linear for unit in units for one in unit.slices]):
        for batch in batches:
            share = int((batch.targets > 0).sum()) / total
            (share * task(batch)["ce"]).backward()
        return [
            torch.stack([_first_order_per_unit(one) for one in unit.slices]).sum(dim=0)
            for unit in units
        ]


def _first_order_per_unit(one: Slice) -> Tensor:
    weight, bias = one.linear.weight, one.linear.bias
    return one.per_unit(_first_order(weight), None if bias is None else _first_order(bias))


def _first_order(parameter: Tensor) -> Tensor:
    """Return ``|w dL/dw|`` of each weight."""
    assert parameter.grad is not None  # the loss depends on every weight of a unit
    return (parameter * parameter.grad).abs().detach()


def _gram(x: Tensor) -> Tensor:
    """Return the Gram matrices ``[U, n, n]`` float64 of the units of ``x`` ``[T, U, n]``."""
    return torch.einsum("tui,tuj->uij", x, x).double()


def _batches(model: SequentialRecommender, on: Calibration) -> Iterator[Batch]:
    """Yield the calibration histories in packed rows, as in training."""
    prompt = (model.config.prefix_length, model.config.suffix_length)
    targets: Literal["all", "last"] = "last" if any(prompt) else "all"
    rng = np.random.default_rng(on.seed)
    rows = pack(on.histories, model.config.history, rng, targets=targets, prompt=prompt)
    for index in np.split(order := np.arange(len(rows.item_ids)), order[BATCH::BATCH]):
        tokens, target_items, positions, segments = (
            torch.from_numpy(one[index]).to(model.device)
            for one in (rows.item_ids, rows.targets, rows.positions, rows.segments)
        )
        yield Batch(tokens, target_items, positions, segments, index=index, packing=0)


@contextmanager
def _watching(outputs: Sequence[Slice], observe: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Call ``observe`` with the number and the inputs ``[1, T, in]`` of each output matrix."""

    def hook(number: int) -> Callable[[nn.Module, Any], None]:
        return lambda _, inputs: observe(number, inputs[0])

    handles = [
        one.linear.register_forward_pre_hook(hook(number)) for number, one in enumerate(outputs)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _differentiated(model: nn.Module, linears: Sequence[nn.Linear]) -> Iterator[None]:
    """Enable gradients for these matrices only; restores the previous state afterwards."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    model.requires_grad_(False)
    for linear in linears:
        linear.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, required in before:
            parameter.grad = None
            parameter.requires_grad_(required)
