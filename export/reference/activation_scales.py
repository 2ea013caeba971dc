"""Static scales for int8 activations, calibrated on training histories.

The scale of a layer minimises the squared error of its quantized inputs. LLMs have a few outlier
channels, hundreds of times larger than the others; a scale for the full range would round all
other channels to 0.

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
CLIPS = 128
"""Number of candidate clipping values, evenly spaced up to the largest magnitude."""
BATCH = 16
"""Histories per batch of the calibration."""

Histories = Sequence[NDArray[np.int32]]


def calibration_histories(data: Dataset, number: int, seed: int) -> Histories:
    """Draw training histories without replacement, cut to the newest items that a model uses.

    Raises:
        UndecidedError: The dataset has no training history.
    """
    candidates = [rows[-data.history :] for rows in data.train_sequences()]
    if not candidates:
        raise UndecidedError(
            "the dataset has no training history to calibrate the scales of int8.",
            "Name a dataset with users in it with --data, or use another precision.",
        )
    order = np.random.default_rng(seed).permutation(len(candidates))[:number]
    return [candidates[index] for index in order]


def static_scales(model: Recommender, histories: Histories) -> dict[str, float]:
    """Calibrate the scale of the int8 activations of each linear layer of the decoder.

    Args:
        model: In evaluation mode, on the CPU.
        histories: Calibration histories; the packed model computes no padding, so none is counted.
    """
    largest: dict[str, float] = {}

    def widen(name: str, x: Tensor) -> None:
        largest[name] = max(largest.get(name, 0.0), float(x.abs().max()))

    with _watch_inputs(model, widen):
        _run(model, histories)
    counts = {name: np.zeros(BINS) for name in largest}

    def count(name: str, x: Tensor) -> None:
        top = largest[name] or 1.0
        counts[name] += torch.histc(x.abs().float(), bins=BINS, min=0, max=top).numpy()

    with _watch_inputs(model, count):
        _run(model, histories)
    return {name: best_clip(counts[name], top or 1.0) / RANGE for name, top in largest.items()}


def best_clip(counts: NDArray[np.float64], largest: float) -> float:
    """Return the clipping value with the smallest squared error.

    Args:
        counts: Histogram of magnitudes ``[BINS]``, with even bins from 0 to ``largest``.
        largest: The largest magnitude.
    """
    middles = (np.arange(len(counts)) + 0.5) * largest / len(counts)
    clips = largest * np.arange(CLIPS, 0, -1) / CLIPS
    errors = []
    for clip in clips:
        rounded = np.minimum(np.rint(middles / (clip / RANGE)), RANGE) * (clip / RANGE)
        errors.append(float((counts * (middles - rounded) ** 2).sum()))
    return float(clips[int(np.argmin(errors))])


def _run(model: Recommender, histories: Histories) -> None:
    with known_prefix(model), torch.inference_mode():
        for start in range(0, len(histories), BATCH):
            model.user_vectors(torch.from_numpy(pad_left(histories[start : start + BATCH])))


@contextmanager
def _watch_inputs(model: Recommender, observe: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call ``observe`` with the name and the input ``[1, T, K]`` of every linear layer."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, arguments: observe(name, arguments[0])

    handles = [
        layer.register_forward_pre_hook(hook(name)) for name, layer in linear_layers(model).items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
