"""Settings of SASRec. No torch here."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from slmc.config import OUTSIDE_KEY, TrainConfig

Layer = Annotated[int, Field(ge=0)] | Literal["auto"] | None
"""A hidden layer of a text encoder."""


class SasrecConfig(TrainConfig):
    """SASRec with cross-entropy over the catalogue, with early stopping on the ranking."""

    dim: int = Field(64, ge=1)
    """Width of the item embeddings and of the layers."""
    layers: int = Field(2, ge=1)
    """Transformer layers."""
    heads: int = Field(2, ge=1)
    """Attention heads; must divide dim."""
    item_embeddings: Literal["ids", "text", "hybrid"] = "ids"
    """ids: a learned vector per item; text: the item's text through an adapter; hybrid: the sum of
    both. Text needs data.items and an encoder."""
    encoder: str | None = Field(None, json_schema_extra=OUTSIDE_KEY)
    """Encoder of the texts: a directory or hub id of a sentence encoder or an LLM."""
    encoder_revision: str | None = None
    """Commit, tag or branch of a hub id."""
    encoder_layer: Layer = None
    """Hidden layer to use; null: the last one of a sentence encoder, the middle one of an LLM;
    auto: of four layers the one whose text similarity alone ranks validation users best."""
    id_dropout: float = Field(0.0, ge=0, lt=1)
    """Probability that a training step leaves out the learned vector of an item (hybrid). Above 0
    texts learn to stand alone, as those of new items do; known items may rank a little worse."""
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

    @model_validator(mode="after")
    def _encoder_for_text(self) -> Self:
        if self.item_embeddings != "ids" and self.encoder is None:
            raise ValueError(f"item_embeddings: {self.item_embeddings} needs an encoder")
        if self.item_embeddings == "ids" and self.encoder is not None:
            raise ValueError("encoder needs item_embeddings: text or hybrid")
        if self.item_embeddings == "ids" and self.encoder_layer is not None:
            raise ValueError("encoder_layer needs item_embeddings: text or hybrid")
        check_text_settings(
            self.item_embeddings, self.encoder, self.encoder_revision, self.id_dropout
        )
        return self


def check_text_settings(
    item_embeddings: str, encoder: str | None, revision: str | None, id_dropout: float
) -> None:
    """Raise ``ValueError`` for a setting of an item table from texts that would have no effect."""
    if revision is not None and encoder is None:
        raise ValueError("encoder_revision needs an encoder")
    if id_dropout and item_embeddings != "hybrid":
        raise ValueError("id_dropout needs item_embeddings: hybrid")
