"""How a model ranks on validation, before and after something was done to it.

Letters: ``U`` users.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slmc.compress.config import PruneConfig, QuantizeConfig
from slmc.config import CROSS_ENTROPIES, Protocol
from slmc.data.dataset import Dataset
from slmc.errors import UndecidedError
from slmc.evaluation.bootstrap import Bounds, paired_bootstrap
from slmc.evaluation.config import EvaluateConfig
from slmc.evaluation.evaluate import rank
from slmc.evaluation.results import protocol, resolve_auto, values
from slmc.evaluation.scorers import VectorScorer
from slmc.model.loading import Recommender

METRICS = ("ndcg@10", "ndcg", "ce")
"""What is measured: the first is held against budgets, the second orders layers."""


@dataclass(frozen=True)
class Ranking:
    """The ranking of a model; all arrays ``[U]``."""

    of: dict[str, NDArray[np.float64]]
    """Metric of :data:`METRICS` -> its value for each user; ce in nats."""

    @property
    def means(self) -> dict[str, float]:
        """Mean of each metric."""
        return {name: float(numbers.mean()) for name, numbers in self.of.items()}


def alike(config: PruneConfig | QuantizeConfig, data: Dataset) -> EvaluateConfig:
    """How validation users are ranked: under the protocol of the step's config, settled."""
    shared = {name: getattr(config, name) for name in ("seed", *Protocol.model_fields)}
    return resolve_auto(EvaluateConfig(**shared, split="valid", metrics=METRICS), data)


def check_users(data: Dataset, what: str) -> None:
    """Raise ``UndecidedError`` unless there is a validation target to rank."""
    if not data.targets("valid").users:
        raise UndecidedError(
            f"{what} is judged by ranking, and no user has a validation target.",
            "Use a log with at least 3 interactions of some users, or leave it out.",
        )


def measure(model: Recommender, data: Dataset, config: EvaluateConfig, task: str) -> Ranking:
    """Rank the validation targets; raises as :func:`slmc.evaluation.evaluate.rank`."""
    users = data.targets("valid")
    per_user = rank(VectorScorer.of(model), users, data.counts, config, task, top=0)
    said = protocol(config)
    return Ranking({name: values(per_user, name, said) for name in METRICS})


def change(after: Ranking, before: Ranking, seed: int) -> dict[str, Any]:
    """Mean changes with one-sided 95 % bounds, paired over users; JSON-able.

    Those of ranking metrics stand there as shares of the mean before, too.
    """
    found: dict[str, Any] = {}
    for name in METRICS:
        interval = paired_bootstrap(after.of[name], before.of[name], seed=seed)
        found[name] = _bounds(interval.absolute)
        if name not in CROSS_ENTROPIES:
            found[f"{name}, relative"] = interval.relative and _bounds(interval.relative)
    return found


def _bounds(bounds: Bounds) -> dict[str, float]:
    return {"change": bounds.change, "low": bounds.low, "high": bounds.high}
