"""Item vectors from texts: whitened, mapped by an adapter, with a learned part for each id.

Raw text vectors lie in a narrow cone, and as item vectors they rank badly; whitened ones do not
(WhitenRec, Zhang et al. 2024, arXiv 2402.10602). Letters: V items, N items with a text, D width of
the text vectors, d item width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor, nn

from slmc.errors import UsageError

STD = 0.08
"""Standard deviation of each whitened dimension: that of trained item tables."""
LEAST_VARIANCE = 1e-6
"""Of a direction, relative to the first: below it texts do not differ there."""

BLOCK = 1 << 13
"""Vectors that are converted to float64 at once."""

Kind = Literal["text", "hybrid"]


@dataclass(frozen=True)
class Whitening:
    """Centre vectors, rotate them to principal directions, scale these to the same variance."""

    mean: Tensor
    """``[D]``."""
    directions: Tensor
    """``[D, d]``, each divided by the standard deviation along it."""

    @classmethod
    def fit(cls, vectors: Tensor, width: int, label: str = "the encoder") -> Self:
        """Fit the whitening to some vectors.

        Args:
            vectors: ``[N, D]``.
            width: d; the d directions of the largest variance are kept.
            label: The encoder's name, for the message.

        Raises:
            UsageError: The vectors do not differ in d directions.
        """
        mean, covariance = _moments(vectors)
        variances, right = torch.linalg.eigh(covariance)
        variances, right = variances.flip(0), right.flip(1)  # the largest first
        enough = int((variances > LEAST_VARIANCE * variances[:1]).sum())
        if enough < width:
            raise UsageError(
                f"the texts of {len(vectors)} items differ in {enough} directions only, of "
                f"{label}'s {vectors.shape[1]}; the item table is {width} wide.",
                f"Take an item table of at most {enough} (dim), or texts that say more.",
            )
        directions = right[:, :width]
        # An eigenvector has two signs: that with a positive largest entry is taken everywhere.
        largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
        directions = directions * largest.sign() / variances[:width].sqrt()
        return cls(mean.float(), directions.float())

    def __call__(self, vectors: Tensor) -> Tensor:
        """Map ``[N, D]`` to ``[N, d]``; the fitted vectors become uncorrelated with variance 1."""
        return (vectors - self.mean) @ self.directions


def _moments(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean ``[D]`` and covariance ``[D, D]`` of ``[N, D]``, in float64, block by block.

    Float64 keeps their errors far below :data:`LEAST_VARIANCE`. The eigenvectors of the covariance
    are the right singular vectors of the centred vectors, at a fraction of the time.
    """
    mean = vectors.mean(dim=0, dtype=torch.float64)
    covariance = mean.new_zeros(len(mean), len(mean))
    for block in vectors.split(BLOCK):
        centred = block.double() - mean
        covariance += centred.T @ centred
    return mean, covariance / len(vectors)


def table_of(vectors: Tensor, rows: Sequence[int], num_items: int) -> Tensor:
    """Return a table ``[V + 1, d]`` with ``vectors`` ``[N, d]`` in ``rows``, zeros elsewhere."""
    table = torch.zeros(num_items + 1, vectors.shape[1])
    table[list(rows)] = vectors
    return table


def adapter(width: int) -> nn.Sequential:
    """Return two layers whose output is initially zero."""
    last = nn.Linear(4 * width, width, bias=False)
    nn.init.zeros_(last.weight)
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), last)


def item_vectors(text: Tensor, adapter: nn.Module) -> Tensor:
    """Return the text part of item vectors ``[N, d]`` from whitened text vectors ``[N, d]``."""
    vectors: Tensor = STD * (text + adapter(text))
    return vectors


class TextItems(nn.Module):
    """Replaces the ``nn.Embedding`` of a model during training; see :meth:`folded`.

    The vector of an item is ``t + adapter(t)``, where t is its whitened text vector. The adapter
    has two layers, and its output is initially zero. ``hybrid`` adds a learned vector per item,
    initially zero, which training leaves out with probability ``id_dropout``.

    An item without training interactions has only its text vector. It takes no part in the loss
    (:mod:`slmc.training.softmax`), and its row gets no gradient from whatever else uses it.
    """

    vectors: Tensor
    """``[V + 1, d]`` whitened text vectors; 0 for padding and for items without a text."""
    has_text: Tensor
    """``[V + 1, 1]`` whether an item has a text."""
    learned: Tensor
    """``[V + 1, 1]`` whether an item has a learned vector."""
    trained: Tensor
    """``[V + 1, 1]`` whether an item has training interactions."""

    def __init__(
        self, vectors: Tensor, kind: Kind, trained: Tensor, id_dropout: float = 0.0
    ) -> None:
        """Initialise with the text vectors.

        Args:
            vectors: ``[V + 1, d]`` whitened, rows of zeros for padding and items without a text.
            kind: ``text``, or ``hybrid`` with a learned part.
            trained: ``[V + 1]`` whether an item has training interactions.
            id_dropout: Share of the items that a training step sees without their learned part.
        """
        super().__init__()
        width = vectors.shape[1]
        self.adapter = adapter(width)
        self.register_buffer("vectors", vectors, persistent=False)
        has_text = (vectors != 0).any(dim=1, keepdim=True)
        trained = trained[:, None].clone()
        # An item without a text always has a learned vector.
        learned = trained | ~has_text if kind == "hybrid" else ~has_text
        learned[0] = False
        for name, mask in (("has_text", has_text), ("learned", learned), ("trained", trained)):
            self.register_buffer(name, mask, persistent=False)
        start = torch.where(has_text, 0, STD / 4 * torch.randn_like(vectors))
        self.ids = nn.Parameter(start) if learned.any() else None
        self.id_dropout = id_dropout
        self.sparse = False
        """Whether :meth:`forward` computes only the rows that it is asked for, and gives the
        learned vectors a sparse gradient."""

    @property
    def weight(self) -> Tensor:
        """The item table, ``[V + 1, d]``; row 0 is 0."""
        return self._vectors(None)

    def forward(self, rows: Tensor) -> Tensor:
        """Return vectors ``[..., d]`` of rows ``[...]``."""
        if not self.sparse:
            return nn.functional.embedding(rows, self.weight)
        distinct, place = rows.unique(return_inverse=True)
        return nn.functional.embedding(place, self._vectors(distinct))

    def _vectors(self, rows: Tensor | None) -> Tensor:
        """Return the vectors of rows ``[R]`` without duplicates, or of all rows."""

        def select(table: Tensor) -> Tensor:
            return table if rows is None else table[rows]

        has_text = select(self.has_text)
        vectors = torch.where(has_text, item_vectors(select(self.vectors), self.adapter), 0)
        if self.ids is not None:
            learned = select(self.learned)
            if self.training and self.id_dropout:
                kept = torch.rand(len(vectors), 1, device=vectors.device) >= self.id_dropout
                learned = learned & (kept | ~has_text)
            ids = self.ids if rows is None else nn.functional.embedding(rows, self.ids, sparse=True)
            vectors = vectors + torch.where(learned, ids, 0)
        return torch.where(select(self.trained), vectors, vectors.detach())

    def folded(self) -> nn.Embedding:
        """Return the current table as a plain embedding."""
        return nn.Embedding.from_pretrained(self.weight.detach(), freeze=False, padding_idx=0)
