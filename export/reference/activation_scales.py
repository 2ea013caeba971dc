"""Fixed scales for tokens in 8 bits, from what the layers of a model see on training histories.

The scale of a layer is the one with the least squared error of its rounded inputs: LLMs have a
few channels that are hundreds of times the others, and a scale that holds them whole leaves the
others none of its steps.

Letters: T tokens, K inputs.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slmc.data.batches import pad_left
from slmc.data.dataset import Dataset
from slmc.errors import UndecidedError
from slmc.export.reference.precision import known_prefix, linear_layers
from slmc.model.loading import Recommender

RANGE = 127
"""Largest magnitude of an int8 code."""
BINS = 4096
"""Bins of a histogram of magnitudes."""
TRIED = 128
"""Clips that are tried, evenly from the largest magnitude down."""
BATCH = 16

Histories = Sequence[NDArray[np.int32]]


def histories(data: Dataset, number: int, seed: int) -> Histories:
    """Training histories, drawn without replacement, the newest items that a model sees.

    Raises:
        UndecidedError: The dataset has none.
    """
    every = [rows[-data.history :] for rows in data.train_sequences()]
    if not every:
        raise UndecidedError(
            "the dataset holds no training history to set the scales of int8 from.",
            "Name a dataset with users in it with --data, or take another precision.",
        )
    order = np.random.default_rng(seed).permutation(len(every))[:number]
    return [every[index] for index in order]


def static_scales(model: Recommender, given: Histories) -> dict[str, float]:
    """What one step of a token's 8-bit codes is worth, for each linear layer of the decoder.

    Args:
        model: In evaluation mode, on the CPU.
        given: Histories; the model computes no padding, so that none is counted.
    """
    largest: dict[str, float] = {}

    def widen(name: str, x: Tensor) -> None:
        largest[name] = max(largest.get(name, 0.0), float(x.abs().max()))

    with _inputs(model, widen):
        _run(model, given)
    counts = {name: np.zeros(BINS) for name in largest}

    def count(name: str, x: Tensor) -> None:
        top = largest[name] or 1.0
        counts[name] += torch.histc(x.abs().float(), bins=BINS, min=0, max=top).numpy()

    with _inputs(model, count):
        _run(model, given)
    return {name: best_clip(counts[name], top or 1.0) / RANGE for name, top in largest.items()}


def best_clip(counts: NDArray[np.float64], largest: float) -> float:
    """The magnitude to clip at that leaves the least squared error.

    Args:
        counts: ``[BINS]`` of magnitudes, evenly from 0 to ``largest``.
        largest: The largest magnitude.
    """
    middles = (np.arange(len(counts)) + 0.5) * largest / len(counts)
    clips = largest * np.arange(TRIED, 0, -1) / TRIED
    errors = []
    for clip in clips:
        rounded = np.minimum(np.rint(middles / (clip / RANGE)), RANGE) * (clip / RANGE)
        errors.append(float((counts * (middles - rounded) ** 2).sum()))
    return float(clips[int(np.argmin(errors))])


def _run(model: Recommender, given: Histories) -> None:
    with known_prefix(model), torch.inference_mode():
        for start in range(0, len(given), BATCH):
            model.user_vectors(torch.from_numpy(pad_left(given[start : start + BATCH])))


@contextmanager
def _inputs(model: Recommender, see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Show ``see`` what every linear layer of the decoder is given, ``[1, T, K]``."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, given: see(name, given[0])

    handles = [
        layer.register_forward_pre_hook(hook(name)) for name, layer in linear_layers(model).items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
