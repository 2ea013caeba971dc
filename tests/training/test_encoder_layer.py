"""The layer of a text encoder that validation users choose."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import text_encoders
import torch
from torch import Tensor

from slmc.artefact import Artefact
from slmc.data.dataset import Dataset
from slmc.model import device
from slmc.model.text_encoder import Encoder, candidate_layers, text_vectors
from slmc.model.text_map import TextMap
from slmc.training import encoder_layer
from slmc.training.config import SasrecConfig
from slmc.training.encoder_layer import Choice, choose_layer
from slmc.training.pretrain import sasrec

WIDTH = 8


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_encoders.save(tmp_path_factory.mktemp("encoder") / "llama", "llama", layers=4)


@pytest.fixture(scope="module")
def data(log_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return text_encoders.titled(log_csv, tmp_path_factory.mktemp("titled"))


def config(encoder: Path, **settings: object) -> SasrecConfig:
    small = {"dim": WIDTH, "epochs": 1, "device": "cpu", "dtype": "fp32", "encoder_layer": "auto"}
    return SasrecConfig.model_validate(
        {"item_embeddings": "text", "encoder": str(encoder), **small, **settings}
    )


def choice(data: Artefact, encoder: Path, **settings: object) -> Choice:
    texts = [text for text in Dataset.texts(data) if text]
    return choose_layer(
        Encoder.of(str(encoder), None, None),
        texts,
        list(range(1, len(texts) + 1)),
        WIDTH,
        Dataset.open(data),
        config(encoder, **settings),
        device.choose("cpu", "fp32"),
    )


def plain_ndcg(vectors: Tensor, data: Dataset) -> float:
    """NDCG of the similarity to the items of the history, one user at a time, in float64."""
    x = vectors.double().numpy()
    x = x - x.mean(axis=0)
    left, _, _ = np.linalg.svd(x, full_matrices=False)
    white = left[:, :WIDTH]
    white = white / np.linalg.norm(white, axis=1, keepdims=True)
    targets, gains = data.targets("valid"), []
    for history, target, seen in zip(targets.histories, targets.targets, targets.seen, strict=True):
        scores = white @ white[history - 1].mean(axis=0)
        own = scores[target - 1]
        if data.excludes_seen("auto"):
            scores[seen - 1] = -np.inf
        scores[target - 1] = -np.inf
        better, equal = (scores > own + 1e-12).sum(), (np.abs(scores - own) <= 1e-12).sum()
        gains.append(1 / np.log2(2 + better + equal / 2))
    return float(np.mean(gains))


def test_candidates_are_spread_over_the_depth(llama: Path, tmp_path: Path) -> None:
    assert candidate_layers(Encoder.of(str(llama), None, None)) == ([1, 2, 3, 4], 4)
    deep = text_encoders.save(tmp_path / "deep", "llama", layers=10)
    assert candidate_layers(Encoder.of(str(deep), None, None)) == ([3, 5, 8, 10], 10)
    one = text_encoders.save(tmp_path / "one", "llama", layers=1)
    assert candidate_layers(Encoder.of(str(one), None, None)) == ([1], 1)


def test_values_are_those_of_a_plain_ranking_and_the_best_is_taken(
    data: Artefact, llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "slmc.training")
    made = choice(data, llama)
    texts = [text for text in Dataset.texts(data) if text]
    for layer, value in made.values.items():
        vectors = text_vectors(texts, Encoder.of(str(llama), None, int(layer)))
        assert value == pytest.approx(plain_ndcg(vectors, Dataset.open(data)), rel=0.02)
    assert set(made.values) == {"1", "2", "3", "4"} and made.depth == 4 and made.metric == "ndcg"
    assert made.values[str(made.layer)] == max(made.values.values())
    assert caplog.messages[-1].startswith(
        f"encoder {llama}: layer {made.layer} of 4 ranks best by text similarity alone "
        "(validation ndcg: layer 1 0."
    )


def test_all_layers_are_read_in_one_pass(
    data: Artefact, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLMC_CACHE", str(tmp_path / "cache"))
    from slmc.model import text_encoder

    opened = []
    opener = text_encoder._opened
    monkeypatch.setattr(
        text_encoder, "_opened", lambda *given: opened.append(given) or opener(*given)
    )
    sasrec(config(llama), {"data": data}, tmp_path / "out")
    assert len(opened) == 1  # the training reads the chosen layer from the cache


@pytest.mark.parametrize(("select_by", "metric"), [("hr@5", "hr@5"), ("ce", "ndcg")])
def test_the_metric_is_that_of_the_recipe(
    select_by: str, metric: str, data: Artefact, llama: Path
) -> None:
    assert choice(data, llama, select_by=select_by).metric == metric


def test_the_layer_that_ranks_best_is_used_and_recorded(
    data: Artefact, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = Choice(3, 4, "ndcg", {"1": 0.1, "3": 0.2})
    monkeypatch.setattr("slmc.training.text_table.choose_layer", lambda *_: taken)
    made = sasrec(config(llama, lr=1e-9, weight_decay=0), {"data": data}, tmp_path / "out")
    assert TextMap.open(made).encoder.layer == 3
    numbers = json.loads(made.file("metrics.json").read_bytes())["encoder_layer"]
    assert numbers == {"layer": 3, "depth": 4, "metric": "ndcg", "values": {"1": 0.1, "3": 0.2}}
    assert made.manifest.metrics["encoder_layer"] == numbers
    fixed = sasrec(
        config(llama, lr=1e-9, weight_decay=0, encoder_layer=3), {"data": data}, tmp_path / "fixed"
    )
    assert "encoder_layer" not in fixed.manifest.metrics
    weights = [one.manifest.files["model.safetensors"] for one in (made, fixed)]
    assert weights[0] == weights[1]


def test_ties_take_the_lower_layer(
    data: Artefact, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = torch.randn(30, 32, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(
        encoder_layer, "layer_vectors", lambda _, __, layers, ___: dict.fromkeys(layers, same)
    )
    assert choice(data, llama).layer == 1
