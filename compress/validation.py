"""The ranking of a model on validation users, before and after compression.

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
"""The first is compared with budgets, the second orders layers by sensitivity."""


@dataclass(frozen=True)
class Ranking:
    """The metrics of a model per user; all arrays are ``[U]``."""

    values: dict[str, NDArray[np.float64]]
    """Metric of :data:`METRICS` -> values of the users; ce in nats."""

    @property
    def means(self) -> dict[str, float]:
        """The mean of each metric."""
        return {name: float(numbers.mean()) for name, numbers in self.values.items()}


def validation_config(config: PruneConfig | QuantizeConfig, data: Dataset) -> EvaluateConfig:
    """Return the config that ranks validation users under the protocol of the step."""
    shared = {name: getattr(config, name) for name in ("seed", *Protocol.model_fields)}
    return resolve_auto(EvaluateConfig(**shared, split="valid", metrics=METRICS), data)


def check_users(data: Dataset, what: str) -> None:
    """Raise ``UndecidedError`` unless there is a validation target to rank."""
    if not data.targets("valid").users:
        raise UndecidedError(
            f"{what} needs a ranking on validation, but no user has a validation target.",
            "Use a log with at least 3 interactions of some users, or leave it out.",
        )


def measure(model: Recommender, data: Dataset, config: EvaluateConfig, task: str) -> Ranking:
    """Rank the validation users; raises the errors of :func:`slmc.evaluation.evaluate.rank`."""
    users = data.targets("valid")
    per_user = rank(VectorScorer.of(model), users, data.counts, config, task, top=0)
    ranked_by = protocol(config)
    return Ranking({name: values(per_user, name, ranked_by) for name in METRICS})


def change(after: Ranking, before: Ranking, seed: int) -> dict[str, Any]:
    """Return mean changes with one-sided 95 % bounds, paired over users; JSON-able.

    Changes of ranking metrics are also given relative to the mean before.
    """
    changes: dict[str, Any] = {}
    for name in METRICS:
        interval = paired_bootstrap(after.values[name], before.values[name], seed=seed)
        changes[name] = _bounds(interval.absolute)
        if name not in CROSS_ENTROPIES:
            changes[f"{name}, relative"] = interval.relative and _bounds(interval.relative)
    return changes


def _bounds(bounds: Bounds) -> dict[str, float]:
    return {"change": bounds.change, "low": bounds.low, "high": bounds.high}
