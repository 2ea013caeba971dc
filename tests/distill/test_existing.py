"""An existing recommender as teacher: a missing or unsuitable tensor is refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from slmc.artefact import Artefact, draft
from slmc.config import Seeded
from slmc.data.dataset import Dataset
from slmc.distill import existing
from slmc.errors import ArtefactError, UsageError
from slmc.model.loading import load_model

UP = "backbone.layers.1.mlp.up_proj.weight"
Change = Callable[[Path], None]


@pytest.fixture
def mine(teacher: Artefact, tmp_path: Path) -> Path:
    return shutil.copytree(teacher.path, tmp_path / "mine")


def change_tensors(**changes: Callable[[torch.Tensor], torch.Tensor | None]) -> Change:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        for name, new in changes.items():
            tensor = new(tensors.pop(name))
            if tensor is not None:
                tensors[name] = tensor.contiguous()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def set_config(**values: object) -> Change:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))

    return change


def cut_rows(folder: Path) -> None:
    items = pl.read_parquet(folder / "items.parquet")
    items.with_columns(row=pl.col("row") + 1).write_parquet(folder / "items.parquet")


FAULTS: list[tuple[Change, str]] = [
    (change_tensors(**{UP: lambda _: None}), f"its weights lack {UP} (model.safetensors)."),
    (
        change_tensors(**{"output_proj.weight": lambda _: None}),
        "its weights lack output_proj.weight (model.safetensors).",
    ),
    (
        change_tensors(**{UP: lambda tensor: tensor[:8]}),
        f"{UP} in model.safetensors has the shape [8, 32], and its config.json asks for [64, 32].",
    ),
    (
        change_tensors(**{UP: lambda tensor: tensor * float("inf")}),
        f"{UP} in model.safetensors holds infinite numbers.",
    ),
    (lambda folder: (folder / "items.parquet").unlink(), "a recommender needs its vocabulary"),
    (cut_rows, "items.parquet has row 31, and the item table has 1 to 30."),
    (
        lambda folder: (folder / "items.parquet").write_bytes(b"no"),
        "items.parquet cannot be read (",
    ),
    (set_config(item_bits=8), "it is quantized: its weights are codes, which cannot be trained."),
    (
        lambda folder: (folder / "model.safetensors.index.json").write_text("{}"),
        "it holds both model.safetensors and model.safetensors.index.json, from different saves.",
    ),
    (
        set_config(backbone_config={"model_type": "mixtral", "num_hidden_layers": 1}),
        "mixtral is a mixture of experts (MixtralSparseMoeBlock), which is not supported.",
    ),
    (
        set_config(backbone_config={"model_type": "no"}),
        "its config.json does not describe a recommender (",
    ),
]


@pytest.mark.parametrize(("change", "message"), FAULTS)
def test_what_is_wrong_with_it_is_named(
    change: Change, message: str, mine: Path, dataset: Artefact
) -> None:
    change(mine)
    with pytest.raises(UsageError) as caught:
        existing.read(mine, Dataset.open(dataset))
    assert caught.value.what.startswith(f"backbone {mine}: {message}")
    assert caught.value.exit_code == 2


def test_a_sound_one_is_read(mine: Path, dataset: Artefact, teacher: Artefact) -> None:
    assert existing.check(mine).config.model_type == "llama"
    read = existing.read(mine, Dataset.open(dataset))
    assert torch.equal(read.state_dict()[UP], load_model(teacher).state_dict()[UP])


def test_a_sealed_model_that_lacks_a_tensor_is_refused(mine: Path, tmp_path: Path) -> None:
    change_tensors(**{UP: lambda _: None, "input_proj.bias": lambda _: None})(mine)
    with draft(tmp_path / "sealed") as work:
        for name in ("config.json", "model.safetensors", "items.parquet", "preprocessor.json"):
            shutil.copy(mine / name, work.path)
        made = work.seal(
            kind="model", stage="distill", config=Seeded(), inputs={}, metrics={}, device="cpu"
        )
    with pytest.raises(ArtefactError) as caught:
        load_model(made)
    assert caught.value.what == (
        f"{made.path / 'model.safetensors'}: it lacks {UP} and 1 other tensors."
    )
