"""Settings and models that pruning refuses, and settings that remove nothing."""

import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from prunable import Inputs, build, shape_of
from sealing import seal_model

from slmc.artefact import Artefact, draft
from slmc.compress.config import PruneConfig
from slmc.compress.prune import prune as module
from slmc.compress.prune.prune import prune
from slmc.config import Seeded
from slmc.errors import MissingError, UsageError
from slmc.model.loading import load_model
from slmc.model.recommender import RecommenderConfig
from slmc.model.saving import save_model


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": 3}, "prune: layers: 3 keeps all layers, so nothing is removed"),
        ({"heads": 0.8}, "prune: heads: 0.8 keeps all 2 KV groups, so nothing is removed"),
        (
            {"ffn": 0.75},
            "prune: ffn: 0.75 keeps all 64 channels, rounded to a multiple of 64, "
            "so nothing is removed",
        ),
    ],
)
def test_settings_that_remove_nothing_are_logged(
    settings: dict[str, Any],
    message: str,
    inputs: Inputs,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pruned = prune(
        PruneConfig.model_validate({"calibration": 8} | settings), inputs, tmp_path / "p"
    )
    assert message in caplog.messages
    assert shape_of(pruned) == shape_of(inputs["model"])


@pytest.mark.parametrize(
    ("share", "round_to", "kept"),
    [
        (0.75, 64, 64),
        (0.1, 64, 64),
        (0.75, 32, 64),
        (0.7, 32, 32),
        (0.3, 1, 19),
        (1.0, 48, 64),
        (0.8, 48, 48),
    ],
)
def test_channels_are_rounded(
    share: float, round_to: int, kept: int, inputs: Inputs, tmp_path: Path
) -> None:
    model = load_model(inputs["model"])
    assert isinstance(model.config, RecommenderConfig)
    config = PruneConfig(ffn=share, round_to=round_to)
    assert module.target_sizes(config, model.config).channels == kept


def test_a_number_of_heads_that_a_config_does_not_allow(caplog: pytest.LogCaptureFixture) -> None:
    config = PruneConfig(heads=0.67)
    assert module.target_sizes(config, build("llama", kv_heads=4).config).heads == 4
    assert caplog.messages == [
        "prune: keeps 4 KV groups instead of 3: a config of llama does not allow that number of "
        "heads with a hidden size of 32",
        "prune: heads: 0.67 keeps all 4 KV groups, so nothing is removed",
    ]
    caplog.clear()
    assert module.target_sizes(config, build("qwen3", kv_heads=4).config).heads == 3
    assert caplog.messages == []


def test_a_model_that_is_mostly_items(
    dataset: Artefact, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = build("llama")
    before = 10 * sum(p.numel() for p in model.parameters())
    model.item_embeddings = torch.nn.Embedding(before // 16, 16)
    module._log_savings(model, before + 100)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert re.fullmatch(
        r"prune: the model is only -?\d\.\d % smaller: \d+ % of its weights are the item table, "
        r"which is not pruned; quantize it instead",
        warning,
    )


@pytest.mark.parametrize(
    ("settings", "message", "remedy"),
    [
        (
            {"layers": 4},
            "layers: 4 is more than the 3 layers of the model.",
            "Set at most 3.",
        ),
        ({"heads": 0.2}, "heads: 0.2 of 2 KV groups keeps none.", "Set at least 0.5."),
        ({"ffn": 0.001}, "ffn: 0.001 of 64 channels keeps none.", "Set at least 0.016."),
    ],
)
def test_nothing_would_be_left(
    settings: dict[str, Any], message: str, remedy: str, inputs: Inputs, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        prune(PruneConfig.model_validate(settings), inputs, tmp_path / "p")
    assert (caught.value.what, caught.value.remedy) == (message, remedy)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "settings", [{}, {"layers": 0}, {"heads": 0}, {"heads": 1.5}, {"ffn": -0.1}, {"round_to": 64}]
)
def test_invalid_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"greater than|less than|set at least one of"):
        PruneConfig.model_validate(settings)


def test_sasrec_is_refused(inputs: Inputs, sasrec: Artefact, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        prune(PruneConfig(heads=0.5), inputs | {"model": sasrec}, tmp_path / "p")
    assert caught.value.what == f"{sasrec.path} is a Sasrec, not a recommender on an LLM."
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_model_is_refused(inputs: Inputs, dataset: Artefact, tmp_path: Path) -> None:
    given = tmp_path / "given"
    with draft(given) as work:
        save_model(build("llama"), dataset, work.path)
        file = work.path / "config.json"
        stored = json.loads(file.read_text())
        stored["quantization_config"] = {"quant_method": "compressed-tensors"}
        file.write_text(json.dumps(stored))
        quantized = work.seal(kind="model", stage="quantize", config=Seeded(), inputs={})
    with pytest.raises(UsageError) as caught:
        prune(PruneConfig(heads=0.5), inputs | {"model": quantized}, tmp_path / "p")
    assert caught.value.what == (
        f"{given} is quantized: its weights are codes, which cannot be cut."
    )
    assert caught.value.remedy == ("Prune before quantizing: name the model that it was made from.")
    assert list(tmp_path.iterdir()) == [given]


def test_weights_that_are_no_numbers(inputs: Inputs, dataset: Artefact, tmp_path: Path) -> None:
    model = build("llama")
    with torch.no_grad():
        model.layers[1].get_parameter("mlp.up_proj.weight")[3, 4] = float("nan")
    given = seal_model(model, dataset, tmp_path / "given")
    with pytest.raises(UsageError) as caught:
        prune(PruneConfig(heads=0.5), inputs | {"model": given}, tmp_path / "p")
    assert caught.value.what == (
        f"{given.path / 'model.safetensors'}: backbone.layers.1.mlp.up_proj.weight holds numbers "
        "that are not finite."
    )
    assert list(tmp_path.iterdir()) == [given.path]


def test_an_unsupported_decoder_is_refused_before_importance_is_computed(
    inputs: Inputs, dataset: Artefact, tmp_path: Path
) -> None:
    given = seal_model(build("olmo2"), dataset, tmp_path / "given")
    with pytest.raises(UsageError) as caught:
        prune(PruneConfig(heads=0.5), inputs | {"model": given}, tmp_path / "p")
    assert "heads cannot prune the attention of olmo2" in caught.value.what
    assert list(tmp_path.iterdir()) == [given.path]


def test_another_catalogue(inputs: Inputs, tmp_path: Path, dataset: Artefact) -> None:
    model = build("llama")
    model.config.num_items = 29
    model.item_embeddings = torch.nn.Embedding(30, 16)
    given = seal_model(model, dataset, tmp_path / "given")
    with pytest.raises(UsageError) as caught:
        prune(PruneConfig(heads=0.5), inputs | {"model": given}, tmp_path / "p")
    assert caught.value.what == "the model ranks 29 items, the dataset has 30."


def test_fewer_histories_than_asked_for(
    inputs: Inputs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prune(PruneConfig(heads=0.5, calibration=1000), inputs, tmp_path / "p")
    assert "calibration: 1000 histories requested, but there are 80" in caplog.messages


def test_without_the_extra(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(MissingError) as caught:
        prune(PruneConfig(heads=0.5), inputs, tmp_path / "p")
    assert caught.value.what.startswith("torch_pruning cannot be imported (")
    assert caught.value.remedy == "Install it with `pip install 'slmc[prune]'`."
    assert list(tmp_path.iterdir()) == []
