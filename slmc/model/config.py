"""What can be set for SASRec and the baselines. No torch here."""

from pydantic import Field

from slmc.config import Protocol, Seeded, TrainConfig


class SasrecConfig(TrainConfig):
    """SASRec with full-softmax cross-entropy, trained until it stops improving."""

    dim: int = Field(64, ge=1)
    """Width of the item embeddings and of the layers."""
    layers: int = Field(2, ge=1)
    """Transformer layers."""
    heads: int = Field(2, ge=1)
    """Attention heads; must divide dim."""
    dropout: float = Field(0.15, ge=0, lt=1)
    """Dropout of embeddings, attention output and feed-forward."""
    epochs: int = Field(40, ge=1)
    """Passes over the training sequences, at most (see patience)."""
    lr: float = Field(3e-3, gt=0)
    """Peak learning rate."""
    beta2: float = Field(0.98, gt=0, lt=1)
    """AdamW's decay of the squared gradients; beta1 is 0.9."""
    warmup: int = Field(50, ge=0)
    """Optimizer steps of linear warm-up; a cosine decay to 2 % of the peak follows."""
    patience: int = Field(10, ge=1)
    """Epochs without a lower validation cross-entropy after which training stops."""
    rows: int = Field(64, ge=1)
    """Packed rows of one optimizer step; a row is as long as the history."""


class BaselinesConfig(Seeded, Protocol):
    """The cheap opponents of every run: popularity, Markov-1 and SASRec, measured alike."""

    batch: int = Field(512, ge=1)
    """Histories that are scored at once."""
