"""A student with a narrower item table than its teacher's, and the term that keeps its scores.

The item table is most of a small recommender's bytes. Letters: ``V`` items, ``d`` item width of the
given table, ``r`` the narrower width, ``M`` items that are compared.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slmc.artefact import Artefact
from slmc.errors import UsageError
from slmc.model import text_map
from slmc.model.loading import Recommender, load_model
from slmc.model.recommender import SequentialRecommender
from slmc.model.text_map import Projection, TextMap

COMPARED = 2**14
"""Items that :class:`ItemScores` compares at a step; larger catalogues are sampled."""
WELL_EXPLAINED = 0.9
"""Below this share of explained variance, vectors of new items are too far from the table's."""

log = logging.getLogger("slmc.distill")


@dataclass(frozen=True)
class Pca:
    """Principal directions of an item table, weighted by how often the items occur.

    Of all maps to ``r`` dimensions this one keeps the most of the scores: it has the smallest
    squared error of a user's scores, for users whose vectors point in no preferred direction and
    items as frequent as in the data. The mean vector is left out first, which changes no ranking:
    it gives all items of a user the same score. The same table has the smallest error of the
    scores between items (Eckart and Young 1936), so :func:`item_loss` starts at its least value.
    """

    mean: Tensor
    """``[d]``."""
    directions: Tensor
    """``[d, r]``, orthonormal, largest variance first."""
    explained: float
    """Share of the variance that the directions keep."""

    @classmethod
    def fit(cls, table: Tensor, weights: Tensor, width: int) -> Self:
        """Fit the directions.

        Args:
            table: ``[V, d]``, without the row of padding.
            weights: ``[V]``, of sum 1.
            width: r, at most d.
        """
        vectors, weights = table.detach().double(), weights.to(table.device).double()
        mean = weights @ vectors
        centred = vectors - mean
        variances, directions = torch.linalg.eigh(centred.T @ (weights[:, None] * centred))
        kept = directions[:, -width:].flip(1)
        # A direction's sign is arbitrary: the same table gives the same one on every machine.
        largest = kept.gather(0, kept.abs().argmax(dim=0, keepdim=True))
        explained = variances[-width:].sum() / variances.sum().clamp_min(1e-30)
        return cls(mean.float(), (kept * largest.sign()).float(), explained.item())

    def __call__(self, vectors: Tensor) -> Tensor:
        """Map vectors ``[..., d]`` to ``[..., r]``."""
        return (vectors - self.mean) @ self.directions


def frequencies(counts: NDArray[np.integer]) -> Tensor:
    """Return the weights ``[V]`` of the items, of sum 1, from training counts ``[V + 1]``.

    Each count is raised by 1, so that items which nobody has bought yet are kept too.
    """
    weights = torch.from_numpy(counts[1:].astype(np.float64)) + 1
    return weights / weights.sum()


@torch.no_grad()
def narrow(model: Recommender, width: int, counts: NDArray[np.integer]) -> None:
    """Give a recommender an item table of ``width``, trained from now on, in place.

    The projections around the decoder are composed with the map of :class:`Pca`, so that at full
    width the model ranks as before. At its own width the table is only set to be trained. Codes of
    a quantized table become floats.

    Raises:
        UsageError: The table is narrower than ``width``, or the model is a SASRec.
    """
    if not isinstance(model, SequentialRecommender):
        raise UsageError(
            "item_dim: the student is a SASRec, whose layers have the width of its item table.",
            "Leave item_dim out, or use a student on an LLM.",
        )
    table = model.item_vectors().detach()
    known = table.shape[1]
    if width > known:
        raise UsageError(
            f"item_dim: {width} is wider than the item table, which has {known} dimensions.",
            f"Set item_dim to at most {known}, or leave it out.",
        )
    if width < known:
        pca = Pca.fit(table[1:], frequencies(counts), width)
        log.info(
            "distill: an item table of %d of %d dimensions, which keep %.1f %% of the variance",
            width, known, 100 * pca.explained,
        )  # fmt: skip
        _compose(model, pca, table)
    elif model.config.item_bits is not None:
        model.item_embeddings = nn.Embedding.from_pretrained(table, padding_idx=0)
    model.config.item_bits = None
    model.item_embeddings.requires_grad_(True)


def _compose(model: SequentialRecommender, pca: Pca, table: Tensor) -> None:
    before, after, width = model.input_proj, model.output_proj, pca.directions.shape[1]
    rows = pca(table)
    rows[0] = 0
    model.item_embeddings = nn.Embedding.from_pretrained(rows, freeze=False, padding_idx=0)
    model.input_proj = nn.Linear(width, before.out_features).to(table)
    model.input_proj.weight.copy_(before.weight @ pca.directions)
    model.input_proj.bias.copy_(before.bias + before.weight @ pca.mean)
    model.output_proj = nn.Linear(after.in_features, width, bias=False).to(table)
    model.output_proj.weight.copy_(pca.directions.T @ after.weight)
    model.config.item_dim = width


