"""What can be set for pruning and quantizing. No torch here: recipes are checked without it."""

from typing import Literal

from pydantic import Field, model_validator

from slmc.config import OnDevice, Seeded


class PruneConfig(Seeded, OnDevice):
    """Take layers, attention heads and MLP channels out of a recommender.

    Layers go first; heads and channels are then chosen in each layer that is left. All layers
    keep as many, since a Hugging Face config has one number for all.
    """

    layers: int | None = Field(None, ge=1)
    """Decoder layers that are kept; null keeps all."""
    depth_by: Literal["influence", "search"] = "influence"
    """influence: the layers go that change the hidden state least (ShortGPT, arXiv 2403.03853);
    search: one after the other, that which hurts the validation cross-entropy least."""
    heads: float | None = Field(None, gt=0, le=1)
    """Share of the kv groups that is kept: a kv head goes with all its query heads."""
    ffn: float | None = Field(None, gt=0, le=1)
    """Share of the MLP channels that is kept."""
    importance: Literal["magnitude", "activation", "taylor"] = "taylor"
    """What is least important goes. magnitude: squared weights; activation: the mean square of
    what it adds to the hidden state; taylor: |w dL/dw|, summed (LLM-Pruner, arXiv 2305.11627)."""
    round_to: int = Field(64, ge=1)
    """MLP channels that are kept are a multiple of this, as kernels like it."""
    calibration: int = Field(256, ge=1)
    """Training histories that influence and importance are measured on."""

    @model_validator(mode="after")
    def _asks_for_something(self) -> "PruneConfig":
        if self.layers is None and self.heads is None and self.ffn is None:
            raise ValueError("say what is kept: at least one of layers, heads and ffn")
        return self
