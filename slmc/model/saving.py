"""Write a trained model as an artefact: weights, vocabulary, what was measured, a card."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from slmc.artefact import Artefact, Draft
from slmc.config import StageConfig
from slmc.model.loading import SERVING, quiet
from slmc.model.quantized_table import QuantizedTable

Save = Callable[[PreTrainedModel, Artefact, Path], None]
"""Writes a model and the vocabulary of a dataset into a folder."""
KEPT = ("best_epoch", "stopped", "still_improving", "must_beat")
"""What the manifest says of how a model was trained."""
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
) -> Artefact:
    """Write and seal a model.

    Args:
        work: The draft of the artefact.
        model: A recommender or SASRec.
        stage: Name of the stage.
        config: Its resolved config.
        inputs: Its inputs; the vocabulary is that of the role ``data``.
        numbers: What the stage measured; ``best_epoch`` and ``epochs`` among them if it
            trained. Written as ``metrics.json``.
        device: Device it was computed on.
        note: What the card says of how it was made; else how its training went.
        save: Writes the files in the place of :func:`save_model`.
    """
    (save or save_model)(model, inputs["data"], work.path)
    (work.path / "metrics.json").write_text(json.dumps(numbers, indent=2) + "\n")
    metrics = describe(model, work.path) | {name: numbers[name] for name in KEPT if name in numbers}
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
    """Write a model in Hugging Face form, one file of weights, with its vocabulary."""
    forget_source(model.config)
    tell_how_to_load(model.config)
    with quiet():
        model.save_pretrained(out, max_shard_size="1000GB")
    for name in ("items.parquet", "preprocessor.json"):
        shutil.copyfile(dataset.file(name), out / name)


def tell_how_to_load(config: PreTrainedConfig) -> None:
    """Say in ``config.json`` what transformers' own message does not: what has to be imported."""
    config.how_to_load = HOW_TO_LOAD


def forget_source(config: PreTrainedConfig) -> None:
    """Drop the paths that a config was read from: the same model gives the same file anywhere."""
    for one in (config, getattr(config, "backbone_config", None)):
        if one is not None:
            one.name_or_path = ""


def describe(model: PreTrainedModel, directory: Path) -> dict[str, Any]:
    """What a manifest says of a model's size: parameters, layers, 10^6 bytes for serving."""
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
