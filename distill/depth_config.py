"""Settings of depth, and of what distill takes from its report. No torch here."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, create_model, model_validator

from slmc.config import (
    CROSS_ENTROPIES,
    TRAINING,
    Budget,
    Placed,
    Protocol,
    Seeded,
    StageConfig,
    check_metric,
    parse_budget,
)

Way = Literal["first", "influence", "angular", "interval"]
"""A way of choosing the layers to keep."""
Select = Literal["first", "interval", "influence"]
"""A way of choosing the layers that a student starts from."""

if TYPE_CHECKING:

    class FromDepth(StageConfig):
        """``{from: depth}``: the number of layers is read from the report of a depth step."""

else:
    # ``from`` is a keyword, so it cannot be a field of a class statement.
    FromDepth = create_model(
        "FromDepth",
        __base__=StageConfig,
        **{
            "from": (
                Literal["depth"],
                Field(
                    description="The report in the role depth; in a recipe, the id of a depth step."
                ),
            )
        },
    )


def _kind(value: Any) -> str:
    """Return which of the two forms a number of layers has, so that an error names one only."""
    return "report" if isinstance(value, dict | FromDepth) else "number"


LayerCount = Annotated[
    Annotated[int, Field(ge=1), Tag("number")] | Annotated[FromDepth, Tag("report")],
    Discriminator(_kind),
]
"""A number of layers, or where it is read from."""


class Fit(StageConfig):
    """Training of the short students that ``train`` fits."""

    epochs: int = Field(1, ge=1)
    """Largest number of passes over the training sequences, for each depth."""
    init: Literal["backbone", "teacher"] = "backbone"
    """Start from the first layers of the LLM (backbone) or of the teacher (teacher)."""
    lr: float = Field(2e-4, gt=0)
    """Peak learning rate of the layers."""
    projection_lr: float = Field(1e-3, gt=0)
    """Peak learning rate of input_proj and output_proj."""


class DepthConfig(Seeded, Placed, Protocol):
    """Measure how a recommender ranks with fewer of its layers, without training."""

    libraries: ClassVar[tuple[str, ...]] = TRAINING

    metric: str = "ndcg@10"
    """Metric of validation users: hr@K, ndcg@K, ndcg, mrr or ce."""
    max_drop: Budget = "1%"
    """Largest loss of the metric against all layers: a share such as 1%, or an absolute number
    (nats for ce). METRIC=BUDGET sets both, such as hr@10=2%."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """One-sided confidence of the bounds: a depth is within the budget if the lower bound of its
    change is."""
    ways: tuple[Way, ...] = ("first", "influence", "angular")
    """How layers are chosen. first: the first ones; influence: those that change the direction of
    the hidden state most (ShortGPT, arXiv 2403.03853); angular: all but the run of consecutive
    layers that turns it least (arXiv 2403.17887); interval: evenly spaced ones."""
    depths: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """Numbers of layers to measure; null for all."""
    users: int = Field(2048, ge=1)
    """Largest number of validation users that are ranked; more are sampled with the seed."""
    histories: int = Field(1024, ge=2)
    """Training histories on which layers are compared with each other."""
    train: bool = False
    """Also fit a short student of the first layers at each depth, without distillation terms."""
    fit: Fit = Fit()
    """How these students are trained."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of matmuls in the training of students; depths are measured in float32."""

    @model_validator(mode="before")
    @classmethod
    def _metric_with_budget(cls, raw: Any) -> Any:
        """Read ``max_drop: ndcg@10=1%``."""
        if not isinstance(raw, dict) or "=" not in str(raw.get("max_drop", "")):
            return raw
        metric, _, budget = str(raw["max_drop"]).partition("=")
        metric = metric.strip()
        if raw.get("metric", metric) != metric:
            raise ValueError(f"max_drop is of {metric}, but metric is {raw['metric']}")
        return {**raw, "metric": metric, "max_drop": budget}

    @model_validator(mode="after")
    def _budget_of_metric(self) -> Self:
        check_metric(self.metric)
        if self.metric == "ce_calibrated":
            raise ValueError("metric: ce_calibrated is fitted on these users; use ce or a ranking")
        if self.metric in CROSS_ENTROPIES and parse_budget(self.max_drop)[1]:
            raise ValueError(
                f"max_drop: {self.max_drop} of ce would pass models that rank far worse; give a "
                "budget in nats, such as 0.02"
            )
        return self

    @model_validator(mode="after")
    def _nothing_empty(self) -> Self:
        for name in ("ways", "depths"):
            if getattr(self, name) == ():
                raise ValueError(f"{name} is empty: name at least one")
        return self
