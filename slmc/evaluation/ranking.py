"""Compute the rank of each user's target in the whole catalogue from blocks of scores.

Memory per user does not depend on the number of items: it holds counts of better and of equal
items, a running log-sum-exp and a running top list. Letters: ``n`` users, ``w`` items per block,
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
"""Yields the scores of the rows 1..V in order: first row of the block, scores ``[n, w]``. Every
call must yield the same values."""


@dataclass(frozen=True)
class Pairs:
    """Some items of each user, sorted by item row so that those of a block are adjacent."""

    users: Tensor
    """``[P]`` int64 in 0..n-1."""
    rows: Tensor
    """``[P]`` int64, ascending."""

    @classmethod
    def of(cls, rows: Sequence[Tensor]) -> Self:
        """Create from the item rows of each of the n users."""
        sizes = torch.tensor([len(items) for items in rows], dtype=torch.int64)
        users = torch.repeat_interleave(torch.arange(len(rows)), sizes)
        flat = torch.cat([items.to(torch.int64) for items in rows])
        flat, order = flat.sort(stable=True)
        return cls(users[order], flat)

    def to(self, device: torch.device) -> Self:
        """Return a copy on a device."""
        return type(self)(self.users.to(device), self.rows.to(device))

    def within(self, first: int, width: int) -> tuple[Tensor, Tensor]:
        """Return users and columns of the pairs in a block."""
        edges = torch.tensor([first, first + width], device=self.rows.device)
        low, high = torch.searchsorted(self.rows, edges).tolist()
        return self.users[low:high], self.rows[low:high] - first


@dataclass(frozen=True)
class Counts:
    """Number of items that score above the target, and equal to it; ``[n]`` int64 each."""

    above: Tensor
    equal: Tensor

    @classmethod
    def zero(cls, targets: Tensor) -> Self:
        """Create counts of 0."""
        return cls(torch.zeros_like(targets), torch.zeros_like(targets))

    def add(self, scores: Tensor, target_scores: Tensor) -> None:
        """Count all items of a block ``[n, w]``, ``w`` below 2^24.

        Sums in float32, which is exact up to 2^24 and five times faster than a sum of bools.
        """
        line = target_scores[:, None]
        ones = torch.empty(scores.shape, device=scores.device)
        self.above.add_(torch.gt(scores, line, out=ones).sum(dim=1).long())
        self.equal.add_(torch.eq(scores, line, out=ones).sum(dim=1).long())

    def add_pairs(self, pairs: Pairs, first: int, scores: Tensor, target_scores: Tensor) -> None:
        """Count only the items of a block that are in ``pairs``."""
        users, columns = pairs.within(first, scores.shape[1])
        picked, line = scores[users, columns], target_scores[users]
        self.above.index_add_(0, users, (picked > line).long())
        self.equal.index_add_(0, users, (picked == line).long())


@dataclass(frozen=True)
class Ranks:
    """Ranks and cross-entropies of the targets of n users; on the CPU."""

    rank: Tensor
    """``[n]`` float64, expected rank among all items: 1 + above + half of the equal others."""
    rank_unseen: Tensor
    """``[n]`` the same without the user's seen items; infinite if the target is one."""
    rank_sampled: Tensor | None
    """``[n]`` the same among the user's sampled negatives."""
    ce: Tensor
    """``[n]`` float64, cross-entropy of the target over the whole catalogue, in nats."""
    ce_calibrated: Tensor | None
    """``[n]`` the same for scores divided by the temperature, if given."""
    top_items: Tensor
    """``[n, k]`` int64, best first; ties by ascending row."""
    top_scores: Tensor
    """``[n, k]``."""
    finite: Tensor
    """``[n]`` bool: all scores are finite. If not, the other results are undefined."""
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
    """Rank each user's target, in one pass if one block holds the catalogue, otherwise in two.

    The score of a target is read from the blocks that it is compared with. Computed separately,
    it could differ in the last bit.

    Args:
        blocks: Scores; see :data:`Blocks`.
        targets: ``[n]`` int64 in 1..V.
        seen: Items left out of ``rank_unseen``.
        negatives: Items of the sampled protocol; the target must not be among them.
        num_items: V.
        top: Largest length of the top lists; 0 skips them.
        temperature: Divides the scores for a second cross-entropy.

    Raises:
        ValueError: The blocks are not the rows 1..V in order, or differ between the passes.
    """
    stream = _checked(blocks(), num_items)
    head = next(stream)
    device = head[1].device
    targets, seen = targets.to(device), seen.to(device)
    negatives = None if negatives is None else negatives.to(device)
    first_pass = _FirstPass(targets, top, 1.0 if temperature is None else temperature)
    all_items, seen_items, sampled = (Counts.zero(targets) for _ in range(3))

    def count(first: int, scores: Tensor) -> None:
        all_items.add(scores, first_pass.target_scores)
        seen_items.add_pairs(seen, first, scores, first_pass.target_scores)
        if negatives is not None:
            sampled.add_pairs(negatives, first, scores, first_pass.target_scores)

    whole = False
    for first, scores in chain([head], stream):
        first_pass.add(first, scores)
        whole = scores.shape[1] == num_items
        if whole:
            count(first, scores)
    if not whole:
        for first, scores in _checked(blocks(), num_items):
            first_pass.check_again(first, scores)
            count(first, scores)
    unseen = _expected(all_items.above - seen_items.above, all_items.equal - seen_items.equal - 1)
    unseen[seen.users[seen.rows == targets[seen.users]].cpu()] = math.inf
    return Ranks(
        rank=_expected(all_items.above, all_items.equal - 1),
        rank_unseen=unseen,
        rank_sampled=None if negatives is None else _expected(sampled.above, sampled.equal),
        ce=first_pass.cross_entropy().cpu(),
        ce_calibrated=None if temperature is None else first_pass.calibrated().cpu(),
        top_items=first_pass.top_items.cpu(),
        top_scores=first_pass.top_scores.cpu(),
        finite=(first_pass.low.isfinite() & first_pass.high.isfinite()).cpu(),
        constant=(first_pass.low == first_pass.high).cpu(),
    )


