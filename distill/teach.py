"""Train an LLM to rank a catalogue (E4SRec, arXiv 2312.02443): the teacher of the distillation."""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from slmc.artefact import Artefact, draft
from slmc.data.dataset import Dataset
from slmc.distill import existing, must_beat
from slmc.distill.config import TeachConfig
from slmc.distill.student import (
    add_adapters,
    fresh,
    merge_adapters,
    origin_of,
    parameter_groups,
)
from slmc.errors import UsageError
from slmc.evaluation.scorers import VectorScorer
from slmc.model import backbone, device, text_map
from slmc.model.device import Placement
from slmc.model.loading import load_model, place
from slmc.model.origin import Origin
from slmc.model.recommender import SequentialRecommender
from slmc.model.saving import seal_model
from slmc.training.loop import train
from slmc.training.next_item import NextItem, decay_of, training_rows, validation
from slmc.training.softmax import Softmax
from slmc.training.text_table import TextTable
from slmc.training.types import Outcome, TrainSetup

log = logging.getLogger("slmc.teach")


def teach(config: TeachConfig, inputs: dict[str, Artefact], out: Path) -> Artefact:
    """Train the first layers of an LLM as a recommender, and compare it with the baselines.

    The comparison is stored in the artefact; :func:`slmc.distill.must_beat.check` acts on it.

    A backbone that is already a recommender (a directory with its ``items.parquet``) keeps its
    weights; with ``epochs: 0`` it is not trained.

    Raises:
        UsageError: The backbone is unsuitable.
        BrokenRunError: Training diverged.
    """
    data = Dataset.open(inputs["data"])
    placement = device.choose(config.device, config.dtype)
    with draft(out) as work:
        torch.manual_seed(config.seed)
        start = _untrained(config, inputs, data, placement)
        model, texts = start.model, start.texts
        outcome = _train(config, start, data, placement, work.resume, inputs.get("like"))
        if texts is not None:
            texts.fold(model, work.path)
        comparison = {}
        if config.must_beat is not None:
            comparison = must_beat.compare(
                config.must_beat,
                VectorScorer.of(model.eval()),
                inputs["baselines"],
                data,
                config.seed,
            )
        return seal_model(
            work,
            model,
            stage="teach",
            config=config,
            inputs=inputs,
            numbers=asdict(outcome)
            | {"must_beat": comparison}
            | (texts.numbers if texts is not None else {}),
            device=placement.device.type,
            table_from=start.table_from,
        )


@dataclass(frozen=True)
class _Start:
    """A teacher before training."""

    model: SequentialRecommender
    origin: Origin
    """The weights that it must start from."""
    texts: TextTable | None = None
    """The item table from texts that is trained along."""
    table_from: Artefact | None = None
    """The model whose item table it uses."""


def _untrained(
    config: TeachConfig, inputs: dict[str, Artefact], data: Dataset, placement: Placement
) -> _Start:
    directory = Path(config.backbone)
    if existing.is_recommender(directory):
        existing.refuse_texts(config)
        model = existing.read(directory, data)
        # Its item table is reordered to this dataset's vocabulary.
        return _Start(model, Origin.of_files(directory, excluded="item_embeddings."))
    if config.epochs == 0:
        raise UsageError(
            f"epochs: 0 trains nothing, but {config.backbone} is a plain LLM "
            "without trained projections.",
            "Set epochs to at least 1, or name the directory of a trained recommender.",
        )
    llm = backbone.load(config.backbone, revision=config.revision, layers=config.layers)
    if config.init == "random":
        llm = llm.randomised()
    texts = None
    if config.items_from_texts:
        name, revision = config.text_encoder
        texts = TextTable.of(config, name, revision, config.item_dim, inputs["data"], placement)
    items = _items(config, inputs["sasrec"], data) if texts is None else texts.start
    prompt = config.prompt
    prefix = llm.prompt(prompt.prefix) if prompt else None
    suffix = llm.prompt(prompt.suffix) if prompt else None
    model = fresh(llm, items, history=data.history, prefix=prefix, suffix=suffix)
    model.item_embeddings.requires_grad_(not config.freeze_items)
    table_from = inputs["sasrec"] if config.item_embeddings == "sasrec" else None
    return _Start(model, origin_of(llm, items, (prefix, suffix)), texts, table_from)


def _items(config: TeachConfig, sasrec: Artefact, data: Dataset) -> Tensor:
    """Return the item table before training: that of SASRec, or a random one."""
    if config.item_embeddings == "sasrec":
        return load_model(sasrec).item_vectors().detach()
    items = torch.randn(data.num_items + 1, config.item_dim) * 0.02
    items[0] = 0
    return items


def _train(
    config: TeachConfig,
    start: _Start,
    data: Dataset,
    placement: Placement,
    resume: Path,
    like: Artefact | None,
) -> Outcome:
    model = start.model
    if config.epochs == 0:
        place(model, placement.device)
        return Outcome.untrained(config.select_by)
    model.set_dropout(config.dropout, config.residual_dropout, config.attention_dropout)
    if config.tune == "lora":
        add_adapters(model, config.lora)
    start.origin.check(model)
    if start.texts is not None:
        start.texts.put_into(model)
    prompt = (model.config.prefix_length, model.config.suffix_length)
    name = "teach" if config.init == "backbone" else "teach from random weights"
    from_texts = start.texts is not None or text_map.has_map(start.table_from)
    softmax = Softmax.of(config, data.counts, name, from_texts=from_texts)
    outcome = train(
        NextItem(model, softmax),
        parameter_groups(model, lr=config.lr, projection_lr=config.projection_lr),
        TrainSetup(
            config=config,
            epochs=training_rows(config, data, prompt=prompt),
            validation=validation(model, data, config, placement, softmax, name),
            name=name,
            placement=placement,
            num_items=data.num_items,
            resume=resume,
            like=decay_of(like),
        ),
    )
    if config.tune == "lora":
        merge_adapters(model)
    return outcome
