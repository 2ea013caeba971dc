"""What can be set for pruning and quantizing. No torch here: recipes are checked without it."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from slmc.config import Budget, OnDevice, Protocol, Seeded


def _pairs(value: Any) -> Any:
    """``a=8,b=skip`` as a mapping; anything else as it is."""
    if not isinstance(value, str):
        return value
    parts = [part.strip() for part in value.split(",") if part.strip()]
    if any(part.count("=") != 1 for part in parts):
        raise ValueError("pairs such as *.down_proj=8,*.v_proj=skip are expected")
    pairs = [part.split("=") for part in parts]
    return {name: int(bits) if bits.isdecimal() else bits for name, bits in pairs}


Assignment = Annotated[dict[str, Literal[4, 8, "skip"]], BeforeValidator(_pairs)]
"""Pattern of layer names -> width of their codes, or ``skip``."""


class PruneConfig(Seeded, OnDevice, Protocol):
    """Take layers, attention heads and MLP channels out of a recommender.

    Layers go first; heads and channels are then chosen in each layer that is left. All layers
    keep as many, since a Hugging Face config has one number for all.
    """

    layers: int | None = Field(None, ge=1)
    """Decoder layers that are kept; null keeps all."""
    depth_by: Literal["influence", "search"] = "influence"
    """influence: the layers go that change the hidden state least (ShortGPT, arXiv 2403.03853);
    search: one after the other, that without which validation users are ranked best (ndcg)."""
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


class QuantizeConfig(Seeded, OnDevice, Protocol):
    """Store weights in 4 or 8 bits (GPTQ, Frantar et al. 2022, arXiv 2210.17323)."""

    method: Literal["gptq", "rtn"] = "gptq"
    """gptq: rounding errors are made up for on calibration histories; rtn: round to nearest."""
    bits: Literal[4, 8] = 4
    """Width of a weight's code."""
    group_size: int = Field(64, ge=8)
    """Input channels that share a scale; must divide every input width."""
    symmetric: bool = True
    """Whether 0 is always a code of its own (no zero points are stored)."""
    act_order: bool | None = None
    """Whether GPTQ rounds the channels with the largest inputs first; groups stay as they are
    stored (the static form). null: yes with gptq; rtn knows no order."""
    ignore: tuple[str, ...] = ("input_proj", "output_proj")
    """Linear layers left alone, by the end of their name."""
    assign: Assignment = Field({})
    """Another width for some layers: shell-style pattern of names -> 4, 8 or skip; the last one
    that fits counts. On the command line "*.down_proj=8,*.v_proj=skip"."""
    calibration: int = Field(128, ge=1)
    """Training histories that errors are measured on."""
    item_table: Literal["int8", "int4"] | None = None
    """Width of the item table, a scale a row, measured by ranking; null keeps it in float32."""
    sensitivity: bool | Budget = False
    """Measure the ranking with one layer quantized at a time. A budget (1% of NDCG@10) also
    proposes which layers to keep wider: written as a recipe fragment."""

    def extras(self) -> dict[str, str]:
        """llm-compressor, where GPTQ is asked for."""
        return {"llmcompressor": "quantize"} if self.method == "gptq" else {}

    @model_validator(mode="after")
    def _only_gptq_has_an_order(self) -> "QuantizeConfig":
        if self.method == "rtn" and self.act_order:
            raise ValueError("act_order goes with method: gptq; rtn rounds each weight by itself")
        return self