def top_of(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best columns of ``[n, w]``, best first, ties by ascending column.

    ``torch.topk`` picks arbitrary columns among ties with the k-th, so such rows are redone.

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
        rows = scores[tied]
        equal = rows == edge[tied]
        above = (rows > edge[tied]) | rows.isnan()  # topk also puts NaN first
        room = k - above.sum(dim=1, keepdim=True)
        kept = above | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= room))
        columns = columns.index_copy(0, tied, kept.nonzero()[:, 1].view(-1, k))
    columns = columns.sort(dim=1).values
    values, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, order)


class _FirstPass:
    """Results of the first pass over the blocks, before the target scores are known."""

    def __init__(self, targets: Tensor, top: int, temperature: float) -> None:
        self.targets, self.top, self.temperature = targets, top, temperature
        self.started = False

    def add(self, first: int, scores: Tensor) -> None:
        # aminmax takes sixteen times as long (torch 2, CPU).
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
            # Earlier blocks hold smaller rows, so a stable sort keeps ties in ascending order.
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
        # NaN never equals itself; it is reported elsewhere.
        if not torch.equal(again.nan_to_num(), self.target_scores[users].nan_to_num()):
            raise ValueError("the scorer returns different scores for the same histories")

    def cross_entropy(self) -> Tensor:
        return self.total - self.target_scores.double()

    def calibrated(self) -> Tensor:
        return self.divided - self.target_scores.double() / self.temperature

    def _in_block(self, first: int, scores: Tensor) -> tuple[Tensor, Tensor]:
        inside = (self.targets >= first) & (self.targets < first + scores.shape[1])
        users = inside.nonzero()[:, 0]
        return users, self.targets[users] - first


def _log_sum_exp(scores: Tensor, high: Tensor, temperature: float) -> Tensor:
    """Return ``[n]`` float64 for scores ``[n, w]`` / temperature; ``high`` is their maximum."""
    gap = scores - high[:, None]
    total = (gap if temperature == 1 else gap.div_(temperature)).exp_().sum(dim=1).double()
    log_sum: Tensor = total.log() + high.double() / temperature
    return log_sum


def _expected(above: Tensor, others_equal: Tensor) -> Tensor:
    return 1.0 + above.double().cpu() + others_equal.double().cpu() / 2


def _checked(blocks: Iterator[tuple[int, Tensor]], num_items: int) -> Iterator[tuple[int, Tensor]]:
    """Yield the blocks, and check that they are the rows 1..V in order."""
    expected = 1
    for first, scores in blocks:
        if first != expected:
            raise ValueError(f"a block of scores starts at row {first}, not {expected}")
        expected = first + scores.shape[1]
        yield first, scores
    if expected != num_items + 1:
        raise ValueError(f"the scores end at row {expected - 1}, the catalogue at {num_items}")
