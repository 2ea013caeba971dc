"""Settings of a gate. No torch here: recipes are checked without it.

All gates must pass: a single one that fails or is inconclusive decides the exit code. Requiring
all makes a false pass less likely, so their confidence needs no correction for multiple testing.
"""

import re
from typing import Literal

from pydantic import Field, model_validator

from slmc.config import Budget, StageConfig, parse_budget

OVERLAP = re.compile(r"overlap@([1-9]\d*)")
LONGEST = 20
"""Length of the top lists that an evaluation stores: the largest K of overlap@K."""

Segment = Literal[
    "all",
    "cold-users",
    "tail-items",
    "long-histories",
    "cold-items",
    "new-items",
    "same-time",
    "later",
]
COLD = 5
"""Largest number of training interactions of a cold item."""


class Gate(StageConfig):
    """A condition on a model or an engine that decides the exit code."""

    metric: str
    """ndcg@K, ndcg, hr@K, mrr, ce or ce_calibrated (nats, lower is better; the latter at the best
    temperature on validation), overlap@K (of the top lists with those of the baseline, K up to
    20) or size_mb (size of the files needed for serving, in 10^6 bytes)."""
    on: str | None = None
    """Id of the step whose model or engine is judged; null for the last one."""
    baseline: str | None = None
    """Id of the step to compare with, or source: the model that the engine was exported from."""
    max_drop: Budget | None = None
    """Largest allowed loss against the baseline: a share such as 3%, or an absolute number. For ce,
    a rise is a loss, and the budget is an absolute number of nats, such as 0.02."""
    min: float | None = None
    """Smallest allowed value."""
    max: float | None = None
    """Largest allowed value (ce, size_mb)."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """One-sided confidence of the verdict."""
    segment: Segment = "all"
    """Users to evaluate: all; cold-users, the quarter with the shortest histories; long-histories,
    the quarter with the longest; tail-items, users whose target is in the least popular 80 % of
    the catalogue; cold-items, users whose target has at most 5 training interactions; new-items,
    users whose target has none; same-time, users whose target has the time of the item before it;
    later, the other users of a log with times."""
    anomalous: Literal["warn", "fail"] = "warn"
    """Whether to warn or fail if an engine, or a pruned or quantized model, is more than 5 % better
    than the baseline, and the baseline is the model that it was made from."""

    @model_validator(mode="after")
    def _known_metric(self) -> "Gate":
        from slmc.config import check_metric

        overlap = OVERLAP.fullmatch(self.metric)
        if overlap is None and self.metric != "size_mb":
            try:
                check_metric(self.metric)
            except ValueError:
                raise ValueError(
                    f"there is no metric {self.metric!r} to gate; there are hr@K, ndcg@K, ndcg, "
                    "mrr, ce, ce_calibrated, overlap@K, size_mb"
                ) from None
        if overlap is not None and int(overlap[1]) > LONGEST:
            raise ValueError(f"{self.metric}: an evaluation stores only the {LONGEST} best items")
        return self

    @model_validator(mode="after")
    def _one_fitting_bound(self) -> "Gate":
        bounds = [k for k in ("max_drop", "min", "max") if getattr(self, k) is not None]
        allowed = self._bounds()
        if len(bounds) != 1 or bounds[0] not in allowed:
            raise ValueError(
                f"a gate on {self.metric} takes {' or '.join(allowed)}, and has "
                f"{' and '.join(bounds) or 'none'}"
            )
        return self

    @model_validator(mode="after")
    def _baseline_where_compared(self) -> "Gate":
        if self.max_drop is not None and self.baseline is None:
            raise ValueError("max_drop needs a baseline")
        if self.overlap_at is not None and self.baseline is None:
            raise ValueError(f"{self.metric} needs a baseline to compare the top lists with")
        if self.baseline is not None and self.max_drop is None and self.overlap_at is None:
            raise ValueError(f"a gate on {self.metric} with min or max takes no baseline")
        return self

    @model_validator(mode="after")
    def _absolute_budget_of_ce(self) -> "Gate":
        from slmc.config import CROSS_ENTROPIES

        if self.metric not in CROSS_ENTROPIES or self.max_drop is None:
            return self
        if parse_budget(self.max_drop)[1]:
            raise ValueError(
                f"{self.max_drop} of {self.metric} would pass models that rank far worse; give a "
                "budget in nats, such as 0.02"
            )
        return self

    @model_validator(mode="after")
    def _users_where_counted(self) -> "Gate":
        if self.metric == "size_mb" and self.segment != "all":
            raise ValueError(
                f"size_mb is not measured per user, so it has no segment {self.segment}"
            )
        return self

    @property
    def overlap_at(self) -> int | None:
        """K of overlap@K; None for other metrics."""
        match = OVERLAP.fullmatch(self.metric)
        return int(match[1]) if match else None

    def _bounds(self) -> tuple[str, ...]:
        if self.metric == "size_mb":
            return ("max",)
        if self.overlap_at is not None:
            return ("min",)
        from slmc.evaluation.metrics import LOWER_IS_BETTER

        return ("max_drop", "max") if self.metric in LOWER_IS_BETTER else ("max_drop", "min")
