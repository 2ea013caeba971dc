"""Settings of the stages export and bench. No torch here: recipes are checked without it."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from slmc.config import IN_KEY_IF_SET, OUTSIDE_KEY, TORCH, Seeded, StageConfig

HALVES = ("bf16", "fp16")
"""16-bit float precisions, for GPUs."""
Format = Literal["onnx", "triton", "tensorrt"]


def _with_onnx(formats: tuple[Format, ...]) -> tuple[Format, ...]:
    """The formats in a fixed order, so that equal sets have equal keys; ONNX is always written."""
    every: tuple[Format, ...] = ("onnx", "triton", "tensorrt")
    return tuple(name for name in every if name == "onnx" or name in formats)


class ParityConfig(StageConfig):
    """How close the engine must be to its source model."""

    histories: int = Field(512, ge=1)
    """Real histories to compare; fewer if the dataset has fewer."""
    batch: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 32, 256)
    """Batch sizes; each is compared at length 1, at mixed lengths and at the maximum length."""
    max_error: float = Field(1e-3, gt=0)
    """Largest allowed difference of a score, divided by the spread of the scores."""
    min_overlap: float = Field(0.999, gt=0, le=1)
    """Smallest allowed mean overlap of the top lists; tied items count as equal."""


class TritonConfig(StageConfig):
    """How Triton Inference Server runs the engine."""

    max_batch: int = Field(64, ge=1)
    """Largest batch of histories."""
    delay_us: int = Field(500, ge=0)
    """Microseconds that a request waits for others to form a batch."""
    instances: int = Field(1, ge=1)
    """Parallel instances of each variant."""
    threads: int = Field(1, ge=1)
    """CPU threads of each instance."""


class TensorrtConfig(StageConfig):
    """How the TensorRT plan is built, from the padded layout and standard operators."""

    flavour: Literal["tensorrt", "tensorrt-rtx"] = "tensorrt"
    """tensorrt: every GPU from Turing on, built on the GPU that runs it; tensorrt-rtx: GeForce
    and RTX from Ampere on (not H100, H200, B200), built anywhere. Neither runs the other's plan."""
    precision: Literal["bf16", "fp16", "fp32", "int8", "fp8", "int4"] | None = None
    """Precision of the decoder's linear layers. int8: static activation scales, one per layer, from
    training histories; fp8: weights in 8-bit floats, for GPUs from Ada on; int4: the codes of a
    model that was quantized to 4 bits; null: int4 for such a model, else bf16."""
    batch: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 64)
    """Largest batch of each profile; there is one profile per pair of a batch and a length."""
    length: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Longest histories of further profiles; the model's full history always has profiles."""
    memory_mb: int = Field(1024, ge=1)
    """GPU workspace memory of a kernel, in MiB."""
    calibration: int = Field(256, ge=1)
    """Training histories that calibrate the activation scales of int8."""


