"""What the configs of all stages share. No torch here: recipes are checked without it."""

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
"""Marks a field that does not change a stage's result: it is no part of the step's key."""
LARGEST = 2**32 - 1
"""Of any number in a config: what every generator takes as a seed, and more than any size."""
SHOWN_DIGITS = 40
METRIC = re.compile(r"(hr|ndcg)@([1-9]\d*)|ndcg|mrr|ce|ce_calibrated")
CROSS_ENTROPIES = frozenset({"ce", "ce_calibrated"})
"""Metrics of the scores, not of the rank; nats."""
BUDGET = re.compile(r"(\d+(?:\.\d+)?(?:e-?\d+)?)\s*(%?)")


TORCH = ("torch", "transformers", "numpy")
"""Libraries of every stage that computes with torch."""
TRAINING = (*TORCH, "accelerate")
"""Libraries of every stage that trains."""


class StageConfig(BaseModel):
    """A stage's settings: frozen, every key known, every field described by its docstring.

    Every number is finite, and no larger than :data:`LARGEST`.
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
        """Modules that these settings need beside the stage's own -> extra that brings them."""
        return {}


class Seeded(StageConfig):
    """Settings of a stage that draws random numbers."""

    seed: int = Field(17, ge=0)
    """Seed of every random draw of the stage."""


class OnDevice(StageConfig):
    """Settings of a stage that computes with torch, always in float32."""

    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", json_schema_extra=OUTSIDE_KEY)
    """Where to compute: auto, cpu, cuda or cuda:N."""


class Placed(OnDevice):
    """Settings of a stage that trains with torch."""

    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the matrix products in training; auto is bf16 where the hardware has it."""


class Sampled(StageConfig):
    """Rank the target among sampled negatives (the protocol of the SLMRec paper)."""

    sampled: int = Field(999, ge=1)
    """Negatives a user, drawn once by the seed, the same for every model."""


class Protocol(StageConfig):
    """How targets are ranked. A recipe has one, which all its steps and gates share."""

    ranking: Literal["full"] | Sampled = "full"
    """The whole catalogue, or {sampled: N} negatives."""
    exclude_seen: bool | Literal["auto"] = "auto"
    """Leave the items of the user's history out of the ranking; auto does so where fewer than
    1 % of the validation targets are repeats."""


class TrainConfig(Seeded, Placed, Protocol):
    """Settings of the training loop, the same for every stage that trains."""

    libraries: ClassVar[tuple[str, ...]] = TRAINING

    epochs: int = Field(10, ge=0)
    """Passes over the training sequences, at most: training ends once ranking has stopped
    improving (see patience)."""
    max_minutes: float | None = Field(None, gt=0)
    """Minutes of training, at most; null for no bound. Where it ends a run depends on the
    machine's speed."""
    select_by: str = "ndcg"
    """Metric of the validation users, under the recipe's protocol, by which weights are chosen
    and training ends: ndcg (without a cutoff, the least noisy), ndcg@K, hr@K, mrr or ce."""
    validation_users: int = Field(10_000, ge=1)
    """Validation users that are ranked, at most: a sample by the seed."""
    patience: int = Field(2, ge=1)
    """The rate decays once the last so many validations are on average no better than as many
    before them. There is one each epoch, and up to 8 on large logs."""
    lr: float = Field(2e-4, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(0.1, ge=0)
    """AdamW weight decay of matrices; norms and biases have none."""
    beta2: float = Field(0.999, gt=0, lt=1)
    """AdamW's decay of the squared gradients; beta1 is 0.9."""
    warmup: int = Field(100, ge=0)
    """Optimizer steps of linear warm-up; then the rate is constant until it decays to 0."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient."""
    rows: int = Field(16, ge=1)
    """Packed rows of one optimizer step; a row is as long as the history."""
    targets: Literal["all", "last"] = "all"
    """Positions that are trained: every one, or each user's last (as the SLMRec paper)."""
    checkpoint_s: float = Field(60.0, ge=0, json_schema_extra=OUTSIDE_KEY)
    """Seconds between two checkpoints; a killed run goes on from the last one."""

    @model_validator(mode="after")
    def _known_metric(self) -> Self:
        check_metric(self.select_by)
        if self.select_by == "ce_calibrated":
            raise ValueError(
                "select_by: ce_calibrated needs a temperature, which is found when training has "
                "ended; choose by a ranking metric, or by ce"
            )
        return self


def check_metric(name: str) -> str:
    """Return ``name`` if it is a metric's; raises ``ValueError`` naming what there is."""
    if METRIC.fullmatch(name) is None:
        raise ValueError(
            f"there is no metric {name!r}; there are hr@K, ndcg@K, ndcg, mrr, ce, ce_calibrated"
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
