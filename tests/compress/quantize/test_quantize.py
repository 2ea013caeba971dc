"""The quantize stage: files, loading with the same bits, resume after a crash."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from quantizable import GROUP, config, needs_gptq, needs_storage, stop
from transformers import AutoModel

from slmc import artefact
from slmc.artefact import Artefact
from slmc.commands import cli
from slmc.compress.quantize import sequential
from slmc.compress.quantize.quantize import quantize
from slmc.compress.validation import measure, validation_config
from slmc.data.dataset import Dataset
from slmc.model import quantized
from slmc.model.loading import load_model

pytestmark = needs_storage
IDS = torch.tensor([[0, 0, 1, 2], [3, 4, 5, 6], [0, 0, 0, 7]])


def scores(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(IDS)
    return logits


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
    from slmc.compress.quantize import quantize as module

    real = module.seal_model
    monkeypatch.setattr(
        module,
        "seal_model",
        lambda work, model, **rest: sealed.append(model) or real(work, model, **rest),
    )
    result = quantize(config(**settings), parents, tmp_path / "out")
    in_memory = scores(sealed[0])
    with quantized.quiet():
        plain = AutoModel.from_pretrained(result.path).eval()
        from_disk = scores(plain)
    assert torch.equal(from_disk, in_memory)
    assert torch.equal(scores(load_model(artefact.load(result.path))), in_memory)
    assert not torch.equal(in_memory, scores(load_model(parents["model"])))
    assert result.manifest.metrics["parameters"] == parents["model"].manifest.metrics["parameters"]


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (8, True), (4, False)])
def test_the_stored_size_matches_the_bits(
    bits: int, symmetric: bool, parents: dict[str, Artefact], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    result = quantize(config(bits=bits, symmetric=symmetric), parents, tmp_path / "out")
    numbers = json.loads(result.file("metrics.json").read_text())
    promised = bits + 32 / GROUP + (0 if symmetric else bits / GROUP)
    assert numbers["bits_per_weight"] == pytest.approx(promised, abs=1e-3)
    stored = load_file(result.file("model.safetensors"))
    codes = [t for n, t in stored.items() if ".weight_" in n and not n.endswith("_shape")]
    room = 8 * sum(t.numel() * t.element_size() for t in codes)
    assert room == numbers["weights_quantized"] * promised


def test_layers_are_reported_by_descending_error(
    parents: dict[str, Artefact], tmp_path: Path
) -> None:
    result = quantize(config(), parents, tmp_path / "out")
    rows = json.loads(result.file("layers.json").read_text())
    errors = [row["error"] for row in rows]
    assert len(rows) == 14 and errors == sorted(errors, reverse=True) and min(errors) > 0
    assert "14 linear layers in 4 bits" in result.file("README.md").read_text()


def test_an_item_table_is_validated_by_ranking(
    parents: dict[str, Artefact], tmp_path: Path
) -> None:
    settings = config(assign={"*": "skip"}, item_table="int4", exclude_seen=True)
    result = quantize(settings, parents, tmp_path / "out")
    report = json.loads(result.file("metrics.json").read_text())["item_table"]
    data = Dataset.open(parents["data"])
    evaluation = validation_config(settings, data)
    after = measure(load_model(result), data, evaluation, "test").means
    before = measure(load_model(parents["model"]), data, evaluation, "test").means
    assert report["quantized"] == after and report["float"] == before
    assert report["change"]["ce"]["change"] == pytest.approx(after["ce"] - before["ce"])
    assert (report["n"], report["protocol"]) == (80, "full ranking, seen items left out, valid")


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


def test_finished_layers_of_another_config_are_ignored(
    parents: dict[str, Artefact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = quantize(config(bits=8), parents, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("slmc.compress.quantize.quantize.seal_model", stop)
        with pytest.raises(KeyboardInterrupt):
            quantize(config(bits=4), parents, tmp_path / "out")
    assert quantize(config(bits=8), parents, tmp_path / "out").digest == whole.digest


def test_opening_a_quantized_model_logs_nothing(
    parents: dict[str, Artefact], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = quantize(config(), parents, tmp_path / "out")
    load_model(result)
    assert capfd.readouterr() == ("", "")


@needs_gptq
def test_the_command_prints_only_the_path_and_leaves_no_file(
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
    recorded = artefact.load(out).manifest.config
    assert recorded["assign"] == {"*.down_proj": 8, "*.v_proj": "skip"}
    assert recorded["symmetric"] is False and recorded["act_order"] is None
