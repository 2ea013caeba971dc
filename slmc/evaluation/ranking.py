"""The rank of each user's target in the whole catalogue, from scores that come in blocks.

What is kept for a user does not depend on the number of items: counts of better and of equal
items, a running log-sum-exp, a running top list. Letters: ``n`` users, ``w`` items of a block,
``P`` pairs of a user and an item.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Self

import torch
from torch import Tensor

Blocks = Callable[[], Iterator[tuple[int, Tensor]]]
"""Gives the scores of the rows 1..V in order: first row of the block, scores ``[n, w]``. Every
call gives the same values."""


@dataclass(frozen=True)
class Pairs:
    """Some items of each user, sorted by item row so that those of a block lie together."""

    users: Tensor
    """``[P]`` int64 in 0..n-1."""
    rows: Tensor
    """``[P]`` int64, ascending."""

    @classmethod
    def of(cls, rows: Sequence[Tensor]) -> Self:
        """From the rows of each of the n users."""
        sizes = torch.tensor([len(own) for own in rows], dtype=torch.int64)
        users = torch.repeat_interleave(torch.arange(len(rows)), sizes)
        flat = torch.cat([own.to(torch.int64) for own in rows])
        flat, order = flat.sort(stable=True)
        return cls(users[order], flat)

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        return type(self)(self.users.to(device), self.rows.to(device))

    def within(self, first: int, width: int) -> tuple[Tensor, Tensor]:
        """Users and columns of the pairs in a block."""
        edges = torch.tensor([first, first + width], device=self.rows.device)
        low, high = torch.searchsorted(self.rows, edges).tolist()
        return self.users[low:high], self.rows[low:high] - first


@dataclass(frozen=True)
class Counts:
    """How many items score above the target, and how many the same; ``[n]`` int64 each."""

    above: Tensor
    equal: Tensor

    @classmethod
    def zero(cls, targets: Tensor) -> Self:
        """No item counted yet."""
        return cls(torch.zeros_like(targets), torch.zeros_like(targets))

    def add(self, scores: Tensor, target_scores: Tensor) -> None:
        """Count all items of a block ``[n, w]``, of fewer than 2^24.

        The ones are summed as float32, exactly so far: a sum of bools takes five times as long.
        """
        line = target_scores[:, None]
        ones = torch.empty(scores.shape, device=scores.device)
        self.above.add_(torch.gt(scores, line, out=ones).sum(dim=1).long())
        self.equal.add_(torch.eq(scores, line, out=ones).sum(dim=1).long())

    def add_pairs(self, pairs: Pairs, first: int, scores: Tensor, target_scores: Tensor) -> None:
        """Count those items of a block that are in ``pairs``."""
        users, columns = pairs.within(first, scores.shape[1])
        own, line = scores[users, columns], target_scores[users]
        self.above.index_add_(0, users, (own > line).long())
        self.equal.index_add_(0, users, (own == line).long())


@dataclass(frozen=True)
class Ranks:
    """What the scores of n users say of their targets; on the CPU."""

    rank: Tensor
    """``[n]`` float64, expected rank among all items: 1 + above + half of the equal others."""
    rank_unseen: Tensor
    """``[n]`` the same without the user's seen items; infinite where the target is one."""
    rank_sampled: Tensor | None
    """``[n]`` the same among the user's negatives alone."""
    ce: Tensor
    """``[n]`` float64, cross-entropy of the target over the whole catalogue, in nats."""
    ce_calibrated: Tensor | None
    """``[n]`` the same of the scores over a temperature, where one was given."""
    top_items: Tensor
    """``[n, k]`` int64, best first; of equal items the smaller row first."""
    top_scores: Tensor
    """``[n, k]``."""
    finite: Tensor
    """``[n]`` bool: every score is a finite number. The rest means nothing where it is not."""
    constant: Tensor
    """``[n]`` bool: all items have the same score."""


def rank_targets(
    blocks: Blocks,
    targets: Tensor,
    seen: Pairs,
    negatives: Pairs | None,
    *,
    num_items: int,
    top: int = 20,
    temperature: float | None = None,
) -> Ranks:
    """Rank each user's target; one pass if one block holds the catalogue, else two.

    The score of a target is read out of the very blocks that it is compared with: computed
    apart, it could differ in the last bit and tie with, or beat, itself.

    Args:
        blocks: Scores; see :data:`Blocks`.
        targets: ``[n]`` int64 in 1..V.
        seen: Items left out of ``rank_unseen``.
        negatives: Items of the sampled protocol; the target must not be among them.
        num_items: V.
        top: Length of the top lists, at most; with 0 no time goes into them.
        temperature: What scores are divided by for a second cross-entropy.

    Raises:
        ValueError: The blocks are not the rows 1..V in order, or differ between the passes.
    """
    stream = _checked(blocks(), num_items)
    head = next(stream)
    device = head[1].device
    targets, seen = targets.to(device), seen.to(device)
    negatives = None if negatives is None else negatives.to(device)
    look = _FirstLook(targets, top, 1.0 if temperature is None else temperature)
    every, taken, drawn = (Counts.zero(targets) for _ in range(3))

    def count(first: int, scores: Tensor) -> None:
        every.add(scores, look.target_scores)
        taken.add_pairs(seen, first, scores, look.target_scores)
        if negatives is not None:
            drawn.add_pairs(negatives, first, scores, look.target_scores)

    whole = False
    for first, scores in chain([head], stream):
        look.add(first, scores)
        whole = scores.shape[1] == num_items
        if whole:
            count(first, scores)
    if not whole:
        for first, scores in _checked(blocks(), num_items):
            look.check_again(first, scores)
            count(first, scores)
    unseen = _expected(every.above - taken.above, every.equal - taken.equal - 1)
    unseen[seen.users[seen.rows == targets[seen.users]].cpu()] = math.inf
    return Ranks(
        rank=_expected(every.above, every.equal - 1),
        rank_unseen=unseen,
        rank_sampled=None if negatives is None else _expected(drawn.above, drawn.equal),
        ce=look.cross_entropy().cpu(),
        ce_calibrated=None if temperature is None else look.calibrated().cpu(),
        top_items=look.top_items.cpu(),
        top_scores=look.top_scores.cpu(),
        finite=(look.low.isfinite() & look.high.isfinite()).cpu(),
        constant=(look.low == look.high).cpu(),
    )


