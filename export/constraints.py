"""Whether a model can be exported as asked, told from how it is stored; no torch, no weights.

A recipe is asked before its first step, of the models that its steps will make; the stage is
asked of the model that it is given.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from slmc.errors import UsageError
from slmc.export.config import HALVES, ExportConfig

BLOCKS = (16, 32, 64, 128, 256)
"""Inputs that may share a scale in MatMulNBits, ONNX Runtime's own product with blocks of codes."""
TENSORRT_BLOCKS = (16, 32, 64, 128)
"""Inputs that may share a scale of 4-bit codes in TensorRT."""
LARGEST_K = 3840
"""Items that TensorRT's TopK gives at most; more fails only in the build."""
BLOCKS_FROM = 21
"""The first opset whose DequantizeLinear takes blocks, and 4-bit codes."""
STEADY_TOKENS = 241
"""Tokens of a history and its prompt whose attention int8 adds up in one go, wherever they stand in
a batch: a product cuts sums at 256, and a window of queries has 15 keys besides."""


@dataclass(frozen=True)
class Source:
    """What has to be known of the model that an engine is made from."""

    bits: frozenset[int] = frozenset()
    """Widths of the codes of its linear layers; a float model has none."""
    group_sizes: frozenset[int] = frozenset()
    """Inputs that share a scale of these codes."""
    zero_points: bool = False
    """Whether 4-bit codes among them have zero points."""
    table_bits: int | None = None
    """Width of the codes of its item table, if that is quantized."""
    on_llm: bool = True
    """Whether it is a recommender on an LLM: only those can be quantized."""
    history: int | None = None
    """Items that it sees of a history."""
    prompt: int = 0
    """Tokens around them."""

    @property
    def precision(self) -> str:
        """The precision that it is in: that of its narrowest codes, ``fp32`` without any."""
        if not self.bits:
            return "fp32"
        return "int4" if min(self.bits) == 4 else "int8-accurate"


class Refusal(NamedTuple):
    """A setting that a model cannot be exported with."""

    key: str
    """Of the export's config, as in ``tensorrt.precision``."""
    value: object
    """What is asked for there, or follows where nothing is."""
    why: str
    remedy: str

    def error(self) -> UsageError:
        """The same as an error."""
        return UsageError(f"{self.key} {self.value}: {self.why}.", self.remedy)


def refusals(config: ExportConfig, source: Source, name: str = "the model") -> list[Refusal]:
    """Everything that speaks against an export; nothing if it can be tried.

    Args:
        config: What is asked for.
        source: The model, as far as it is known.
        name: What messages call it.
    """
    found = [*_of_precision(config, source, name), *_of_form(config, source, name)]
    if "tensorrt" in config.formats:
        found += _of_tensorrt(config, source, name)
    return found


def no_gain(precision: str, source: Source) -> str | None:
    """What a precision does not bring in ONNX Runtime on CPUs, if it is not what one expects."""
    tokens = (source.history or 0) + source.prompt
    if precision == "int8" and tokens > STEADY_TOKENS:
        return (
            f"histories and prompt of more than {STEADY_TOKENS} tokens are added up in parts, so "
            "the last bits of a user's scores can hang on who else is asked about."
        )
    if precision == "int4":
        return (
            "the engine gets smaller, and answers batches no faster: 4-bit blocks are multiplied "
            "with float32 tokens, at about the speed of fp32. For speed export the float model as "
            "int8."
        )
    if precision in HALVES:
        return (
            "16 bits are for GPUs: on a processor the engine gets smaller, and slower than fp32. "
            "There export it as int8."
        )
    if precision == "fp32" and source.bits:
        return "codes are stored as floats: as large and as slow as before quantizing."
    return None


def _of_precision(config: ExportConfig, source: Source, name: str) -> Iterator[Refusal]:
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
            _rounds_again(source, name),
            "Leave precision out, or export the model that it was quantized from.",
        )
    standard = config.layout == "padded" or not source.group_sizes <= set(BLOCKS)
    if precision == "int4" and standard and config.opset < BLOCKS_FROM:
        yield Refusal(
            "precision",
            precision,
            f"standard operators for 4-bit codes need opset {BLOCKS_FROM}, not {config.opset}",
            f"Raise opset to {BLOCKS_FROM}.",
        )


def _rounds_again(source: Source, name: str) -> str:
    kept = f"{name} is quantized already ({source.precision})"
    return f"{kept}, and rounding its codes again loses ranking"


def _of_form(config: ExportConfig, source: Source, name: str) -> Iterator[Refusal]:
    if source.table_bits is not None and config.table is not None:
        yield Refusal(
            "table",
            config.table,
            f"the item table of {name} is quantized already",
            "Leave table out, or export the model that it was quantized from.",
        )
    elif config.table not in (None, "fp32") and config.layout == "padded":
        yield Refusal(
            "table",
            config.table,
            "standard operators have no product with rows of codes",
            "Take layout packed, or table fp32.",
        )
    if source.table_bits == 4 and config.layout == "padded" and config.opset < BLOCKS_FROM:
        yield Refusal(
            "opset",
            config.opset,
            f"standard operators for the 4-bit item table of {name} need {BLOCKS_FROM}",
            f"Raise opset to {BLOCKS_FROM}.",
        )


def _of_tensorrt(config: ExportConfig, source: Source, name: str) -> Iterator[Refusal]:
    settings = config.tensorrt
    # A smaller catalogue brings top_k down to its size; then the largest k gives the same engine.
    if config.top_k > LARGEST_K:
        yield Refusal(
            "top_k",
            config.top_k,
            f"more than the {LARGEST_K} items that TensorRT's TopK gives",
            f"Take {LARGEST_K} or less.",
        )
    longest = max(settings.length, default=0)
    if source.history is not None and longest > source.history:
        yield Refusal(
            "tensorrt.length",
            longest,
            f"more than the history of {source.history} that {name} sees",
            f"Take less than {source.history}; that itself always has a profile.",
        )
    precision = settings.precision or ("int4" if 4 in source.bits else "bf16")
    if precision == "int4":
        yield from _of_tensorrt_codes(source, name)
    elif precision in ("int8", "fp8") and source.bits:
        yield Refusal(
            "tensorrt.precision",
            precision,
            _rounds_again(source, name),
            "Take bf16, or export the model that it was quantized from.",
        )


def _of_tensorrt_codes(source: Source, name: str) -> Iterator[Refusal]:
    key = "tensorrt.precision"
    if 4 not in source.bits:
        why = f"{name} has no 4-bit codes"
        remedy = "Quantize it to 4 bits first, or take bf16." if source.on_llm else "Take bf16."
        yield Refusal(key, "int4", why, remedy)
        return
    if source.zero_points:
        why = f"{name} has zero points, which TensorRT's 4-bit DequantizeLinear has not"
        yield Refusal(key, "int4", why, "Quantize it symmetrically, or take bf16.")
    if misfits := source.group_sizes - set(TENSORRT_BLOCKS):
        sizes = ", ".join(map(str, TENSORRT_BLOCKS))
        why = (
            f"{name} has blocks of {min(misfits)} inputs; TensorRT's 4-bit DequantizeLinear "
            f"takes {sizes}"
        )
        yield Refusal(key, "int4", why, "Quantize with such a group_size, or take bf16.")
