"""Base classes of the stage configs. No torch here: recipes are checked without it."""

import re
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    field_validator,
    model_validator,
)

OUTSIDE_KEY: dict[str, JsonValue] = {"key": False}
"""Marks a field that cannot change a stage's result and is not part of the step's key."""
IN_KEY_IF_SET: dict[str, JsonValue] = {"key": "unless default"}
"""Marks a field that came later and whose default changes no result: the step's key holds it only
if it has another value, so that the keys of earlier recipes stay the same."""
LARGEST = 2**32 - 1
"""Largest number in a config: the largest seed of a random generator, more than any size."""
SHOWN_DIGITS = 40
METRIC = re.compile(r"(hr|ndcg)@([1-9]\d*)|ndcg|mrr|ce|ce_calibrated")
CROSS_ENTROPIES = frozenset({"ce", "ce_calibrated"})
"""Metrics of the scores, not of the rank; nats."""
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGT]?B|)", re.IGNORECASE)
UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
BUDGET = re.compile(r"(\d+(?:\.\d+)?(?:e-?\d+)?)\s*(%?)")


TORCH = ("torch", "transformers", "numpy")
"""Libraries of every stage that computes with torch."""
TRAINING = (*TORCH, "accelerate")
"""Libraries of every stage that trains."""


class StageConfig(BaseModel):
    """Settings of a stage: frozen, no unknown keys, each field described by its docstring.

    Every number is finite and at most :data:`LARGEST`.
    """

    libraries: ClassVar[tuple[str, ...]] = ()
    """PyPI names of the libraries whose versions can change the stage's result.

    The step's key and the artefact's manifest record these versions.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*")
    @classmethod
    def _in_range(cls, value: Any) -> Any:
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, int | float) and abs(one) > LARGEST:
                raise ValueError(_too_large(one))
        return value

    def extras(self) -> dict[str, str]:
        """Additional modules that these settings need -> extra of slmc that installs them."""
        return {}


class Seeded(StageConfig):
    """Settings of a stage that draws random numbers."""

    seed: int = Field(17, ge=0)
    """Seed of every random draw of the stage."""


class OnDevice(StageConfig):
    """Settings of a stage that computes with torch in float32."""

    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", json_schema_extra=OUTSIDE_KEY)
    """Where to compute: auto, cpu, cuda or cuda:N."""


class Placed(OnDevice):
    """Settings of a stage that trains with torch."""

    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of matmuls in training; auto is bf16 if the hardware supports it."""


class Sampled(StageConfig):
    """Rank the target among sampled negatives (the protocol of the SLMRec paper)."""

    sampled: int = Field(999, ge=1)
    """Negatives per user, drawn once with the seed, the same for every model."""


class Protocol(StageConfig):
    """How targets are ranked. All steps and gates of a recipe share one protocol."""

    ranking: Literal["full"] | Sampled = "full"
    """The whole catalogue, or {sampled: N} negatives."""
    exclude_seen: bool | Literal["auto"] = "auto"
    """Leave the items of the user's history out of the ranking; auto does so if fewer than 1 % of
    the validation targets are repeats."""


