"""The prune stage: removes layers, attention heads and MLP channels; other weights stay the same.

A ``distill`` step with the pruned model as student recovers the ranking.
"""

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slmc.artefact import Artefact, draft
from slmc.compress.config import PruneConfig
from slmc.compress.prune import depth, importance, width
from slmc.compress.prune.exits import early_exit
from slmc.compress.prune.importance import Calibration
from slmc.compress.prune.sizes import Kept, Sizes, target_sizes
from slmc.compress.prune.width import FIND
from slmc.compress.validation import validation_config
from slmc.data.batches import pad_left
from slmc.data.calibration import histories
from slmc.data.dataset import Dataset
from slmc.errors import UsageError
from slmc.evaluation.evaluate import check_catalogue
from slmc.evaluation.results import protocol
from slmc.model.device import Placement, choose
from slmc.model.layers import by_influence, skipping
from slmc.model.loading import load_recommender, place
from slmc.model.quantized import is_quantized
from slmc.model.recommender import SequentialRecommender
from slmc.model.redundancy import block_influence
from slmc.model.saving import seal_model
from slmc.training.next_item import validator

CHECKED = 8
"""Calibration histories on which the pruned model is compared with the masked one."""
SEARCHED = "ndcg"
"""Metric of a search: has no cutoff, so it changes with every rank."""
LITTLE = 0.05
"""If fewer weights than this share are removed, a warning is logged."""
NAMES = {"heads": "kv_groups", "ffn": "channels"}
"""Field of the config -> name of its units in ``metrics.json``."""

log = logging.getLogger("slmc.prune")


def prune(config: PruneConfig, inputs: dict[str, Artefact], out: Path) -> Artefact:
    """Keep the most important layers, KV groups and MLP channels.

    Raises:
        UsageError: The model is not a float recommender on an LLM, ranks another catalogue, has
            weights that are not finite, or nothing of it would be left.
        UndecidedError: There is no calibration history.
        MissingError: torch-pruning is not installed.
    """
    width.torch_pruning()
    data = Dataset.open(inputs["data"])
    placement = choose(config.device, "fp32")
    model = recommender(inputs["model"])
    check_catalogue(model.config.num_items, data)
    place(model, placement.device)
    for field in FIND:
        if getattr(config, field) is not None:
            width.check_cuttable(model.backbone, field)
    before, parameters = Sizes.of(model.config.backbone_config), count(model)
    on = Calibration(histories(data, count=config.calibration, seed=config.seed), seed=config.seed)
    ids = torch.from_numpy(pad_left(on.histories[-CHECKED:])).to(placement.device)
    if config.exit_block is not None:
        model = early_exit(model, inputs["model"], config.exit_block, ids)
    target = target_sizes(config, model.config)
    with draft(out) as work:
        layers, numbers = _layers(config, target, model, data, on, placement)
        kept, listed = _units(config, target, model, layers, on)
        with torch.inference_mode(), width.masked(model, kept):
            expected = model.user_vectors(ids)
        model = width.cut(model, kept)
        with torch.inference_mode():
            kind = model.config.backbone_config.model_type
            width.check_same(model.user_vectors(ids), expected, kind)
        place(model, "cpu")
        _log_savings(model, parameters)
        after = Sizes.of(model.config.backbone_config)
        sizes = {
            "before": asdict(before) | {"parameters": parameters},
            "after": asdict(after) | {"parameters": count(model)},
        }
        return seal_model(
            work,
            model,
            stage="prune",
            config=config,
            inputs=inputs,
            table_from=inputs["model"],
            numbers=sizes | {"kept_layers": layers} | numbers | {"layers": listed},
            device=placement.device.type,
            note=(
                f"{after.layers} of {before.layers} layers, {after.heads} of {before.heads} "
                f"attention heads and {after.channels} of {before.channels} MLP channels of the "
                "model that it was pruned from; not trained since."
            ),
        )


