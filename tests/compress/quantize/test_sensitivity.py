"""Sensitivity of the ranking to each layer, and the proposed assignment."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from quantizable import GROUP, config, needs_storage

from slmc.artefact import Artefact
from slmc.compress.config import QuantizeConfig
from slmc.compress.quantize.quantize import quantize
from slmc.compress.validation import measure, validation_config
from slmc.data.dataset import Dataset
from slmc.model.loading import load_model
from slmc.recipe import load as read_recipe

pytestmark = needs_storage


def test_sensitivity_ranks_with_each_layer_and_proposes_a_step(
    parents: dict[str, Artefact], tmp_path: Path
) -> None:
    settings = config(sensitivity="50%", ranking={"sampled": 9}, exclude_seen=True)
    quantized = quantize(settings, parents, tmp_path / "out")
    report = json.loads(quantized.file("sensitivity.json").read_text())
    evaluation = validation_config(settings, Dataset.open(parents["data"]))
    rows = {row["name"]: row for row in report["layers"]}
    changes = [row["ndcg"]["change"] for row in report["layers"]]
    assert len(rows) == 14 and changes == sorted(changes)
    assert report["protocol"] == "9 sampled negatives, valid; one layer quantized at a time"
    data, name = Dataset.open(parents["data"]), report["layers"][0]["name"]
    model, rounded = load_model(parents["model"]), load_model(quantized)
    before = measure(model, data, evaluation, "test").means
    with torch.no_grad():
        model.get_parameter(f"{name}.weight").copy_(rounded.get_parameter(f"{name}.weight"))
    alone = measure(model, data, evaluation, "test").means
    for metric in ("ndcg@10", "ndcg", "ce"):
        change = alone[metric] - before[metric]
        assert rows[name][metric]["change"] == pytest.approx(change, abs=1e-12)
    assert report["float"] == before
    assert report["all_quantized"]["ce"] == measure(rounded, data, evaluation, "test").means["ce"]
    assert report["proposal"]["assign"] == {}  # 4 bits lose less than half of the NDCG


def test_a_tight_budget_gives_more_bits_to_some_layers_in_a_valid_recipe(
    parents: dict[str, Artefact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slmc.compress.quantize import sensitivity as module

    real = module.Trial.rank

    def worse(self: Any, mix: dict[str, int | str]) -> Any:
        """Replace NDCG@10 by 0.5 - 0.01 per layer in 4 bits."""
        ranking = real(self, mix)
        lost = 0.01 * sum(width == 4 for width in mix.values())
        return module.Ranking(
            {**ranking.values, "ndcg@10": ranking.values["ndcg@10"] * 0 + 0.5 - lost}
        )

    monkeypatch.setattr(module.Trial, "rank", worse)
    quantized = quantize(config(sensitivity=0.055), parents, tmp_path / "out")
    report = json.loads(quantized.file("sensitivity.json").read_text())
    wider = report["proposal"]["assign"]
    assert list(wider) == [row["name"] for row in report["layers"][:9]]  # 14 - 5 layers
    assert set(wider.values()) == {8}
    recipe = tmp_path / "recipe.yaml"
    fragment = quantized.file("quantize.fragment.yaml").read_text()
    recipe.write_text(
        "version: 1\nname: mixed\ndata: {source: log.csv}\nsteps:\n"
        "- teach: {backbone: 'random://llama?layers=2&hidden=32'}\n" + fragment
    )
    step = next(s for s in read_recipe(str(recipe)).steps if s.stage == "quantize")
    assert isinstance(step.config, QuantizeConfig)
    assert step.config.assign == wider and step.config.group_size == GROUP
    assert step.config.sensitivity is False


def test_an_impossible_budget_gives_no_proposal(
    parents: dict[str, Artefact],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from slmc.compress.quantize import sensitivity as module

    real = module.Trial.rank
    monkeypatch.setattr(
        module.Trial,
        "rank",
        lambda self, mix: module.Ranking(
            {name: 0 * v + (0.1 if mix else 0.5) for name, v in real(self, mix).values.items()}
        ),
    )
    with caplog.at_level(logging.WARNING, logger="slmc"):
        quantized = quantize(config(sensitivity="1%"), parents, tmp_path / "out")
    assert json.loads(quantized.file("sensitivity.json").read_text())["proposal"] is None
    assert "quantize.fragment.yaml" not in quantized.manifest.files
    assert caplog.messages == [
        "sensitivity: no assignment keeps the loss of NDCG@10 within 1% on validation"
    ]