def top_of(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best columns of ``[n, w]``, best first, of equal ones the smaller first.

    ``torch.topk`` takes any of the equal ones at its edge, so those rows are chosen anew.

    Returns:
        Scores ``[n, k]`` and columns ``[n, k]`` int64.
    """
    k = min(k, scores.shape[1])
    if k == 0:
        return scores[:, :0], torch.empty_like(scores[:, :0], dtype=torch.int64)
    values, columns = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    edge, columns = values[:, k - 1 : k], columns[:, :k]
    tied = (values[:, k:] == edge).any(dim=1).nonzero()[:, 0]
    if len(tied):
        own = scores[tied]
        equal = own == edge[tied]
        above = (own > edge[tied]) | own.isnan()  # topk, too, has what is no number first
        room = k - above.sum(dim=1, keepdim=True)
        kept = above | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= room))
        columns = columns.index_copy(0, tied, kept.nonzero()[:, 1].view(-1, k))
    columns = columns.sort(dim=1).values
    values, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, order)


class _FirstLook:
    """What one pass over the blocks tells without the score of the target."""

    def __init__(self, targets: Tensor, top: int, temperature: float) -> None:
        self.targets, self.top, self.temperature = targets, top, temperature
        self.started = False

    def add(self, first: int, scores: Tensor) -> None:
        # aminmax would do both in sixteen times the time (torch 2, CPU).
        low, high = scores.amin(dim=1), scores.amax(dim=1)
        values, columns = top_of(scores, self.top)
        total = _log_sum_exp(scores, high, 1.0)
        divided = total if self.temperature == 1 else _log_sum_exp(scores, high, self.temperature)
        if not self.started:
            self.started = True
            self.target_scores = torch.zeros_like(high)
            self.low, self.high, self.total, self.divided = low, high, total, divided
            self.top_scores, self.top_items = values, columns + first
        else:
            self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
            self.total = torch.logaddexp(self.total, total)
            self.divided = torch.logaddexp(self.divided, divided)
            # Earlier blocks hold the smaller rows, so a stable sort keeps the rule of ties.
            joined = torch.cat([self.top_scores, values], dim=1)
            items = torch.cat([self.top_items, columns + first], dim=1)
            joined, order = joined.sort(dim=1, descending=True, stable=True)
            self.top_scores = joined[:, : self.top]
            self.top_items = items.gather(1, order)[:, : self.top]
        users, columns = self._in_block(first, scores)
        self.target_scores[users] = scores[users, columns]

    def check_again(self, first: int, scores: Tensor) -> None:
        users, columns = self._in_block(first, scores)
        again = scores[users, columns]
        # Not a number is told to the user elsewhere, and never equals itself.
        if not torch.equal(again.nan_to_num(), self.target_scores[users].nan_to_num()):
            raise ValueError("the scorer gives other scores for the same histories")

    def cross_entropy(self) -> Tensor:
        return self.total - self.target_scores.double()

    def calibrated(self) -> Tensor:
        return self.divided - self.target_scores.double() / self.temperature

    def _in_block(self, first: int, scores: Tensor) -> tuple[Tensor, Tensor]:
        inside = (self.targets >= first) & (self.targets < first + scores.shape[1])
        users = inside.nonzero()[:, 0]
        return users, self.targets[users] - first


def _log_sum_exp(scores: Tensor, high: Tensor, temperature: float) -> Tensor:
    """``[n]`` float64, of the scores ``[n, w]`` over a temperature; ``high`` is their maximum."""
    gap = scores - high[:, None]
    total = (gap if temperature == 1 else gap.div_(temperature)).exp_().sum(dim=1).double()
    log_sum: Tensor = total.log() + high.double() / temperature
    return log_sum


def _expected(above: Tensor, others_equal: Tensor) -> Tensor:
    return 1.0 + above.double().cpu() + others_equal.double().cpu() / 2


def _checked(blocks: Iterator[tuple[int, Tensor]], num_items: int) -> Iterator[tuple[int, Tensor]]:
    """The blocks, seen to be the rows 1..V in order."""
    expected = 1
    for first, scores in blocks:
        if first != expected:
            raise ValueError(f"a block of scores starts at row {first}, not {expected}")
        expected = first + scores.shape[1]
        yield first, scores
    if expected != num_items + 1:
        raise ValueError(f"the scores end at row {expected - 1}, the catalogue at {num_items}")
