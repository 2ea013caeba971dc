"""Settings of SASRec. No torch here."""

from pydantic import Field

from slmc.config import TrainConfig


class SasrecConfig(TrainConfig):
    """SASRec with full-softmax cross-entropy, with early stopping on the ranking."""

    dim: int = Field(64, ge=1)
    """Width of the item embeddings and of the layers."""
    layers: int = Field(2, ge=1)
    """Transformer layers."""
    heads: int = Field(2, ge=1)
    """Attention heads; must divide dim."""
    dropout: float = Field(0.3, ge=0, lt=1)
    """Dropout of embeddings, attention output and feed-forward."""
    epochs: int = Field(200, ge=1)
    """Largest number of passes over the training sequences; early stopping ends training before
    (see patience)."""
    lr: float = Field(3e-3, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW weight decay of matrices; norms and biases have none."""
    beta2: float = Field(0.98, gt=0, lt=1)
    """AdamW's decay of the squared gradients; beta1 is 0.9."""
    warmup: int = Field(50, ge=0)
    """Optimizer steps of linear warm-up; then the rate is constant until it decays to 0."""
    patience: int = Field(5, ge=1)
    """The learning rate starts to decay when the last ``patience`` validations are on average no
    better than the ``patience`` before them. There is one validation per epoch, up to 8 on large
    logs."""
    rows: int = Field(64, ge=1)
    """Batch size: packed rows per optimizer step; a row has as many items as ``history``."""
