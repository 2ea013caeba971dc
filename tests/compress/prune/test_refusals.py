"""What is asked of pruning and cannot be had, or brings nothing."""

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
        ({"layers": 3}, "prune: layers: 3 keeps all layers; nothing is saved by it"),
        ({"heads": 0.8}, "prune: heads: 0.8 keeps all 2 kv groups; nothing is saved by it"),
        (
            {"ffn": 0.75},
            "prune: ffn: 0.75 keeps all 64 channels, rounded to a multiple of 64; "
            "nothing is saved by it",
        ),
    ],
)
def test_what_saves_nothing_is_said(
    settings: dict[str, Any],
    message: str,
    inputs: Inputs,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = prune(PruneConfig.model_validate({"calibration": 8} | settings), inputs, tmp_path / "p")
    assert message in caplog.messages
    assert shape_of(made) == shape_of(inputs["model"])


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
    assert module.wanted(config, model.config).channels == kept


def test_a_number_of_heads_that_a_config_does_not_take(caplog: pytest.LogCaptureFixture) -> None:
    config = PruneConfig(heads=0.67)
    assert module.wanted(config, build("llama", kv_heads=4).config).heads == 4
    assert caplog.messages == [
        "prune: 4 kv groups are kept instead of 3: a config of llama takes no such number of "
        "heads at a hidden size of 32",
        "prune: heads: 0.67 keeps all 4 kv groups; nothing is saved by it",
    ]
    caplog.clear()
    assert module.wanted(config, build("qwen3", kv_heads=4).config).heads == 3
    assert caplog.messages == []


def test_a_model_that_is_mostly_items(
    dataset: Artefact, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = build("llama")
    before = 10 * sum(p.numel() for p in model.parameters())
    model.item_embeddings = torch.nn.Embedding(before // 16, 16)
    module._say_what_is_saved(model, before + 100)
    (said,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert re.fullmatch(
        r"prune: the model is only -?\d\.\d % smaller: \d+ % of its weights are the item table, "
        r"which pruning leaves as it is; quantize it instead",
        said,
    )


@pytest.mark.parametrize(
    ("settings", "message", "remedy"),
    [
        (
            {"layers": 4},
            "layers: 4 are to be kept, but the model has 3.",
            "Ask for at most 3.",
        ),
        ({"heads": 0.2}, "heads: 0.2 of 2 kv groups is none.", "Ask for at least 0.5."),
        ({"ffn": 0.001}, "ffn: 0.001 of 64 channels is none.", "Ask for at least 0.016."),
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
def test_settings_that_make_no_sense(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"greater than|less than|say what is kept"):
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


def test_another_decoder_is_refused_before_anything_is_measured(
    inputs: Inputs, dataset: Artefact, tmp_path: Path
) -> None:
    given = seal_model(build("olmo2"), dataset, tmp_path / "given")
    with pytest.raises(UsageError) as caught:
        prune(PruneConfig(heads=0.5), inputs | {"model": given}, tmp_path / "p")
    assert "the attention of olmo2 is of a form" in caught.value.what
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
    assert "calibration: 1000 histories are asked for, there are 80" in caplog.messages


def test_without_the_extra(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(MissingError) as caught:
        prune(PruneConfig(heads=0.5), inputs, tmp_path / "p")
    assert caught.value.what.startswith("torch_pruning cannot be imported (")
    assert caught.value.remedy == "Install it with `pip install 'slmc[prune]'`."
    assert list(tmp_path.iterdir()) == []
