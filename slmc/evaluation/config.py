"""What can be set for evaluation and the baselines. No torch here."""

from typing import Literal

from pydantic import Field, model_validator

from slmc.config import Protocol, Seeded, check_metric


class EvaluateConfig(Seeded, Protocol):
    """How a model's ranking is measured."""

    metrics: tuple[str, ...] = ("ndcg@10", "hr@10", "mrr", "ce", "ce_calibrated")
    """Metrics of the summary: hr@K, ndcg@K, ndcg, mrr, ce (nats) and ce_calibrated, the same at
    the temperature that is best on validation."""
    split: Literal["valid", "test"] = "test"
    """Which targets are ranked."""
    batch: int = Field(128, ge=1)
    """Histories that are scored at once."""

    @model_validator(mode="after")
    def _known_metrics(self) -> "EvaluateConfig":
        for metric in self.metrics:
            check_metric(metric)
        return self


class BaselinesConfig(Seeded, Protocol):
    """The cheap opponents of every run: popularity, Markov-1 and SASRec, measured alike."""

    batch: int = Field(512, ge=1)
    """Histories that are scored at once."""
