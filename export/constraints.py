"""Whether a model can be exported with some settings; needs neither torch nor weights.

``slmc recipe check`` and ``slmc run`` check the models that the steps will produce before the first
step; the export stage checks the model that it exports.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from slmc.errors import UsageError
from slmc.export.config import HALVES, ExportConfig, TensorrtConfig

BLOCKS = (16, 32, 64, 128, 256)
"""Group sizes of MatMulNBits, ONNX Runtime's matmul with block-quantized weights."""
TENSORRT_BLOCKS = (16, 32, 64, 128)
"""Group sizes of 4-bit codes in TensorRT."""
LARGEST_K = 3840
"""Largest k of TensorRT's TopK; a larger one fails only during the build."""
BLOCKS_FROM = 21
"""The first opset whose DequantizeLinear supports blocks and 4-bit codes."""
STEADY_TOKENS = 241
"""Longest history with prompt, in tokens, whose int8 attention is summed in one block at any
position in a batch: a matmul splits sums at 256, and a window of queries adds up to 15 keys."""


@dataclass(frozen=True)
class Source:
    """Properties of the model that decide whether it can be exported."""

    bits: frozenset[int] = frozenset()
    """Widths of the codes of its linear layers; empty for a float model."""
    group_sizes: frozenset[int] = frozenset()
    """Group sizes of these codes: inputs that share a scale."""
    zero_points: bool = False
    """Whether any of the 4-bit codes have zero points."""
    table_bits: int | None = None
    """Width of the codes of its item table; None for a float table."""
    on_llm: bool = True
    """Whether it is a recommender on an LLM; only these can be quantized."""
    history: int | None = None
    """Longest history, in items."""
    prompt: int = 0
    """Tokens of the prompt around the history."""

    @property
    def precision(self) -> str:
        """The precision of its narrowest codes; ``fp32`` without codes."""
        if not self.bits:
            return "fp32"
        return "int4" if min(self.bits) == 4 else "int8-accurate"


class Refusal(NamedTuple):
    """A setting with which a model cannot be exported."""

    key: str
    """Key in the export's config, such as ``tensorrt.precision``."""
    value: object
    """The value that is set, or that follows if none is set."""
    why: str
    remedy: str

    def error(self) -> UsageError:
        """The refusal as an error to raise."""
        return UsageError(f"{self.key} {self.value}: {self.why}.", self.remedy)


def refusals(config: ExportConfig, source: Source, name: str = "the model") -> list[Refusal]:
    """Return every reason why an export would fail; empty if there is none.

    Args:
        config: Settings of the export.
        source: The model, as far as it is known.
        name: Name of the model in messages.
    """
    reasons = [
        *_precision_refusals(config, source, name),
        *_layout_refusals(config, source, name),
    ]
    if "tensorrt" in config.formats:
        reasons += _tensorrt_refusals(config, source, name)
    return reasons


def no_gain(precision: str, source: Source) -> str | None:
    """Return a warning if a precision brings less on CPUs than users expect, else None."""
    tokens = (source.history or 0) + source.prompt
    if precision == "int8" and tokens > STEADY_TOKENS:
        return (
            f"with more than {STEADY_TOKENS} tokens of history and prompt, attention is summed in "
            "parts: the last bits of a user's scores can depend on the rest of the batch."
        )
    if precision == "int4":
        return (
            "the engine gets smaller but not faster on batches: 4-bit weights are multiplied with "
            "float32 activations, at about the speed of fp32. For speed, export the float model as "
            "int8."
        )
    if precision in HALVES:
        return (
            "16 bits are for GPUs; on a CPU the engine is smaller but slower than fp32. For CPUs, "
            "export it as int8."
        )
    if precision == "fp32" and source.bits:
        return (
            "codes are stored as floats: the engine is as large and as slow as before quantization."
        )
    return None


def tensorrt_precision(settings: TensorrtConfig, bits: Collection[int]) -> str:
    """The precision of a plan: as set, else int4 for a model with 4-bit codes, else bf16."""
    return settings.precision or ("int4" if 4 in bits else "bf16")