class ExportConfig(Seeded):
    """Turn a model into an ONNX engine and check that it ranks the same."""

    libraries: ClassVar[tuple[str, ...]] = (*TORCH, "onnx", "onnxscript", "onnxruntime")

    formats: Annotated[tuple[Format, ...], AfterValidator(_with_onnx)] = ("onnx",)
    """onnx is always written; triton: a model repository for Triton Inference Server; tensorrt: a
    plan for NVIDIA GPUs."""
    layout: Literal["packed", "padded"] = "packed"
    """packed: no padding is computed (ONNX Runtime); padded: standard operators only."""
    precision: Literal["fp32", "int8", "int8-accurate", "int4", "bf16", "fp16"] | None = None
    """null: the model's precision. fp32; int8: int8 weights and dynamic int8 activations, one scale
    per token; int8-accurate: 8-bit weights in blocks; int4: the codes of a model that was quantized
    to 4 bits; bf16, fp16: 16-bit weights, for GPUs (bf16 runs only there)."""
    table: Literal["fp32", "int8+rescore", "int4+rescore"] | None = None
    """How a float item table is scored. fp32: in float32; int8+rescore, int4+rescore: all items
    with an 8-bit or 4-bit copy, then the best again in float32 (for large catalogues; 4 bits are
    faster for one user, 8 bits for a batch); null: fp32 or int8+rescore, by size. A quantized table
    stays as it is."""
    top_k: int = Field(100, ge=1)
    """Items that the engine returns for a history."""
    outputs: tuple[Literal["topk", "scores", "user_vectors"], ...] = ("topk",)
    """Outputs of the engine. topk: the best items, always included; scores: of the whole catalogue;
    user_vectors: for your own vector index, with the item vectors as a file."""
    items: str | None = Field(None, json_schema_extra=OUTSIDE_KEY)
    """File of items that are newer than the model, which get vectors without training: those of its
    column vector; or the mean of those of its neighbours (lists of known ids; optional: weights);
    else from texts, with the columns of data.items, if the item table came from texts."""
    cooccurrence: str | None = Field(None, json_schema_extra=OUTSIDE_KEY)
    """Log of interactions, with the columns of data: its new items get vectors from the items that
    users took next to them. With items: only the items of that file."""
    replace: bool = Field(False, json_schema_extra=IN_KEY_IF_SET)
    """Whether items of that file that the model already has get new vectors; else they are
    skipped."""
    index: Literal["faiss", "hnsw"] | None = Field(None, json_schema_extra=IN_KEY_IF_SET)
    """Index of the item vectors for approximate search, beside the exact engine. faiss: inverted
    lists (small, quick to build); hnsw: a graph of neighbours. Withheld unless it is
    1.1 times as fast as exact search."""
    index_recall: float = Field(0.95, gt=0, lt=1, json_schema_extra=IN_KEY_IF_SET)
    """Share of the 10 best items that the index must find; of top_k items if these are fewer."""
    opset: int = Field(21, ge=18, le=23)
    """ONNX opset."""
    parity: ParityConfig = ParityConfig()
    """The comparison with the model; an engine that fails it is withheld."""
    triton: TritonConfig = TritonConfig()
    """Settings of the format triton."""
    tensorrt: TensorrtConfig = TensorrtConfig()
    """Settings of the format tensorrt."""

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.replace and self.items is None:
            raise ValueError("replace: needs a file of items that says which; set items")
        if (
            self.index is None
            and self.index_recall != type(self).model_fields["index_recall"].default
        ):
            raise ValueError("index_recall: there is no index; set index")
        return self

    def extras(self) -> dict[str, str]:
        """The requested flavour of TensorRT, and the library of the index."""
        modules = {} if self.index is None else {"faiss": "faiss"}
        if "tensorrt" in self.formats:
            modules[self.tensorrt.flavour.replace("-", "_")] = self.tensorrt.flavour
        return modules


class BenchConfig(Seeded):
    """Time an engine on real histories, interleaved with a model in PyTorch."""

    libraries: ClassVar[tuple[str, ...]] = (*TORCH, "onnxruntime")

    batch: tuple[int, ...] = (1, 32)
    """Batch sizes."""
    rounds: int = Field(20, ge=3)
    """Timed rounds of each batch size, engine and baseline interleaved."""
    warmup: int = Field(3, ge=0)
    """Untimed rounds before them."""
    threads: int | None = Field(None, ge=1)
    """Cores that both may use; null: all cores of the machine. A short probe chooses how many
    parallel sessions of the engine share them, for latency and for throughput."""
    spinning: bool = False
    """Whether engine threads spin while they compute an answer: lower latency on dedicated cores,
    much higher latency on shared ones."""
    price_per_hour: float | None = Field(None, gt=0, json_schema_extra=OUTSIDE_KEY)
    """Price of an hour of these cores, in any currency: the tables then show what a million
    requests of one history cost at the measured throughput."""
