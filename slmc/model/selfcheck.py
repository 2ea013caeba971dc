"""Check that a decoder gives packed histories the same states as single ones.

A decoder may do what no list of kinds covers: mix tokens outside attention, change the scores, or
mask keys itself. So two short histories go through its first layers twice: one at a time through
the decoder's own (eager) attention, and packed, both alone and after another history.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from slmc.errors import UsageError
from slmc.model import decoders, packing
from slmc.model.silence import silence_transformers

LENGTHS = (7, 5)
"""Tokens of the two histories, in the order in which they are packed."""
WINDOW = 4
"""Queries of a window of packed attention: fewer than the tokens of a history."""
NARROW = 3
"""Length of sliding windows during the check, so that they hide tokens of short histories."""
WINDOWS = ("sliding_window", "attention_chunk_size")
TOLERANCE = 1e-5
"""Largest difference, relative to the largest state; float32 rounding gives about 1e-6."""
OTHER_STATES = "its attention differs from packed attention"
LEAK = "a history changes the states of the next one"


@torch.no_grad()
def check_kind(config: PreTrainedConfig, label: str) -> None:
    """Check a decoder of a config with random weights that all have a visible effect.

    Initial weights are so small that attention is nearly uniform, and vectors such as sinks are
    often 0. The random state of the caller is not changed.

    Args:
        config: Config of a decoder of few layers.
        label: Its name in messages.

    Raises:
        UsageError: As :func:`check`.
    """
    generator = torch.Generator().manual_seed(0)
    with silence_transformers(), no_init_weights():
        model: PreTrainedModel = AutoModel.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)
        else:
            parameter.uniform_(0.5, 1, generator=generator)
    check(model.eval(), label)


@torch.no_grad()
def check(model: PreTrainedModel, label: str, scale: float = 1.0) -> None:
    """Compare packed with single histories, through first layers that contain every kind.

    Args:
        model: A decoder on the CPU, in evaluation mode, float32.
        label: Its name in messages.
        scale: Root mean square of its inputs.

    Raises:
        UsageError: They differ, or it cannot compute packed histories.
    """
    generator = torch.Generator().manual_seed(0)
    width = model.config.hidden_size
    first, second = (scale * torch.randn(n, width, generator=generator) for n in LENGTHS)
    before = model.config._attn_implementation
    with silence_transformers(), _first_layers(model), _narrow(model):
        try:
            model.set_attn_implementation("eager")
            expected = [_states(model, one) for one in (first, second)]
            model.set_attn_implementation(packing.IMPLEMENTATION)
            alone, together = _packed(model, [second]), _packed(model, [first, second])
        except UsageError as error:
            raise UsageError(f"{label}: {model.config.model_type} {error}", error.remedy) from None
        except decoders.BUILDING as error:
            reason = decoders.one_line(error)
            if isinstance(error, TypeError) and "'packing'" in reason:
                reason = "it does not pass the packing to its attention"
            raise UsageError(
                f"{label}: {model.config.model_type} cannot compute packed histories ({reason}).",
                decoders.REMEDY,
            ) from None
        finally:
            model.set_attn_implementation(before)
    _compare(alone, expected[1], f"{label}: {model.config.model_type}", OTHER_STATES)
    _compare(together, torch.cat(expected), f"{label}: {model.config.model_type}", LEAK)


def _states(model: PreTrainedModel, inputs: Tensor) -> Tensor:
    states: Tensor = model(inputs_embeds=inputs[None], use_cache=False).last_hidden_state[0]
    return states


def _packed(model: PreTrainedModel, histories: list[Tensor]) -> Tensor:
    lengths = torch.tensor([len(one) for one in histories])
    row_of_token = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    layout = packing.stream(lengths, row_of_token, int(lengths.max()), WINDOW)
    states: Tensor = model(
        inputs_embeds=torch.cat(histories)[None],
        position_ids=layout.positions,
        use_cache=False,
        packing=layout,
    ).last_hidden_state[0]
    return states


def _compare(states: Tensor, expected: Tensor, what: str, wrong: str) -> None:
    difference = ((states - expected).abs().max() / expected.abs().max()).item()
    if not difference <= TOLERANCE:  # also if it is NaN
        raise UsageError(
            f"{what} cannot be packed: {wrong} (relative difference {difference:.2g}).",
            decoders.REMEDY,
        )


@contextmanager
def _first_layers(model: PreTrainedModel) -> Iterator[None]:
    """Cut the model to first layers that contain every kind, for the duration of the check."""
    layers, depth = cast(nn.ModuleList, model.layers), model.config.num_hidden_layers
    needed = decoders.needed_layers(model)
    model.layers, model.config.num_hidden_layers = layers[:needed], needed
    try:
        yield
    finally:
        model.layers, model.config.num_hidden_layers = layers, depth


@contextmanager
def _narrow(model: PreTrainedModel) -> Iterator[None]:
    """Shorten every sliding window of the decoder, for the duration of the check."""
    owners: list[Any] = [model.config, *model.modules()]
    changed = [
        (owner, name, vars(owner)[name])
        for owner in owners
        for name in WINDOWS
        if isinstance(vars(owner).get(name), int)
    ]
    for owner, name, _ in changed:
        setattr(owner, name, NARROW)
    try:
        yield
    finally:
        for owner, name, value in changed:
            setattr(owner, name, value)