def _precision_refusals(config: ExportConfig, source: Source, name: str) -> Iterator[Refusal]:
    precision = config.precision or source.precision
    if precision == "int4" and 4 not in source.bits:
        yield Refusal(
            "precision",
            precision,
            f"{name} has no 4-bit codes",
            f"{'Quantize it to 4 bits first, or export' if source.on_llm else 'Export'} it as "
            "int8 or fp32.",
        )
    elif precision.startswith("int8") and source.bits and source.precision != precision:
        yield Refusal(
            "precision",
            precision,
            _quantized_twice(source, name),
            "Leave precision out, or export the float model.",
        )
    standard = config.layout == "padded" or not source.group_sizes <= set(BLOCKS)
    if precision == "int4" and standard and config.opset < BLOCKS_FROM:
        yield Refusal(
            "precision",
            precision,
            f"standard operators for 4-bit codes need opset {BLOCKS_FROM}, not {config.opset}",
            f"Raise opset to {BLOCKS_FROM}.",
        )


def _quantized_twice(source: Source, name: str) -> str:
    return (
        f"{name} is already quantized ({source.precision}); quantizing its codes again makes the "
        "ranking worse"
    )


def _layout_refusals(config: ExportConfig, source: Source, name: str) -> Iterator[Refusal]:
    if source.table_bits is not None and config.table is not None:
        yield Refusal(
            "table",
            config.table,
            f"the item table of {name} is already quantized",
            "Leave table out, or export the float model.",
        )
    elif config.table not in (None, "fp32") and config.layout == "padded":
        yield Refusal(
            "table",
            config.table,
            "no standard operator multiplies with a quantized item table",
            "Use layout packed, or table fp32.",
        )
    if source.table_bits == 4 and config.layout == "padded" and config.opset < BLOCKS_FROM:
        yield Refusal(
            "opset",
            config.opset,
            f"standard operators for the 4-bit item table of {name} need {BLOCKS_FROM}",
            f"Raise opset to {BLOCKS_FROM}.",
        )


def _tensorrt_refusals(config: ExportConfig, source: Source, name: str) -> Iterator[Refusal]:
    settings = config.tensorrt
    # A smaller catalogue reduces top_k to its size; then the largest k gives the same engine.
    if config.top_k > LARGEST_K:
        yield Refusal(
            "top_k",
            config.top_k,
            f"TensorRT's TopK returns at most {LARGEST_K} items",
            f"Use at most {LARGEST_K}.",
        )
    longest = max(settings.length, default=0)
    if source.history is not None and longest > source.history:
        yield Refusal(
            "tensorrt.length",
            longest,
            f"longer than the history of {name}, {source.history}",
            f"Use less than {source.history}; the full history always has a profile.",
        )
    precision = tensorrt_precision(settings, source.bits)
    if precision == "int4":
        yield from _tensorrt_int4_refusals(source, name)
    elif precision in ("int8", "fp8") and source.bits:
        yield Refusal(
            "tensorrt.precision",
            precision,
            _quantized_twice(source, name),
            "Use bf16, or export the float model.",
        )


def _tensorrt_int4_refusals(source: Source, name: str) -> Iterator[Refusal]:
    key = "tensorrt.precision"
    if 4 not in source.bits:
        why = f"{name} has no 4-bit codes"
        remedy = "Quantize it to 4 bits first, or use bf16." if source.on_llm else "Use bf16."
        yield Refusal(key, "int4", why, remedy)
        return
    if source.zero_points:
        why = f"{name} has zero points; TensorRT's 4-bit DequantizeLinear does not support them"
        yield Refusal(key, "int4", why, "Quantize it symmetrically, or use bf16.")
    if misfits := source.group_sizes - set(TENSORRT_BLOCKS):
        sizes = ", ".join(map(str, TENSORRT_BLOCKS))
        why = (
            f"{name} has group size {min(misfits)}; TensorRT's 4-bit DequantizeLinear supports "
            f"{sizes}"
        )
        yield Refusal(key, "int4", why, "Quantize with one of these group sizes, or use bf16.")
