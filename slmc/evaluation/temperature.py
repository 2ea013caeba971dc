"""Temperature scaling (Guo et al. 2017, arXiv 1706.04599), fitted on validation users.

A model that is selected by its ranking may be overconfident: the order of its scores is right,
but they are too far apart, which raises the cross-entropy and changes no rank. Dividing all
scores by one temperature removes this effect.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

USERS = 4096
"""Largest number of validation users in the fit."""
OCTAVES = 5
"""Doublings of the lowest inverse temperature, 1/8."""
INVERSE = np.sort([lowest * 2**k for lowest in (1 / 8, 2**0.5 / 8) for k in range(OCTAVES + 1)])
"""Grid of inverse temperatures: 12 from 1/8 to 5.7, half an octave apart."""
FITTED = 5
"""Grid points of the polynomial fit around the minimum."""


def cross_entropies(blocks: Iterator[tuple[int, Tensor]], targets: Tensor) -> Tensor:
    """Return the cross-entropy of each user's target at each inverse temperature, in one pass.

    Squaring an exponential doubles the inverse temperature, so only two exponentials per score
    are computed, not twelve.

    Args:
        blocks: Scores of the rows 1..V in order; see :data:`slmc.evaluation.ranking.Blocks`.
        targets: ``[n]`` int64 in 1..V.

    Returns:
        ``[n, 12]`` float64, nats; on the CPU.
    """
    inverse = torch.from_numpy(INVERSE)
    total = torch.full((len(targets), len(INVERSE)), -torch.inf, dtype=torch.float64)
    target_scores = torch.zeros(len(targets), dtype=torch.float64)
    for first, scores in blocks:
        high = scores.amax(dim=1)
        gap = scores - high[:, None]
        sums = []
        for lowest in INVERSE[:2].tolist():
            power = (gap * lowest).exp_()
            of_octave = [power.sum(dim=1)]
            for _ in range(OCTAVES):
                of_octave.append(power.square_().sum(dim=1))
            sums.append(torch.stack(of_octave, dim=1))
        in_order = torch.stack(sums, dim=2).flatten(1).cpu().double()
        total = torch.logaddexp(total, in_order.log() + high.cpu().double()[:, None] * inverse)
        users = ((targets >= first) & (targets < first + scores.shape[1])).nonzero()[:, 0]
        at = (targets[users] - first).to(scores.device)
        target_scores[users] = scores[users.to(scores.device), at].cpu().double()
    return total - target_scores[:, None] * inverse


def best(mean: NDArray[np.float64]) -> float:
    """Return the temperature with the lowest mean cross-entropy.

    The mean is convex in the inverse temperature (a log-sum-exp minus a linear term), so its only
    minimum is next to the lowest grid point. It is located with a polynomial through that point
    and its neighbours, over the logarithm of the inverse temperature.

    Args:
        mean: ``[12]`` finite mean cross-entropies.

    Returns:
        Between 0.18 and 8; an end of this range if the cross-entropy is lowest there.
    """
    lowest = int(np.argmin(mean))
    if lowest in (0, len(mean) - 1):
        return float(1 / INVERSE[lowest])
    start = min(max(lowest - FITTED // 2, 0), len(mean) - FITTED)
    points = np.log(INVERSE)
    near = slice(start, start + FITTED)
    curve = np.polynomial.Polynomial.fit(points[near], mean[near], FITTED - 1)
    tried = np.linspace(points[lowest - 1], points[lowest + 1], 2001)
    return float(np.exp(-tried[np.argmin(curve(tried))]))
