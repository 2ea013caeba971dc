"""How little layers change the hidden state: cosine, angular distance and linear CKA.

Letters: ``L`` layers; states are numbered 0 (the input of the first layer) to L (the output of the
last one, before the final norm); ``T`` tokens, ``N`` sampled tokens, ``H`` hidden width.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slmc.data.batches import pad_left
from slmc.model.layers import BATCH, Histories, forward
from slmc.model.recommender import SequentialRecommender

SAMPLE_BYTES = 2**28
"""Largest memory of the sampled states."""
ROUNDING = 1e-6
"""Largest deviation from its mean, as a share, of a state that is the same for all tokens."""
ROWS = 64
"""Tokens whose comparisons with all others are computed at once."""


@dataclass(frozen=True)
class Redundancy:
    """Similarities of the states of a model, measured in one pass over histories."""

    influence: list[float]
    """``[L]`` block influence: 1 - cosine of a layer's input and output, mean over tokens."""
    angular: list[list[float]]
    """``[L + 1, L + 1]`` mean angular distance of two states of a history's last token, in 0..1."""
    cka: list[list[float]]
    """``[L + 1, L + 1]`` linear CKA of two states, over the last tokens of the histories."""
    histories: int
    tokens: int
    """All tokens, over which the influence is averaged."""
    last_tokens: int
    """N, the sampled histories; the others of this class are averaged over their last tokens."""


def block_influence(model: SequentialRecommender, histories: Histories) -> list[float]:
    r"""Return the block influence of each layer (ShortGPT).

    :math:`BI_i = 1 - E_t \cos(X_{i,t}, X_{i+1,t})` over all tokens of the histories (Men et al.
    2024, arXiv 2403.03853, equation 1): 0 if a layer does not change the direction of the hidden
    state.
    """
    with _similarities(model) as sums:
        tokens = forward(model, histories)
    return [float(value) for value in 1 - sums / tokens]


