"""Create recommenders before training: first layers of a backbone, new projections, item table."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from slmc.distill.config import Lora
from slmc.errors import UsageError
from slmc.model import decoders
from slmc.model.backbone import Backbone
from slmc.model.layers import decoder_with_layers
from slmc.model.loading import Recommender
from slmc.model.origin import Origin
from slmc.model.recommender import RecommenderConfig, SequentialRecommender

OUTPUT_STD = 0.02
"""Standard deviation of the initial output_proj and of the heads of the distillation terms."""


def fresh(
    backbone: Backbone,
    items: Tensor,
    *,
    history: int,
    prefix: Tensor | None = None,
    suffix: Tensor | None = None,
) -> SequentialRecommender:
    """Return a recommender on a backbone, with untrained projections.

    ``input_proj`` is initialised so that its outputs have the RMS of the LLM's token embeddings,
    the scale that the decoder layers were trained with.

    Args:
        backbone: Decoder layers in float32.
        items: ``[V + 1, d]`` item table; row 0 is padding.
        history: Longest history, in items.
        prefix: ``[P, H]`` prompt embeddings before the items.
        suffix: ``[S, H]`` prompt embeddings after the items.

    Raises:
        UsageError: The backbone's rotary positions change within that length.
    """
    none = torch.zeros(0, backbone.model.config.hidden_size)
    prefix, suffix = none if prefix is None else prefix, none if suffix is None else suffix
    longest = history + len(prefix) + len(suffix)
    decoders.check_length(backbone.model.config, longest, backbone.label)
    model = SequentialRecommender(
        RecommenderConfig(
            backbone_config=backbone.model.config,
            num_items=len(items) - 1,
            item_dim=items.shape[1],
            history=history,
            prefix_length=len(prefix),
            suffix_length=len(suffix),
            dropout=0.0,
        ),
        backbone.model,
    )
    with torch.no_grad():
        model.item_embeddings.weight.data.copy_(items)
        model.prompt.copy_(torch.cat([prefix, suffix]))
        rms = items[1:].square().mean().sqrt().item()
        std = backbone.token_rms / (math.sqrt(items.shape[1]) * rms)
        nn.init.normal_(model.input_proj.weight, std=std)
        nn.init.zeros_(model.input_proj.bias)
        nn.init.normal_(model.output_proj.weight, std=OUTPUT_STD)
    return model


def origin_of(backbone: Backbone, items: Tensor, prompt: Sequence[Tensor | None]) -> Origin:
    """Return the weights that :func:`fresh` starts from: LLM unless random, item table, prompt."""
    known = {"item_embeddings.weight": items}
    parts = [part for part in prompt if part is not None]
    if parts:
        known["prompt"] = torch.cat(parts)
    origin = backbone.origin or Origin("the item table", {})
    return origin.joined("backbone.", known)


def keep_layers(backbone: Backbone, kept: Sequence[int]) -> Backbone:
    """Return a backbone that has only the kept decoder layers; itself if they are all."""
    if list(kept) == list(range(backbone.model.config.num_hidden_layers)):
        return backbone
    origin = backbone.origin and backbone.origin.keeping(kept)
    return replace(backbone, model=decoder_with_layers(backbone.model, kept), origin=origin)


def parameter_groups(
    model: Recommender, *, lr: float, projection_lr: float, extra: nn.Module | None = None
) -> list[dict[str, object]]:
    """Return the trained parameters: backbone at ``lr``, the others at ``projection_lr``.

    The others are projections, item table and the parameters of ``extra``. All of a SASRec is
    trained at ``projection_lr``.
    """
    whole = list(model.backbone.parameters()) if isinstance(model, SequentialRecommender) else []
    backbone = [p for p in whole if p.requires_grad]
    inside = {id(p) for p in whole}
    around = [p for p in model.parameters() if p.requires_grad and id(p) not in inside]
    around += list(extra.parameters()) if extra is not None else []
    groups: list[dict[str, object]] = [
        {"params": backbone, "lr": lr},
        {"params": around, "lr": projection_lr},
    ]
    return [group for group in groups if group["params"]]


def add_adapters(model: SequentialRecommender, lora: Lora) -> None:
    """Freeze the backbone and add trainable low-rank adapters to its layers.

    Raises:
        UsageError: A module of ``lora.modules`` is not in the backbone.
    """
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.modules),
    )
    try:
        model.backbone = get_peft_model(model.backbone, settings)
    except ValueError as error:
        raise UsageError(
            f"lora.modules: {', '.join(lora.modules)} are not in the backbone "
            f"({str(error).splitlines()[0]}).",
            "Name linear layers of its decoder, such as q_proj or down_proj.",
        ) from None


def merge_adapters(model: SequentialRecommender) -> None:
    """Merge the adapters into the weights and remove them."""
    model.backbone = cast(Any, model.backbone).merge_and_unload()
