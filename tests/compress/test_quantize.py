"""The stage: what it writes, that it loads to the bit, goes on after a crash, and refuses."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from transformers import AutoModel

from slmc import artefact, cli
from slmc.artefact import Artefact
from slmc.compress import sequential
from slmc.compress.config import QuantizeConfig
from slmc.compress.quantize import quantize
from slmc.compress.ranking import measure
from slmc.data.dataset import Dataset
from slmc.errors import BrokenRunError, MissingError, SlmcError, UndecidedError, UsageError
from slmc.model import quantized
from slmc.model.loading import load_model
from slmc.pipeline import preflight
from slmc.recipe import load as read_recipe

needs_gptq = pytest.mark.skipif(
    not quantized.installed("llmcompressor"), reason="the extra slmc[quantize] is not installed"
)
needs_storage = pytest.mark.skipif(
    not quantized.installed("compressed_tensors"),
    reason="the extra slmc[quantize] is not installed",
)
pytestmark = needs_storage
IDS = torch.tensor([[0, 0, 1, 2], [3, 4, 5, 6], [0, 0, 0, 7]])
GROUP = 16


@pytest.fixture(scope="module")
def parents(dataset: Artefact, student: Artefact) -> dict[str, Artefact]:
    return {"data": dataset, "model": student}


def config(**settings: Any) -> QuantizeConfig:
    return QuantizeConfig(**{"group_size": GROUP, "method": "rtn", "calibration": 24} | settings)


def scores(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS)
    return found


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"method": "gptq"}, marks=needs_gptq),
        pytest.param({"method": "gptq", "symmetric": False, "bits": 8}, marks=needs_gptq),
        pytest.param(
            {"method": "gptq", "act_order": False, "item_table": "int4"}, marks=needs_gptq
        ),
        {"symmetric": False},
        {"assign": {"*.mlp.*": 8, "*.v_proj": "skip"}, "item_table": "int8"},
        {"ignore": ("output_proj",)},
        {"assign": {"*": "skip"}, "item_table": "int8"},
    ],
    ids=str,
)
def test_the_artefact_scores_as_the_model_in_memory_to_the_bit(
    settings: dict[str, Any],
    parents: dict[str, Artefact],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sealed: list[Any] = []
    from slmc.compress import quantize as module

    real = module.seal_model
    monkeypatch.setattr(
        module,
        "seal_model",
        lambda work, model, **rest: sealed.append(model) or real(work, model, **rest),
    )
    made = quantize(config(**settings), parents, tmp_path / "out")
    in_memory = scores(sealed[0])
    with quantized.quiet():
        plain = AutoModel.from_pretrained(made.path).eval()
        from_disk = scores(plain)
    assert torch.equal(from_disk, in_memory)
    assert torch.equal(scores(load_model(artefact.load(made.path))), in_memory)
    assert not torch.equal(in_memory, scores(load_model(parents["model"])))
    assert made.manifest.metrics["parameters"] == parents["model"].manifest.metrics["parameters"]


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (8, True), (4, False)])
def test_weights_take_the_room_that_the_bits_promise(
    bits: int, symmetric: bool, parents: dict[str, Artefact], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    made = quantize(config(bits=bits, symmetric=symmetric), parents, tmp_path / "out")
    numbers = json.loads(made.file("metrics.json").read_text())
    promised = bits + 32 / GROUP + (0 if symmetric else bits / GROUP)
    assert numbers["bits_per_weight"] == pytest.approx(promised, abs=1e-3)
    stored = load_file(made.file("model.safetensors"))
    codes = [t for n, t in stored.items() if ".weight_" in n and not n.endswith("_shape")]
    room = 8 * sum(t.numel() * t.element_size() for t in codes)
    assert room == numbers["weights_quantized"] * promised


def test_layers_are_reported_worst_first(parents: dict[str, Artefact], tmp_path: Path) -> None:
    made = quantize(config(), parents, tmp_path / "out")
    rows = json.loads(made.file("layers.json").read_text())
    errors = [row["error"] for row in rows]
    assert len(rows) == 14 and errors == sorted(errors, reverse=True) and min(errors) > 0
    assert "14 linear layers in 4 bits" in made.file("README.md").read_text()


def test_an_item_table_is_judged_by_ranking(parents: dict[str, Artefact], tmp_path: Path) -> None:
    made = quantize(config(assign={"*": "skip"}, item_table="int4"), parents, tmp_path / "out")
    said = json.loads(made.file("metrics.json").read_text())["item_table"]
    data = Dataset.open(parents["data"])
    after = measure(load_model(made), data, "test").means  # type: ignore[arg-type]
    before = measure(load_model(parents["model"]), data, "test").means  # type: ignore[arg-type]
    assert said["quantized"] == after and said["float"] == before
    assert said["change"]["ce"]["change"] == pytest.approx(after["ce"] - before["ce"])
    assert said["n"] == 80


@pytest.mark.parametrize("method", ["rtn", pytest.param("gptq", marks=needs_gptq)])
def test_a_killed_run_goes_on_after_the_last_finished_layer(
    method: str,
    parents: dict[str, Artefact],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = quantize(config(method=method), parents, tmp_path / "whole")
    real, rounded = sequential._rounded, []

    def counted(name: str, *rest: Any) -> Any:
        if stop and name == "backbone.layers.1.mlp.up_proj":
            raise KeyboardInterrupt
        rounded.append(name)
        return real(name, *rest)

    monkeypatch.setattr(sequential, "_rounded", counted)
    stop = True
    with pytest.raises(KeyboardInterrupt):
        quantize(config(method=method), parents, tmp_path / "killed")
    assert not (tmp_path / "killed").exists()
    stop = False
    rounded.clear()
    resumed = quantize(config(method=method), parents, tmp_path / "killed")
    assert len(rounded) == 7 and all(".layers.1." in name for name in rounded)
    assert resumed.digest == whole.digest


def test_what_another_config_has_finished_is_not_taken(
    parents: dict[str, Artefact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = quantize(config(bits=8), parents, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("slmc.compress.quantize.seal_model", _stop)
        with pytest.raises(KeyboardInterrupt):
            quantize(config(bits=4), parents, tmp_path / "out")
    assert quantize(config(bits=8), parents, tmp_path / "out").digest == whole.digest


def _stop(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_sensitivity_measures_each_layer_and_proposes_a_step(
    parents: dict[str, Artefact], tmp_path: Path
) -> None:
    made = quantize(config(sensitivity="50%"), parents, tmp_path / "out")
    said = json.loads(made.file("sensitivity.json").read_text())
    rows = {row["name"]: row for row in said["layers"]}
    changes = [row["ce"]["change"] for row in said["layers"]]
    assert len(rows) == 14 and changes == sorted(changes, reverse=True)
    data, name = Dataset.open(parents["data"]), said["layers"][0]["name"]
    model, rounded = load_model(parents["model"]), load_model(made)
    before = measure(model, data, "test").means  # type: ignore[arg-type]
    with torch.no_grad():
        model.get_parameter(f"{name}.weight").copy_(rounded.get_parameter(f"{name}.weight"))
    alone = measure(model, data, "test").means  # type: ignore[arg-type]
    assert rows[name]["ce"]["change"] == pytest.approx(alone["ce"] - before["ce"])
    assert said["float"] == before
    assert said["all_quantized"]["ce"] == measure(rounded, data, "test").means["ce"]  # type: ignore[arg-type]
    assert said["proposal"]["assign"] == {}  # half of the NDCG is lost by no rounding to 4 bits


def test_a_tight_budget_is_met_by_wider_layers_in_a_recipe_that_reads(
    parents: dict[str, Artefact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slmc.compress import sensitivity as module

    real = module.Trial.rank

    def worse(self: Any, mix: dict[str, int | str]) -> Any:
        """As measured, less .01 for each layer in 4 bits."""
        found = real(self, mix)
        lost = 0.01 * sum(width == 4 for width in mix.values())
        return module.Ranking(found.ndcg * 0 + 0.5 - lost, found.ce)

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
    assert step.config.assign == wider and step.config.group_size == GROUP  # type: ignore[attr-defined]
    assert step.config.sensitivity is False  # type: ignore[attr-defined]


def test_a_budget_that_nothing_keeps_proposes_nothing(
    parents: dict[str, Artefact],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from slmc.compress import sensitivity as module

    real = module.Trial.rank
    monkeypatch.setattr(
        module.Trial,
        "rank",
        lambda self, mix: module.Ranking(
            real(self, mix).ndcg * 0 + (0.1 if mix else 0.5), real(self, mix).ce
        ),
    )
    with caplog.at_level(logging.WARNING, logger="slmc"):
        made = quantize(config(sensitivity="1%"), parents, tmp_path / "out")
    assert json.loads(made.file("sensitivity.json").read_text())["proposal"] is None
    assert "quantize.fragment.yaml" not in made.manifest.files
    assert caplog.messages == [
        "sensitivity: no assignment keeps the loss of NDCG@10 within 1% on validation"
    ]


REFUSED = [
    (
        {"group_size": 24},
        UsageError,
        "group_size: 24 does not divide the 32 inputs of "
        "backbone.layers.0.self_attn.q_proj (14 layers in all).",
        "Sizes that fit every layer: 8, 16, 32.",
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
        "assign: '*.gate_prj': no linear layer of the model fits it.",
        "Did you mean *.gate_proj, *.v_proj, *.q_proj?",
    ),
    (
        {"assign": {"*": "skip"}},
        UsageError,
        "quantize: ignore and assign leave no linear layer to quantize.",
        "Take a name out of them, or ask for an item_table in int8 or int4.",
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
    monkeypatch.setattr("slmc.compress.quantize.quantize_layers", _stop)
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


def test_too_few_histories_are_all_taken_with_a_warning(
    parents: dict[str, Artefact], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="slmc"):
        quantize(config(calibration=500), parents, tmp_path / "out")
    assert caplog.messages == ["calibration: 500 histories are asked for, there are 80"]


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
            "the item table is judged by ranking, and no user has a validation target.",
        ),
        (
            True,
            {"sensitivity": True},
            "sensitivity is judged by ranking, and no user has a validation target.",
        ),
    ],
)
def test_nothing_to_measure_is_undecided(
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


def test_a_weight_that_is_no_number_leaves_nothing_half_written(
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
            "Install with `pip install 'slmc[quantize]'`, or ask for --method rtn.",
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


def test_opening_a_quantized_model_says_nothing(
    parents: dict[str, Artefact], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = quantize(config(), parents, tmp_path / "out")
    load_model(made)
    assert capfd.readouterr() == ("", "")


def test_a_quantized_model_is_not_opened_without_the_library(
    parents: dict[str, Artefact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = quantize(config(), parents, tmp_path / "out")
    monkeypatch.setattr(quantized, "installed", lambda _: False)
    with pytest.raises(MissingError, match="compressed_tensors is not installed"):
        load_model(made)


def test_only_gptq_asks_for_llm_compressor_before_a_run(
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


def test_rounding_has_no_order() -> None:
    with pytest.raises(ValueError, match="act_order goes with method: gptq"):
        QuantizeConfig(method="rtn", act_order=True)


@needs_gptq
def test_the_command_says_nothing_but_the_path_and_leaves_no_file(
    parents: dict[str, Artefact], tmp_path: Path
) -> None:
    out, where = tmp_path / "out", tmp_path / "cwd"
    where.mkdir()
    arguments = f"--data {parents['data'].path} -o {out} --group-size 16 --calibration 8 -q"
    done = subprocess.run(
        [sys.executable, "-m", "slmc", "quantize", str(parents["model"].path), *arguments.split()],
        cwd=where,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", f"{out}\n")
    assert not list(where.iterdir())
    assert artefact.load(out).manifest.stage == "quantize"


def test_the_options_of_the_command(
    parents: dict[str, Artefact], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = [
        *("quantize", str(parents["model"].path), "--data", str(parents["data"].path)),
        *("-o", str(out), "--method", "rtn", "--bits", "4", "--group-size", "16"),
        *("--assign", "*.down_proj=8,*.v_proj=skip", "--no-symmetric", "--calibration", "8"),
    ]
    assert cli.call(arguments) == 0, capsys.readouterr().err
    said = artefact.load(out).manifest.config
    assert said["assign"] == {"*.down_proj": 8, "*.v_proj": "skip"}
    assert said["symmetric"] is False and said["act_order"] is None
