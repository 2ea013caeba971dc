"""Sensitivity: how the ranking hangs on each layer, and what is proposed."""

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
from slmc.compress.validation import alike, measure
from slmc.data.dataset import Dataset
from slmc.model.loading import load_model
from slmc.recipe import load as read_recipe

pytestmark = needs_storage


def test_sensitivity_measures_each_layer_and_proposes_a_step(
    parents: dict[str, Artefact], tmp_path: Path
) -> None:
    asked = config(sensitivity="50%", ranking={"sampled": 9}, exclude_seen=True)
    made = quantize(asked, parents, tmp_path / "out")
    said = json.loads(made.file("sensitivity.json").read_text())
    how = alike(asked, Dataset.open(parents["data"]))
    rows = {row["name"]: row for row in said["layers"]}
    changes = [row["ndcg"]["change"] for row in said["layers"]]
    assert len(rows) == 14 and changes == sorted(changes)
    assert said["protocol"] == "9 sampled negatives, valid; one layer quantized at a time"
    data, name = Dataset.open(parents["data"]), said["layers"][0]["name"]
    model, rounded = load_model(parents["model"]), load_model(made)
    before = measure(model, data, how, "test").means
    with torch.no_grad():
        model.get_parameter(f"{name}.weight").copy_(rounded.get_parameter(f"{name}.weight"))
    alone = measure(model, data, how, "test").means
    for metric in ("ndcg@10", "ndcg", "ce"):
        change = alone[metric] - before[metric]
        assert rows[name][metric]["change"] == pytest.approx(change, abs=1e-12)
    assert said["float"] == before
    assert said["all_quantized"]["ce"] == measure(rounded, data, how, "test").means["ce"]
    assert said["proposal"]["assign"] == {}  # half of the NDCG is lost by no rounding to 4 bits


def test_a_tight_budget_is_met_by_wider_layers_in_a_recipe_that_reads(
    parents: dict[str, Artefact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slmc.compress.quantize import sensitivity as module

    real = module.Trial.rank

    def worse(self: Any, mix: dict[str, int | str]) -> Any:
        """As measured, less .01 for each layer in 4 bits."""
        found = real(self, mix)
        lost = 0.01 * sum(width == 4 for width in mix.values())
        return module.Ranking({**found.of, "ndcg@10": found.of["ndcg@10"] * 0 + 0.5 - lost})

    monkeypatch.setattr(module.Trial, "rank", worse)
    made = quantize(config(sensitivity=0.055), parents, tmp_path / "out")
    said = json.loads(made.file("sensitivity.json").read_text())
    wider = said["proposal"]["assign"]
    assert list(wider) == [row["name"] for row in said["layers"][:9]]  # 14 - 5 layers
    assert set(wider.values()) == {8}
    recipe = tmp_path / "recipe.yaml"
    fragment = made.file("quantize.fragment.yaml").read_text()
    recipe.write_text(
        "version: 1\nname: mixed\ndata: {source: log.csv}\nsteps:\n"
        "- teach: {backbone: 'random://llama?layers=2&hidden=32'}\n" + fragment
    )
    step = next(s for s in read_recipe(str(recipe)).steps if s.stage == "quantize")
    assert isinstance(step.config, QuantizeConfig)
    assert step.config.assign == wider and step.config.group_size == GROUP
    assert step.config.sensitivity is False


def test_a_budget_that_nothing_keeps_proposes_nothing(
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
            {name: 0 * of + (0.1 if mix else 0.5) for name, of in real(self, mix).of.items()}
        ),
    )
    with caplog.at_level(logging.WARNING, logger="slmc"):
        made = quantize(config(sensitivity="1%"), parents, tmp_path / "out")
    assert json.loads(made.file("sensitivity.json").read_text())["proposal"] is None
    assert "quantize.fragment.yaml" not in made.manifest.files
    assert caplog.messages == [
        "sensitivity: no assignment keeps the loss of NDCG@10 within 1% on validation"
    ]