class TrainConfig(Seeded, Placed, Protocol):
    """Settings of the training loop, the same for every stage that trains."""

    libraries: ClassVar[tuple[str, ...]] = TRAINING

    epochs: int = Field(10, ge=0)
    """Largest number of passes over the training sequences; early stopping ends training before
    (see patience)."""
    max_minutes: float | None = Field(None, gt=0)
    """Largest number of minutes of training; null for no limit. With a limit the result depends
    on the speed of the machine."""
    select_by: str = "ndcg"
    """Validation metric that chooses the best weights and decides early stopping: ndcg (without a
    cutoff, the least noisy), ndcg@K, hr@K, mrr or ce."""
    validation_users: int = Field(10_000, ge=1)
    """Largest number of validation users that are ranked; more users are sampled with the seed."""
    patience: int = Field(2, ge=1)
    """The learning rate starts to decay when the last ``patience`` validations are on average no
    better than the ``patience`` before them. There is one validation per epoch, up to 8 on large
    logs."""
    lr: float = Field(2e-4, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(0.1, ge=0)
    """AdamW weight decay of matrices; norms and biases have none."""
    beta2: float = Field(0.999, gt=0, lt=1)
    """AdamW's decay of the squared gradients; beta1 is 0.9."""
    warmup: int = Field(100, ge=0)
    """Optimizer steps of linear warm-up; then the rate is constant until it decays to 0."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient; larger gradients are clipped."""
    rows: int = Field(16, ge=1)
    """Batch size: packed rows per optimizer step; a row has as many items as ``history``."""
    targets: Literal["all", "last"] = "all"
    """Positions with a loss: all, or each user's last (as in the SLMRec paper)."""
    softmax: Literal["auto", "full", "sampled"] = Field("auto", json_schema_extra=IN_KEY_IF_SET)
    """Items that the loss sums over: all (full), or the targets of the batch and ``negatives``
    others, scaled so that the sum is unbiased (sampled). auto samples above 100,000 items."""
    negatives: int = Field(8192, ge=1, json_schema_extra=IN_KEY_IF_SET)
    """Items drawn at each step of a sampled softmax, shared by all positions; more are closer to
    the full softmax and cost more."""
    checkpoint_s: float = Field(60.0, ge=0, json_schema_extra=OUTSIDE_KEY)
    """Seconds between two checkpoints; a killed run resumes from the last one."""

    @model_validator(mode="after")
    def _known_metric(self) -> Self:
        check_select_by(self.select_by)
        return self


def check_select_by(name: str) -> str:
    """Return ``name`` if it is a metric by which a model can be chosen; else ``ValueError``."""
    check_metric(name)
    if name == "ce_calibrated":
        raise ValueError(
            "select_by: ce_calibrated needs a temperature, which is fitted after training; use "
            "a ranking metric or ce"
        )
    return name


def check_metric(name: str) -> str:
    """Return ``name`` if it is a metric; else raise ``ValueError`` that lists the metrics."""
    if METRIC.fullmatch(name) is None:
        raise ValueError(
            f"there is no metric {name!r}; known: hr@K, ndcg@K, ndcg, mrr, ce, ce_calibrated"
        )
    return name


def _too_large(value: object) -> str:
    shown = str(value)
    shown = shown if len(shown) <= SHOWN_DIGITS else f"{shown[:SHOWN_DIGITS]}…"
    return f"should be at most {LARGEST}, not {shown}"


def parse_budget(value: str | float) -> tuple[float, bool]:
    """Read ``3%`` as (0.03, relative) and ``0.01`` as (0.01, absolute)."""
    match = BUDGET.fullmatch(str(value).strip())
    if match is None:
        raise ValueError(f"{value!r} is neither a number nor a percentage such as 3%")
    number, percent = float(match[1]), bool(match[2])
    if number > LARGEST:
        raise ValueError(_too_large(value))
    return (number / 100 if percent else number), percent


def _checked_budget(value: str | float) -> str | float:
    parse_budget(value)
    return value


Budget = Annotated[str | float, BeforeValidator(_checked_budget)]
"""A share such as ``3%`` (relative) or a plain number (absolute), never negative."""


def parse_size(value: str | int) -> int:
    """Read ``4GB``, ``500 MB`` or a number of bytes; units are powers of 1,000."""
    match = SIZE.fullmatch(str(value).strip())
    if match is None:
        raise ValueError(f"{value!r} is not a size such as 4GB or 500MB")
    return int(float(match[1]) * UNITS[match[2].lower()])


def size_text(size: int) -> str:
    """Return a size as in ``1.3 GB``, ``52 MB``."""
    return f"{size / 1e9:.1f} GB" if size >= 10**9 else f"{size / 1e6:.3g} MB"


def _checked_size(value: str | int) -> str | int:
    parse_size(value)
    return value


Size = Annotated[str | int, BeforeValidator(_checked_size)]
"""A size in bytes with a unit, such as ``4GB``."""
