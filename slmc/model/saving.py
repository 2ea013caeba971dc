"""Write a model as an artefact: weights, vocabulary, metrics and a model card."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from slmc.artefact import Artefact, Draft
from slmc.config import StageConfig
from slmc.model import text_map
from slmc.model.loading import SERVING
from slmc.model.quantized_table import QuantizedTable
from slmc.model.silence import silence_transformers

Save = Callable[[PreTrainedModel, Artefact, Path], None]
"""Writes a model and the vocabulary of a dataset into a folder."""
TRAINING_METRICS = ("best_epoch", "stopped", "still_improving", "must_beat", "encoder_layer")
"""Metrics of training that are copied to the manifest."""
HOW_TO_LOAD = (
    "pip install slmc; in Python `import slmc.model.loading`, then "
    "`transformers.AutoModel.from_pretrained`"
)
CARD = """---
library_name: transformers
tags: [sequential-recommendation, slmc]
---
# {stage}: a sequential recommender of {num_items:,} items

Its model type is slmc's own: `import slmc.model.loading` before `AutoModel.from_pretrained`
opens it. Without that import transformers says that it does not know the architecture.

{parameters:,} parameters in {layers} layers; {size_mb:.1f} MB (10^6 bytes) for serving.
{note}

Histories are rows of `items.parquet` (1-based, 0 is padding), at most {history} of them,
padded on the left; original ids go in and come out through `slmc recommend` and `slmc export`.

```python
import slmc.model.loading  # registers the model type with transformers
import torch
from transformers import AutoModel

model = AutoModel.from_pretrained(".").eval()
scores = model(torch.tensor([[1, 2, 3]]))  # [1, {num_items} + 1], row 0 is padding
```

What made it, from what, with which versions: `slmc.json`. How it ranks against its baselines
is measured by `slmc validate`; numbers of the stage itself are in `metrics.json`.
"""


def seal_model(
    work: Draft,
    model: PreTrainedModel,
    *,
    stage: str,
    config: StageConfig,
    inputs: Mapping[str, Artefact],
    numbers: Mapping[str, Any],
    device: str,
    note: str = "",
    save: Save | None = None,
    table_from: Artefact | None = None,
) -> Artefact:
    """Write and seal a model.

    Args:
        work: The draft of the artefact.
        model: A recommender or SASRec.
        stage: Name of the stage.
        config: Resolved config of the stage.
        inputs: Inputs of the stage; the vocabulary is that of the role ``data``.
        numbers: Metrics of the stage, with ``best_epoch`` and ``epochs`` if it trained. Written
            as ``metrics.json``.
        device: Device that was used.
        note: Text of the model card about this stage; by default about the training.
        save: Writes the files instead of :func:`save_model`.
        table_from: The model that the item table came from; None if it was made here. Its map from
            texts to item vectors is copied, unless the stage wrote one.
    """
    (save or save_model)(model, inputs["data"], work.path)
    copy = work.path / text_map.FILE
    if table_from is not None and text_map.has_map(table_from) and not copy.exists():
        shutil.copyfile(table_from.file(text_map.FILE), copy)
    (work.path / "metrics.json").write_text(json.dumps(numbers, indent=2) + "\n")
    metrics = describe(model, work.path) | {
        name: numbers[name] for name in TRAINING_METRICS if name in numbers
    }
    (work.path / "README.md").write_text(_card(stage, model, metrics, note or _training(numbers)))
    return work.seal(
        kind="model",
        stage=stage,
        config=config,
        inputs=inputs,
        metrics=metrics,
        device=device,
    )


def save_model(model: PreTrainedModel, dataset: Artefact, out: Path) -> None:
    """Write a model in the format of Hugging Face, in one file, with its vocabulary."""
    clear_source_paths(model.config)
    add_loading_hint(model.config)
    with silence_transformers():
        model.save_pretrained(out, max_shard_size="1000GB")
    for name in ("items.parquet", "preprocessor.json"):
        shutil.copyfile(dataset.file(name), out / name)


def add_loading_hint(config: PreTrainedConfig) -> None:
    """Write into ``config.json`` which import transformers needs to load the model."""
    config.how_to_load = HOW_TO_LOAD


def clear_source_paths(config: PreTrainedConfig) -> None:
    """Clear the paths in a config, so that the same model has the same file everywhere."""
    for one in (config, getattr(config, "backbone_config", None)):
        if one is not None:
            one.name_or_path = ""


def describe(model: PreTrainedModel, directory: Path) -> dict[str, Any]:
    """Return a model's size for the manifest: parameters, layers, 10^6 bytes for serving."""
    table = getattr(model, "item_embeddings", None)
    codes = table.rows * table.width if isinstance(table, QuantizedTable) else 0
    return {
        "parameters": sum(p.numel() for p in model.parameters()) + codes,
        "layers": len(cast(nn.ModuleList, model.layers)),
        "size_mb": sum((directory / f).stat().st_size for f in SERVING) / 1e6,
    }


def _training(numbers: Mapping[str, Any]) -> str:
    history, metric = numbers.get("epochs", []), numbers.get("selected_by", "ce")
    if not history:
        return "It was not trained here."
    best = numbers["best_epoch"]
    chosen = min(history, key=lambda one: abs(one["epoch"] - best))
    text = (
        f"Validation {metric} {chosen[f'valid_{metric}']:.4f} after {best:g} epochs, the best of "
        f"{len(history)} validations."
    )
    if numbers["still_improving"]:
        text += " Training reached its bound while ranking still improved."
    return text


def _card(stage: str, model: PreTrainedModel, metrics: Mapping[str, Any], note: str) -> str:
    return CARD.format(
        stage=stage,
        num_items=model.config.num_items,
        history=model.config.history,
        parameters=metrics["parameters"],
        layers=metrics["layers"],
        size_mb=metrics["size_mb"],
        note=note,
    )
