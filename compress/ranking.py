"""How a model ranks on validation, before and after something was done to it.

Letters: ``U`` users.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slmc.bootstrap import Interval, paired_bootstrap
from slmc.data.config import EvaluateConfig
from slmc.data.dataset import Dataset
from slmc.errors import UndecidedError
from slmc.evaluate import VectorScorer, rank
from slmc.measured import protocol, values
from slmc.model.recommender import SequentialRecommender

METRIC = "ndcg@10"
CONFIG = EvaluateConfig(split="valid", metrics=(METRIC, "ce"), exclude_seen=False)


@dataclass(frozen=True)
class Ranking:
    """NDCG@10 (full ranking, seen items kept) and cross-entropy (nats) of each user, ``[U]``."""

    ndcg: NDArray[np.float64]
    ce: NDArray[np.float64]

    @property
    def means(self) -> dict[str, float]:
        """Both means by name."""
        return {METRIC: float(self.ndcg.mean()), "ce": float(self.ce.mean())}


def check_users(data: Dataset, what: str) -> None:
    """Raise ``UndecidedError`` unless there is a validation target to rank."""
    if not data.targets("valid").users:
        raise UndecidedError(
            f"{what} is judged by ranking, and no user has a validation target.",
            "Use a log with at least 3 interactions of some users, or leave it out.",
        )


def measure(model: SequentialRecommender, data: Dataset, task: str) -> Ranking:
    """Rank the validation targets; raises as :func:`slmc.evaluate.rank`."""
    per_user = rank(VectorScorer.of(model), data.targets("valid"), data.counts, CONFIG, task)
    said = protocol(CONFIG)
    return Ranking(values(per_user, METRIC, said), values(per_user, "ce", said))


def change(after: Ranking, before: Ranking, seed: int) -> dict[str, Any]:
    """Mean changes with one-sided 95 % bounds, paired over users; JSON-able."""
    ndcg = paired_bootstrap(after.ndcg, before.ndcg, seed=seed)
    ce = paired_bootstrap(after.ce, before.ce, seed=seed)
    relative = ndcg.relative
    return {
        METRIC: _bounds(ndcg),
        f"{METRIC}, relative": None
        if relative is None
        else {"change": relative.change, "low": relative.low, "high": relative.high},
        "ce": _bounds(ce),
    }


def _bounds(interval: Interval) -> dict[str, float]:
    return {"change": interval.change, "low": interval.low, "high": interval.high}
