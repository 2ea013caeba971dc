"""Settings of prune and quantize. No torch here: recipes are checked without it."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from slmc.config import IN_KEY_IF_SET, TORCH, Budget, OnDevice, Protocol, Seeded


def _pairs(value: Any) -> Any:
    """Parse ``a=8,b=skip`` to a mapping; return any other value unchanged."""
    if not isinstance(value, str):
        return value
    parts = [part.strip() for part in value.split(",") if part.strip()]
    if any(part.count("=") != 1 for part in parts):
        raise ValueError("expected pairs such as *.down_proj=8,*.v_proj=skip")
    pairs = [part.split("=") for part in parts]
    return {name: int(bits) if bits.isdecimal() else bits for name, bits in pairs}


Assignment = Annotated[dict[str, Literal[4, 8, "skip"]], BeforeValidator(_pairs)]
"""Pattern of layer names -> bits per weight, or ``skip``."""


class PruneConfig(Seeded, OnDevice, Protocol):
    """Structured pruning: remove layers, attention heads and MLP channels of a recommender.

    Layers are removed first (the least important, or with exit_block those after a block), then
    heads and channels in each remaining layer. All layers keep the same number, because a Hugging
    Face config has one number for all layers.
    """

    libraries: ClassVar[tuple[str, ...]] = (*TORCH, "torch-pruning")

    layers: int | None = Field(None, ge=1)
    """Number of decoder layers to keep; null keeps all."""
    depth_by: Literal["influence", "search"] = "influence"
    """influence: remove the layers that change the hidden state least (ShortGPT, arXiv 2403.03853);
    search: remove one layer at a time, each time the one whose removal leaves the best ndcg on
    validation."""
    exit_block: int | None = Field(None, ge=1, json_schema_extra=IN_KEY_IF_SET)
    """Early exit: end the model after this block, from 1, with the block's own head as its output.
    Needs a student that was distilled with keep_heads: true; null keeps its depth."""
    heads: float | None = Field(None, gt=0, le=1)
    """Share of KV groups to keep; a group is a key-value head and all its query heads."""
    ffn: float | None = Field(None, gt=0, le=1)
    """Share of MLP channels to keep."""
    importance: Literal["magnitude", "activation", "taylor"] = "taylor"
    """Importance of a head or channel; the least important are removed. magnitude: sum of squared
    weights; activation: mean square of its contribution to the hidden state; taylor: sum of
    |w dL/dw| (LLM-Pruner, arXiv 2305.11627)."""
    round_to: int = Field(64, ge=1)
    """The number of MLP channels is rounded to a multiple of this, for fast kernels."""
    calibration: int = Field(256, ge=1)
    """Size of the calibration set: training histories on which influence and importance are
    computed."""

    @model_validator(mode="after")
    def _asks_for_something(self) -> "PruneConfig":
        if all(one is None for one in (self.layers, self.exit_block, self.heads, self.ffn)):
            raise ValueError("set at least one of layers, exit_block, heads and ffn")
        if self.layers is not None and self.exit_block is not None:
            raise ValueError("exit_block decides which layers are kept; leave out layers")
        return self


class QuantizeConfig(Seeded, OnDevice, Protocol):
    """Weight-only quantization to 4 or 8 bits (GPTQ, Frantar et al. 2022, arXiv 2210.17323)."""

    libraries: ClassVar[tuple[str, ...]] = (*TORCH, "compressed-tensors", "llmcompressor")

    method: Literal["gptq", "rtn"] = "gptq"
    """gptq: GPTQ, compensates rounding errors on the calibration set; rtn: round to nearest."""
    bits: Literal[4, 8] = 4
    """Bits per weight."""
    group_size: int = Field(64, ge=8)
    """Input channels per scale; must divide the input width of every layer."""
    symmetric: bool = True
    """Symmetric quantization, without zero points; false stores zero points."""
    act_order: bool | None = None
    """Activation order of GPTQ: channels with the largest activations are rounded first; groups
    keep the stored order (static). null: true with gptq, ignored with rtn."""
    ignore: tuple[str, ...] = ("input_proj", "output_proj")
    """Linear layers that are not quantized, by the end of their name."""
    assign: Assignment = Field({})
    """Other bits for some layers: shell-style pattern of names -> 4, 8 or skip. The last matching
    pattern applies. On the command line: "*.down_proj=8,*.v_proj=skip"."""
    calibration: int = Field(128, ge=1)
    """Size of the calibration set, in training histories."""
    item_table: Literal["int8", "int4"] | None = None
    """Quantization of the item table, with one scale per row; null keeps float32. The change of the
    ranking is recorded."""
    sensitivity: bool | Budget = False
    """Evaluate the ranking with one layer quantized at a time. With a budget, such as 1% of
    NDCG@10, also propose layers with more bits, as a recipe fragment."""

    def extras(self) -> dict[str, str]:
        """Return the extra library of the method: llm-compressor for GPTQ."""
        return {"llmcompressor": "quantize"} if self.method == "gptq" else {}

    @model_validator(mode="after")
    def _only_gptq_has_an_order(self) -> "QuantizeConfig":
        if self.method == "rtn" and self.act_order:
            raise ValueError("act_order needs method: gptq; rtn rounds each weight on its own")
        return self