def recommender(artefact: Artefact) -> SequentialRecommender:
    """The model of an artefact; raises ``UsageError`` if it cannot be pruned."""
    stored = json.loads(artefact.file("config.json").read_text())
    if is_quantized(stored):
        raise UsageError(
            f"{artefact.path} is quantized: its weights are codes, which cannot be cut.",
            "Prune before quantizing: name the model that it was made from.",
        )
    model = load_recommender(artefact)
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise UsageError(
                f"{artefact.path / 'model.safetensors'}: {name} holds numbers that are not finite.",
                "Make the model again; its training has probably diverged.",
            )
    return model


def _layers(
    config: PruneConfig,
    target: Sizes,
    model: SequentialRecommender,
    data: Dataset,
    on: Calibration,
    placement: Placement,
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Return the layers to keep, and the numbers that decided it."""
    if config.layers is None:
        return tuple(range(target.layers)), {}
    influence = block_influence(model, on.histories)
    numbers: dict[str, Any] = {"block_influence": influence}
    if config.depth_by == "influence":
        return by_influence(influence, target.layers), numbers
    targets = data.targets("valid").sample(depth.SEARCH_USERS, config.seed)
    evaluation = validation_config(config, data).model_copy(update={"metrics": (SEARCHED,)})
    measure = validator(model, targets, data, evaluation, placement)
    kept, removed = depth.by_search(model, lambda: measure()[SEARCHED], target.layers)
    return kept, numbers | {"search": removed, "protocol": protocol(evaluation)}


def _units(
    config: PruneConfig,
    target: Sizes,
    model: SequentialRecommender,
    layers: tuple[int, ...],
    on: Calibration,
) -> tuple[Kept, list[dict[str, Any]]]:
    """Return the units to keep in each kept layer, and their importance for ``metrics.json``."""
    listed: list[dict[str, Any]] = [{"layer": number} for number in layers]
    keep = {"heads": target.kv_groups, "ffn": target.channels}
    fields = [field for field in FIND if getattr(config, field) is not None]
    units = {
        field: [FIND[field](model.layers[i], model.config.backbone_config) for i in layers]
        for field in fields
    }
    flat = [one for by_layer in units.values() for one in by_layer]
    removed = [i for i in range(len(model.layers)) if i not in layers]
    with skipping(model.layers, removed):
        scored = iter(importance.scores(config.importance, model, flat, on) if flat else [])
    kept: dict[str, list[tuple[int, ...]]] = {}
    for field in fields:
        scores = [next(scored) for _ in layers]
        kept[field] = [best(one, keep[field]) for one in scores]
        for entry, one, chosen in zip(listed, scores, kept[field], strict=True):
            entry[NAMES[field]] = summary(one, chosen)
    return Kept(layers, kept), listed


def best(scores: Tensor, keep: int) -> tuple[int, ...]:
    """Return the ``keep`` units with the highest scores ``[U]``, in order; ties keep the first."""
    ranked = scores.sort(descending=True, stable=True).indices
    return tuple(sorted(ranked[:keep].tolist()))


def summary(scores: Tensor, keep: Iterable[int]) -> dict[str, Any]:
    """Return the kept units, and how their importance compares with that of the others."""
    kept = list(keep)
    removed = [i for i in range(len(scores)) if i not in set(kept)]
    total = scores.sum().item()
    return {
        "kept": kept,
        "importance_kept": scores[kept].sum().item() / total if total else 1.0,
        "least_kept": scores[kept].min().item(),
        "most_removed": scores[removed].max().item() if removed else None,
    }


def count(model: SequentialRecommender) -> int:
    """Return the number of parameters of a model."""
    return sum(p.numel() for p in model.parameters())


def _log_savings(model: SequentialRecommender, before: int) -> None:
    """Log the removed parameters; warn if the item table, which is not pruned, is most of them."""
    after, items = count(model), model.item_embeddings.weight.numel()
    saved = 1 - after / before
    log.info("prune: %d of %d parameters remain", after, before)
    if saved < LITTLE and items > before / 2:
        log.warning(
            "prune: the model is only %.1f %% smaller: %.0f %% of its weights are the item table, "
            "which is not pruned; quantize it instead",
            100 * saved,
            100 * items / before,
        )