def item_loss(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    r"""Return how far the scores between items are from the teacher's, relative to these.

    :math:`\sum_{ij} w_i w_j (s_i s_j - t_i t_j)^2 / \sum_{ij} w_i w_j (t_i t_j)^2` of vectors s and
    t without their mean: 0 if all are equal, 1 for a table of zeros. Neither a rotation nor a shift
    of the student's table changes it. The M x M scores are never computed: with
    :math:`A = \sqrt w\,s`, :math:`B = \sqrt w\,t` the numerator is
    :math:`\|A^T A\|^2 - 2 \|A^T B\|^2 + \|B^T B\|^2`.

    Args:
        student: ``[M, r]``.
        teacher: ``[M, d]``; gets no gradient.
        weights: ``[M]``, of sum 1.
    """
    weights = weights.double()
    a, b = (_weighted(table.double(), weights) for table in (student, teacher.detach()))
    products = [(x.T @ y).square().sum() for x, y in ((a, a), (a, b), (b, b))]
    relative = (products[0] - 2 * products[1] + products[2]) / products[2]
    return relative.float()


def _weighted(table: Tensor, weights: Tensor) -> Tensor:
    return (table - weights @ table) * weights.sqrt()[:, None]


class ItemScores(nn.Module):
    """The term ``items`` of a training step: :func:`item_loss` over the catalogue, or a sample."""

    teacher: Tensor
    weights: Tensor

    def __init__(self, teacher_items: Tensor, counts: NDArray[np.integer]) -> None:
        """Keep the teacher's table.

        Args:
            teacher_items: ``[V + 1, d]``; row 0 is padding.
            counts: ``[V + 1]`` training interactions of the items.
        """
        super().__init__()
        weights = frequencies(counts)
        self.cumulative = weights.cumsum(0)  # on the CPU, in float64
        self.register_buffer("teacher", teacher_items.detach(), persistent=False)
        self.register_buffer("weights", weights.float(), persistent=False)

    @classmethod
    def of(
        cls,
        student: Recommender,
        teacher_items: Tensor,
        counts: NDArray[np.integer],
    ) -> Self:
        """Return the term for a student; raises ``UsageError`` if its table is not trained."""
        if not student.item_vectors().requires_grad:
            raise UsageError(
                "losses.items: the student's item table is frozen, as the teacher's was.",
                "Set item_dim to train it, at most the width of the teacher's, or leave the term "
                "out.",
            )
        return cls(teacher_items, counts)

    def forward(self, model: Recommender) -> Tensor:
        """Return the loss of the model's item table."""
        rows, weights = torch.arange(1, len(self.teacher)), self.weights
        if len(rows) > COMPARED:
            rows, weights = self._drawn(), weights.new_full((COMPARED,), 1 / COMPARED)
        rows = rows.to(self.teacher.device)
        return item_loss(model.item_embeddings(rows), self.teacher[rows], weights)

    def _drawn(self) -> Tensor:
        """Return rows ``[COMPARED]``, as frequent as their weights, by torch's random state."""
        places = torch.searchsorted(self.cumulative, torch.rand(COMPARED, dtype=torch.float64))
        return places.clamp(max=len(self.weights) - 1) + 1


@torch.no_grad()
def follow_texts(
    source: Artefact,
    model: Recommender,
    counts: NDArray[np.integer],
    out: Path,
) -> None:
    """Keep a trained item table usable for new items, if it was made from one that came from texts.

    A linear map from the first table to the trained one is fitted to the items that have training
    interactions. It gives the other items their vectors (as negatives, training has pushed them
    away), and is written behind the map from texts, for items that come later. Nothing is done if
    the first table itself was trained after it came from texts: such a map refuses new items.

    Args:
        source: The model whose item table the trained one started from.
        model: The trained model.
        counts: ``[V + 1]`` training interactions of the items.
        out: Folder of the artefact that is being written.
    """
    if not text_map.has_map(source):
        return
    known, before = TextMap.open(source), load_model(source).item_vectors().detach()
    if not known.fits(before):
        return
    trained = torch.from_numpy(counts > 0)
    trained[0] = False
    table = model.get_parameter("item_embeddings.weight").cpu()
    weights = torch.from_numpy(counts / max(1, counts[1:].sum()))
    projection, explained = Projection.fit(before[trained], table[trained], weights[trained])
    if explained < WELL_EXPLAINED:
        log.warning(
            "distill: texts explain only %.0f %% of the trained item table, so new items rank "
            "worse; a larger losses.items keeps more",
            100 * explained,
        )
    table = torch.where(trained[:, None], table, projection(before))
    table[0] = 0
    model.get_parameter("item_embeddings.weight").copy_(table)
    known.followed_by(projection, table).save(out)
