"""Settings, models and missing libraries that quantization refuses."""

import logging
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from quantizable import config, needs_storage, stop

from slmc import artefact
from slmc.artefact import Artefact
from slmc.compress.config import QuantizeConfig
from slmc.compress.quantize.quantize import quantize
from slmc.errors import BrokenRunError, MissingError, SlmcError, UndecidedError, UsageError
from slmc.model import quantized
from slmc.model.loading import load_model
from slmc.pipeline import preflight
from slmc.recipe import load as read_recipe

pytestmark = needs_storage
REFUSED = [
    (
        {"group_size": 24},
        UsageError,
        "group_size: 24 does not divide the 32 inputs of "
        "backbone.layers.0.self_attn.q_proj (14 layers in all).",
        "Sizes that divide the inputs of every layer: 8, 16, 32.",
    ),
    (
        {"ignore": ("ouput_proj",)},
        UsageError,
        "ignore: 'ouput_proj': no linear layer of the model ends with it.",
        "Did you mean output_proj, up_proj, input_proj?",
    ),
    (
        {"assign": {"*.gate_prj": 8}},
        UsageError,
        "assign: '*.gate_prj': no linear layer of the model matches it.",
        "Did you mean *.gate_proj, *.v_proj, *.q_proj?",
    ),
    (
        {"assign": {"*": "skip"}},
        UsageError,
        "quantize: ignore and assign leave no linear layer to quantize.",
        "Remove a name from them, or set item_table to int8 or int4.",
    ),
]


@pytest.mark.parametrize(("settings", "kind", "what", "remedy"), REFUSED)
def test_settings_that_do_not_fit_are_refused_before_anything_is_computed(
    settings: dict[str, Any],
    kind: type[SlmcError],
    what: str,
    remedy: str,
    parents: dict[str, Artefact],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("slmc.compress.quantize.quantize.quantize_layers", stop)
    with pytest.raises(kind) as caught:
        quantize(config(**settings), parents, tmp_path / "out")
    assert (caught.value.what, caught.value.remedy) == (what, remedy)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("settings", [{}, {"assign": {"*": "skip"}, "item_table": "int8"}])
def test_a_model_is_not_quantized_twice(
    settings: dict[str, Any], parents: dict[str, Artefact], tmp_path: Path
) -> None:
    once = quantize(config(**settings), parents, tmp_path / "once")
    with pytest.raises(UsageError) as caught:
        quantize(config(), parents | {"model": once}, tmp_path / "twice")
    assert caught.value.what == f"{once.path} is quantized already."
    assert not (tmp_path / "twice").exists()


def test_sasrec_is_refused(dataset: Artefact, sasrec: Artefact, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        quantize(config(), {"data": dataset, "model": sasrec}, tmp_path / "out")
    assert caught.value.what == f"{sasrec.path} is a Sasrec, not a recommender on an LLM."


def test_too_few_histories_are_all_used_with_a_warning(
    parents: dict[str, Artefact], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="slmc"):
        quantize(config(calibration=500), parents, tmp_path / "out")
    assert caplog.messages == ["calibration: 500 histories requested, but there are 80"]


def _without(dataset: Artefact, out: Path, *, train: bool) -> Artefact:
    """The dataset without training items, or without validation targets."""
    with artefact.draft(out) as work:
        shutil.copytree(dataset.path, work.path, dirs_exist_ok=True)
        (work.path / "slmc.json").unlink()
        file = work.path / "sequences" / "users.parquet"
        table = pl.read_parquet(file)
        cut = pl.lit(0) if not train else pl.col("items").list.len()
        column = cut.cast(table["valid_from"].dtype)
        table = table.with_columns(column.alias("valid_from"), column.alias("test_from"))
        table.write_parquet(file)
        return work.seal(kind="dataset", stage="prepare", config=QuantizeConfig(), inputs={})


@pytest.mark.parametrize(
    ("train", "settings", "what"),
    [
        (False, {}, "calibration: no user has a training history."),
        (
            True,
            {"item_table": "int8"},
            "the item table needs a ranking on validation, but no user has a validation target.",
        ),
        (
            True,
            {"sensitivity": True},
            "sensitivity needs a ranking on validation, but no user has a validation target.",
        ),
    ],
)
def test_no_validation_user_is_undecided(
    train: bool,
    settings: dict[str, Any],
    what: str,
    parents: dict[str, Artefact],
    tmp_path: Path,
) -> None:
    data = _without(parents["data"], tmp_path / "data", train=train)
    with pytest.raises(UndecidedError) as caught:
        quantize(config(**settings), parents | {"data": data}, tmp_path / "out")
    assert caught.value.what == what
    assert not (tmp_path / "out").exists()


def test_a_weight_that_is_not_finite_leaves_no_partial_artefact(
    parents: dict[str, Artefact], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    source = parents["model"]
    with artefact.draft(tmp_path / "broken") as work:
        shutil.copytree(source.path, work.path, dirs_exist_ok=True)
        (work.path / "slmc.json").unlink()
        weights = load_file(work.path / "model.safetensors")
        weights["backbone.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
        save_file(weights, work.path / "model.safetensors", metadata={"format": "pt"})
        broken = work.seal(kind="model", stage="distill", config=QuantizeConfig(), inputs={})
    with pytest.raises(BrokenRunError, match=r"a weight of backbone\.layers\.1\.mlp\.up_proj"):
        quantize(config(), parents | {"model": broken}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("method", "module", "remedy"),
    [
        (
            "gptq",
            "llmcompressor",
            "Install with `pip install 'slmc[quantize]'`, or use --method rtn.",
        ),
        ("rtn", "compressed_tensors", "Install with `pip install 'slmc[quantize]'`."),
    ],
)
def test_a_missing_extra_is_named(
    method: str,
    module: str,
    remedy: str,
    parents: dict[str, Artefact],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = quantized.installed
    monkeypatch.setattr(quantized, "installed", lambda name: name != module and real(name))
    with pytest.raises(MissingError) as caught:
        quantize(config(method=method), parents, tmp_path / "out")
    assert caught.value.what == f"quantize: {module} is not installed."
    assert caught.value.remedy == remedy
    assert caught.value.exit_code == 4


def test_a_quantized_model_is_not_opened_without_the_library(
    parents: dict[str, Artefact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = quantize(config(), parents, tmp_path / "out")
    monkeypatch.setattr(quantized, "installed", lambda _: False)
    with pytest.raises(MissingError, match="compressed_tensors is not installed"):
        load_model(stored)


def test_only_gptq_requires_llm_compressor_before_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "version: 1\nname: q\ndata: {source: log.csv}\nsteps:\n"
        "- teach: {backbone: 'random://llama?layers=2&hidden=32'}\n- quantize: {}\n"
    )
    real = preflight.find_spec
    without = {"llmcompressor"}
    monkeypatch.setattr(preflight, "find_spec", lambda m: None if m in without else real(m))
    with pytest.raises(MissingError) as caught:
        preflight.check_extras(read_recipe(str(recipe)).steps)
    assert caught.value.what == "quantize: llmcompressor not installed."
    assert caught.value.remedy == "Install with `pip install 'slmc[quantize]'`."
    preflight.check_extras(read_recipe(str(recipe), sets=["quantize.method=rtn"]).steps)


def test_rtn_refuses_act_order() -> None:
    with pytest.raises(ValueError, match="act_order needs method: gptq"):
        QuantizeConfig(method="rtn", act_order=True)
