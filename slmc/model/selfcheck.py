"""Whether a decoder computes packed histories as it computes each alone.

A decoder may do what no list of kinds foresees: mix tokens outside attention, bend the scores,
mask keys of its own. So a few tokens go through its first layers twice: through the decoder's
own (eager) attention, a history at a time, and packed, alone and behind another history.
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
from slmc.model.quieting import quiet

LENGTHS = (7, 5)
"""Tokens of the two histories: the first stands before the second."""
WINDOW = 4
"""Queries of a window of packed attention, fewer than a history has tokens."""
NARROW = 3
"""What a sliding window is set to meanwhile, so that it hides tokens of so short a history."""
WINDOWS = ("sliding_window", "attention_chunk_size")
TOLERANCE = 1e-5
"""Largest difference, relative to the largest state: float32 leaves about 1e-6."""
OTHER_STATES = "its attention is not the one that packed histories are computed with"
LEAK = "a history changes the states of the one behind it"


@torch.no_grad()
def check_kind(config: PreTrainedConfig, label: str) -> None:
    """Check a decoder of a config with weights of which each has a visible effect.

    Fresh weights are so small that attention is nearly even, and vectors such as sinks are
    often 0. The random numbers of the caller stay as they are.

    Args:
        config: Of a decoder of few layers.
        label: What messages call it.

    Raises:
        UsageError: As :func:`check`.
    """
    draw = torch.Generator().manual_seed(0)
    with quiet(), no_init_weights():
        model: PreTrainedModel = AutoModel.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter.shape[-1] ** -0.5, generator=draw)
        else:
            parameter.uniform_(0.5, 1, generator=draw)
    check(model.eval(), label)


@torch.no_grad()
def check(model: PreTrainedModel, label: str, scale: float = 1.0) -> None:
    """Compare packed histories with each alone, through the first layers of each kind.

    Args:
        model: A decoder on the CPU, in evaluation mode, float32.
        label: What messages call it.
        scale: Root mean square of its inputs.

    Raises:
        UsageError: They differ, or it cannot compute packed histories.
    """
    draw = torch.Generator().manual_seed(0)
    width = model.config.hidden_size
    first, second = (scale * torch.randn(n, width, generator=draw) for n in LENGTHS)
    before = model.config._attn_implementation
    with quiet(), _first_layers(model), _narrow(model):
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
                reason = "it does not tell its attention how they are packed"
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


def _compare(found: Tensor, expected: Tensor, what: str, wrong: str) -> None:
    far = ((found - expected).abs().max() / expected.abs().max()).item()
    if not far <= TOLERANCE:  # also where it is not a number
        raise UsageError(
            f"{what} cannot be packed: {wrong} (off by {far:.2g} of the largest).",
            decoders.REMEDY,
        )


@contextmanager
def _first_layers(model: PreTrainedModel) -> Iterator[None]:
    """Leave the layers away that are of no further kind, meanwhile."""
    layers, depth = cast(nn.ModuleList, model.layers), model.config.num_hidden_layers
    needed = decoders.needed_layers(model)
    model.layers, model.config.num_hidden_layers = layers[:needed], needed
    try:
        yield
    finally:
        model.layers, model.config.num_hidden_layers = layers, depth


@contextmanager
def _narrow(model: PreTrainedModel) -> Iterator[None]:
    """Narrow every window of the decoder, meanwhile."""
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
