"""Settings of evaluate and the baselines. No torch here."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from slmc.config import TORCH, Protocol, Seeded, check_metric


class EvaluateConfig(Seeded, Protocol):
    """Evaluate the ranking of a model."""

    libraries: ClassVar[tuple[str, ...]] = TORCH

    metrics: tuple[str, ...] = ("ndcg@10", "hr@10", "mrr", "ce", "ce_calibrated")
    """Metrics of the summary: hr@K, ndcg@K, ndcg, mrr, ce (nats), and ce_calibrated (ce at the best
    temperature on validation)."""
    split: Literal["valid", "test"] = "test"
    """Split whose targets are ranked."""
    batch: int = Field(128, ge=1)
    """Batch size: histories that are scored at once."""

    @model_validator(mode="after")
    def _known_metrics(self) -> "EvaluateConfig":
        for metric in self.metrics:
            check_metric(metric)
        return self


class EvaluateEngineConfig(EvaluateConfig):
    """How an engine's ranking is measured; the settings are those of :class:`EvaluateConfig`."""

    libraries: ClassVar[tuple[str, ...]] = ("numpy", "onnxruntime")


class BaselinesConfig(Seeded, Protocol):
    """Evaluate the baselines under one protocol: popularity, Markov-1 and SASRec."""

    libraries: ClassVar[tuple[str, ...]] = TORCH

    batch: int = Field(512, ge=1)
    """Batch size: histories that are scored at once."""
