"""What can be set for export and bench. No torch here: recipes are checked without it."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from slmc.config import TORCH, Seeded, StageConfig

HALVES = ("bf16", "fp16")
"""Precisions of 16-bit floats, which are for GPUs."""
Format = Literal["onnx", "triton", "tensorrt"]


def _with_onnx(formats: tuple[Format, ...]) -> tuple[Format, ...]:
    """The formats in one order, so that equal sets have equal keys; ONNX is always written."""
    every: tuple[Format, ...] = ("onnx", "triton", "tensorrt")
    return tuple(name for name in every if name == "onnx" or name in formats)


class ParityConfig(StageConfig):
    """How close the engine has to be to the model it was made from."""

    histories: int = Field(512, ge=1)
    """Real histories that are compared, where the dataset has so many."""
    batch: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 32, 256)
    """Batch sizes; lengths 1, mixed and the maximum are tried with each."""
    max_error: float = Field(1e-3, gt=0)
    """Largest difference of a score, relative to the spread of the scores."""
    min_overlap: float = Field(0.999, gt=0, le=1)
    """Smallest mean overlap of the top lists, tied items counted as equal."""


class TritonConfig(StageConfig):
    """How Triton Inference Server runs the engine."""

    max_batch: int = Field(64, ge=1)
    """Histories that Triton answers at once, at most."""
    delay_us: int = Field(500, ge=0)
    """Microseconds that a request waits for others that can be answered with it."""
    instances: int = Field(1, ge=1)
    """Copies of each variant that answer side by side."""
    threads: int = Field(1, ge=1)
    """Threads of each copy on the processor."""


class TensorrtConfig(StageConfig):
    """What TensorRT builds, from the padded layout and standard operators."""

    flavour: Literal["tensorrt", "tensorrt-rtx"] = "tensorrt"
    """tensorrt: every GPU from Turing on, built on the GPU that runs it; tensorrt-rtx: GeForce
    and RTX from Ampere on (not H100, H200, B200), built anywhere. Neither runs the other's plan."""
    precision: Literal["bf16", "fp16", "fp32", "int8", "fp8", "int4"] | None = None
    """Of the decoder's products. int8: one scale a product, from training histories; fp8: weights
    in 8-bit floats, for GPUs from Ada on; int4: the codes of a model that was quantized to 4;
    null: int4 for such a model, else bf16."""
    batch: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 64)
    """Largest batch of each profile: one for every pair of a batch and a length."""
    length: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Longest histories of further profiles, beside those of the model's own length."""
    memory_mb: int = Field(1024, ge=1)
    """GPU memory that a kernel may take to work in, in MiB."""
    calibration: int = Field(256, ge=1)
    """Training histories that the scales of int8 are set from."""


class ExportConfig(Seeded):
    """Turn a model into an ONNX engine and prove that it ranks the same."""

    libraries: ClassVar[tuple[str, ...]] = (*TORCH, "onnx", "onnxscript", "onnxruntime")

    formats: Annotated[tuple[Format, ...], AfterValidator(_with_onnx)] = ("onnx",)
    """onnx is always written; triton: a model repository for Triton Inference Server; tensorrt: a
    plan for NVIDIA GPUs."""
    layout: Literal["packed", "padded"] = "packed"
    """packed: no padding is computed (ONNX Runtime); padded: standard operators only."""
    precision: Literal["fp32", "int8", "int8-accurate", "int4", "bf16", "fp16"] | None = None
    """null: the model's own. fp32; int8: weights and tokens in 8 bits, a scale a token;
    int8-accurate: weights in 8-bit blocks; int4: the codes of a model that was quantized to 4;
    bf16, fp16: weights in 16 bits, for GPUs (bf16 runs nowhere else)."""
    table: Literal["fp32", "int8+rescore", "int4+rescore"] | None = None
    """Float item table. fp32: multiplied as it is; int8+rescore, int4+rescore: all items by a copy
    in 8 or 4 bits, the best again in float32 (large catalogues; 4 bits answer one user sooner, 8
    bits a batch); null: fp32 or int8+rescore, by its size. Codes stay what they are."""
    top_k: int = Field(100, ge=1)
    """Items that the engine returns for a history."""
    outputs: tuple[Literal["topk", "scores", "user_vectors"], ...] = ("topk",)
    """What the engine gives beside the best items, which it always gives: scores of the whole
    catalogue; user_vectors, with the item vectors as a file, for an index of your own."""
    opset: int = Field(21, ge=18, le=23)
    """ONNX opset."""
    parity: ParityConfig = ParityConfig()
    """The check against the model; an engine that fails it is withheld."""
    triton: TritonConfig = TritonConfig()
    """Settings of the format triton."""
    tensorrt: TensorrtConfig = TensorrtConfig()
    """Settings of the format tensorrt."""

    def extras(self) -> dict[str, str]:
        """The TensorRT that is asked for."""
        if "tensorrt" not in self.formats:
            return {}
        return {self.tensorrt.flavour.replace("-", "_"): self.tensorrt.flavour}


class BenchConfig(Seeded):
    """Time an engine on real histories, side by side with a model in PyTorch."""

    libraries: ClassVar[tuple[str, ...]] = (*TORCH, "onnxruntime")

    batch: tuple[int, ...] = (1, 32)
    """Batch sizes."""
    rounds: int = Field(20, ge=3)
    """Timed rounds of each batch size, engine and baseline in turn."""
    warmup: int = Field(3, ge=0)
    """Untimed rounds before them."""
    threads: int | None = Field(None, ge=1)
    """Cores that both may use; null takes the machine's. A short probe chooses how many sessions
    of the engine share them, for latency and for throughput."""
    spinning: bool = False
    """Whether threads of the engine spin while they compute an answer: sooner on cores that nobody
    shares, far later on others."""