@torch.no_grad()
def redundancy(
    model: SequentialRecommender,
    histories: Histories,
    *,
    watch: Callable[[int], None] = lambda _: None,
) -> Redundancy:
    """Compare all states of a model with each other, in one pass over the histories.

    The states of last tokens are kept, in float32, and nothing else that grows with the histories.
    If they need more than :data:`SAMPLE_BYTES`, histories are sampled at even distances for them.

    Args:
        model: In evaluation mode.
        histories: Item rows of each history, oldest first; at least one.
        watch: Called with the number of finished histories after each batch.
    """
    depth, width = len(model.layers), model.config.backbone_config.hidden_size
    most = max(2, SAMPLE_BYTES // ((depth + 1) * width * 4))
    sampled = np.zeros(len(histories), dtype=bool)
    sampled[np.linspace(0, len(histories) - 1, min(most, len(histories))).round().astype(int)] = 1
    states = torch.empty(depth + 1, int(sampled.sum()), width)
    tokens = 0
    with _similarities(model) as sums, _sampling(model, states) as take:
        for start in range(0, len(histories), BATCH):
            part = slice(start, start + BATCH)
            ids = torch.from_numpy(pad_left(histories[part])).to(model.device)
            lengths = (ids != 0).sum(dim=1) + len(model.prompt)
            take((lengths.cumsum(0) - 1)[torch.from_numpy(sampled[part]).to(ids.device)])
            model.user_vectors(ids)
            tokens += int(lengths.sum())
            watch(min(start + BATCH, len(histories)))
    return Redundancy(
        influence=[float(value) for value in 1 - sums / tokens],
        angular=angular_distances(states).tolist(),
        cka=linear_cka(states).tolist(),
        histories=len(histories),
        tokens=tokens,
        last_tokens=states.shape[1],
    )


def angular_distances(states: Tensor) -> Tensor:
    r"""Return the mean angular distance of every pair of states.

    :math:`\arccos(\cos(x_i, x_j)) / \pi`, averaged over tokens (Gromov et al. 2024, arXiv
    2403.17887, equation 7, of the last token of each sequence): 0 for the same direction, 1 for
    opposite ones.

    Args:
        states: ``[S, N, H]`` S states of N tokens.

    Returns:
        ``[S, S]`` float64, symmetric, 0 on the diagonal.
    """
    total = torch.zeros(len(states), len(states), dtype=torch.float64)
    for part in states.split(ROWS, dim=1):
        unit = F.normalize(part.double(), dim=-1).transpose(0, 1)
        total += torch.arccos((unit @ unit.transpose(1, 2)).clamp(-1, 1)).sum(dim=0)
    distance = total / (math.pi * states.shape[1])
    return distance.fill_diagonal_(0)


def linear_cka(states: Tensor) -> Tensor:
    r"""Return linear centered kernel alignment of every pair of states.

    :math:`\|Y^T X\|_F^2 / (\|X^T X\|_F \|Y^T Y\|_F)` of centered X and Y (Kornblith et al. 2019,
    arXiv 1905.00414, section 3): 1 if they are equal up to rotation and scale. It is computed from
    the matrices :math:`X X^T` in blocks of rows, so that memory grows with N, not with N x N or H x
    H. With fewer tokens than dimensions it is biased upwards.

    Args:
        states: ``[S, N, H]`` S states of N tokens.

    Returns:
        ``[S, S]`` float64, symmetric; 0 where a state is the same for all tokens.
    """
    products = torch.zeros(len(states), len(states), dtype=torch.float64)
    centered = states - states.mean(dim=1, keepdim=True)
    largest = centered.abs().amax(dim=(1, 2), keepdim=True)
    constant = largest <= ROUNDING * states.abs().amax(dim=(1, 2), keepdim=True)
    centered = torch.where(constant, 0.0, centered / largest)  # in range for fourth powers
    for start in range(0, states.shape[1], ROWS):
        rows = torch.stack(
            [(x[start : start + ROWS].double() @ x.double().T).flatten() for x in centered]
        )
        products += rows @ rows.T
    norms = products.diagonal().sqrt()
    scale = norms[:, None] * norms[None, :]
    return torch.where(scale > 0, products / scale.clamp(min=1e-300), 0.0)


@contextmanager
def _similarities(model: SequentialRecommender) -> Iterator[Tensor]:
    """Sum the cosine of input and output over all tokens, for each layer: ``[L]`` float64."""
    sums = torch.zeros(len(model.layers), dtype=torch.float64)

    def add_similarity(number: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            before, after = _input(args, kwargs), _output(output)
            sums[number] += F.cosine_similarity(before.double(), after.double(), dim=-1).sum().cpu()

        return hook

    with _hooked(model, add_similarity):
        yield sums


@contextmanager
def _sampling(model: SequentialRecommender, states: Tensor) -> Iterator[Callable[[Tensor], None]]:
    """Fill ``states`` ``[L + 1, N, H]`` with the states of some tokens of each batch.

    Yields a function that is called before each batch with the places of its tokens.
    """
    places, filled = torch.zeros(0, dtype=torch.int64), 0

    def take(chosen: Tensor) -> None:
        nonlocal places, filled
        filled += len(places)
        places = chosen

    def keep(number: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            part = slice(filled, filled + len(places))
            if number == 0:
                states[0, part] = _input(args, kwargs)[0, places].float().cpu()
            states[number + 1, part] = _output(output)[0, places].float().cpu()

        return hook

    with _hooked(model, keep):
        yield take


@contextmanager
def _hooked(
    model: SequentialRecommender, hook_of: Callable[[int], Callable[..., None]]
) -> Iterator[None]:
    """Call ``hook_of(number)`` after each layer, with its inputs and its output."""
    handles = [
        layer.register_forward_hook(hook_of(number), with_kwargs=True)
        for number, layer in enumerate(model.layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _input(args: Any, kwargs: Any) -> Tensor:
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    return states


def _output(output: Any) -> Tensor:
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states
