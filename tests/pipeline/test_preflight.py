"""What a run lacks is told before anything runs."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from llms import save_llama
from running import made, statuses
from safetensors.torch import load_file, save_file

from slmc.artefact import Artefact
from slmc.commands import cli
from slmc.errors import MissingError
from slmc.pipeline import preflight
from slmc.recipe import load
from slmc.stages import STAGES


def test_missing_extras_are_told_before_anything_runs(
    fakes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    for name in ("export", "bench"):
        stage = replace(STAGES[name], extras={"not_there_1": "onnx", f"not_{name}": "onnx"})
        monkeypatch.setitem(STAGES, name, stage)
    with pytest.raises(MissingError) as caught:
        made()
    assert caught.value.what == "export, bench: not_bench, not_export, not_there_1 not installed."
    assert caught.value.remedy == "Install with `pip install 'slmc[onnx]'`."
    assert fakes.calls() == []
    assert len(made(until="distill").steps) == 7


def test_a_gpu_that_an_export_needs_is_missed_before_anything_runs(fakes: ModuleType) -> None:
    with pytest.raises(MissingError) as caught:
        made("export.precision=bf16")
    assert caught.value.what.startswith("export: precision bf16: ONNX Runtime supports it only on")
    assert "use fp16" in caught.value.remedy
    assert fakes.calls() == []
    assert len(made("export.precision=bf16", until="distill").steps) == 7


def test_a_full_disk_is_told_before_anything_runs(
    fakes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(until="prepare")
    monkeypatch.setattr(preflight, "NEEDED_MB", {"llm": 10**12, "small": 0})
    with pytest.raises(MissingError) as caught:
        made()
    assert caught.value.what.endswith(f"MB free; the run needs {10**12} MB.")
    assert fakes.calls() == ["prepare"]
    assert len(made(until="prepare").steps) == 1


@pytest.mark.parametrize(
    ("backbone", "sets", "needed"),
    [
        ("llm", (), 3000),
        ("llm", ("distill.seeds=3",), 3000 + 2 * 60),
        ("llm", ("teach.seeds=2",), 3000 + 1000 + 60),
        ("llm", ("distill.seeds=2", "sweep={distill.layers: [1, 2, 3]}"), 3000 + 5 * 60),
        ("random://llama", ("distill.seeds=3",), 100 + 2 * 2),
    ],
)
def test_every_copy_needs_space_on_the_disk(
    backbone: str, sets: tuple[str, ...], needed: int, tmp_path: Path
) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(
        "version: 1\nname: x\ndata: {source: a.csv}\nsteps:\n"
        f"  - teach: {{backbone: '{backbone}', layers: 4}}\n"
        "  - distill: {layers: 1, blocks: 1, losses: {cosine: 1}}\n  - export:\n"
    )
    assert preflight.needed_mb(load(file, sets=sets, env={}).steps) == needed


def test_a_gpu_is_looked_for_only_where_one_is_named(
    fakes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    module = ModuleType("slmc.model.device")
    module.choose = lambda device, dtype: asked.append(device)  # type: ignore[attr-defined]
    module.resolve_dtype = lambda device, dtype: "fp32"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "slmc.model.device", module)
    first = made("teach.dtype=auto", "sasrec.device=auto", "sasrec.dtype=auto")
    assert asked == []
    assert first.artefacts()["teach"].manifest.config["dtype"] == "fp32"
    assert set(statuses(made().steps).values()) == {"hit"}
    assert set(statuses(made("device=cuda").steps).values()) == {"hit"}
    assert asked == []
    made("device=cuda", "seed=3")
    assert asked == ["cuda"]


LLM = "random://{}?layers=3&hidden=32&heads=4&kv_heads=2&intermediate=64"
HISTORY = 12
STEPS = "version: 1\nname: t\ndata: {{source: log.csv, history: {}}}\nsteps:\n{}"


def recipe(tmp_path: Path, backbone: str, more: str = "", history: int = HISTORY) -> str:
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n")
    file = tmp_path / "mine.yaml"
    teach = f"  - teach: {{backbone: '{backbone}', layers: 3}}\n"
    file.write_text(STEPS.format(history, teach + more))
    return str(file)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("qwen3_5_text", "has layers of linear_attention, but only attention is supported."),
        ("mixtral", "is a mixture of experts (MixtralSparseMoeBlock), which is not supported."),
        ("gpt_neox", "has no token table named embed_tokens."),
        ("stablelm", "cannot compute packed histories (it does not pass the packing to its "),
        (
            "doge",
            "passes attention_mask to its attention, which packed attention does not support.",
        ),
    ],
)
@pytest.mark.parametrize("command", [["recipe", "check"], ["run"]])
def test_a_backbone_that_cannot_be_one_is_refused_before_anything_runs(
    kind: str, message: str, command: list[str], fakes: ModuleType, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    named = LLM.format(kind)
    assert cli.call([*command, recipe(tmp_path, named)]) == 2
    assert f"teach: backbone {named}: {kind} {message}" in " ".join(capsys.readouterr().err.split())
    assert fakes.calls() == []


def test_teach_refuses_it_before_sasrec_is_trained(
    dataset: Artefact, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("slmc.pipeline.run_stage", lambda *_, **__: pytest.fail("a stage ran"))
    given = ["teach", "--data", str(dataset.path), "--backbone", LLM.format("jetmoe")]
    assert cli.call([*given, "-o", str(tmp_path / "t")]) == 2
    assert "is a mixture of experts (JetMoeMoE)" in " ".join(capsys.readouterr().err.split())


def saved_llm(out: Path, **options: Any) -> Path:
    return save_llama(out, layers=3, vocab_size=20, **options)


def test_recipe_check_reads_the_files_of_a_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    llm = saved_llm(tmp_path / "llm")
    checked = ["recipe", "check", recipe(tmp_path, str(llm))]
    assert cli.call(checked) == 0
    file = llm / "model.safetensors"
    tensors = load_file(file)
    last = "model.layers.2.mlp.up_proj.weight"
    save_file(tensors | {last: tensors[last] * float("nan")}, file)
    assert cli.call(checked) == 2
    message = f"teach: backbone {llm}: {last} in model.safetensors holds NaN."
    assert message in " ".join(capsys.readouterr().err.split()).replace("- ", "-")
    file.write_bytes(file.read_bytes()[:-40])
    assert cli.call(checked) == 2


def test_recipe_check_knows_how_long_histories_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    llm = saved_llm(tmp_path / "llm", max_position_embeddings=HISTORY, rope_parameters=rope)
    assert cli.call(["recipe", "check", recipe(tmp_path, str(llm))]) == 0
    assert cli.call(["recipe", "check", recipe(tmp_path, str(llm), history=HISTORY + 1)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "rotary positions (dynamic) change beyond 12 tokens, and histories have up" in said


def test_recipe_check_knows_what_cannot_be_pruned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = LLM.format("diffllama")
    for more in ("", "  - distill: {layers: 2, blocks: 2}\n"):
        file = recipe(tmp_path, named, more + "  - prune: {heads: 0.5}\n")
        assert cli.call(["recipe", "check", file]) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "prune: heads cannot prune the attention of diffllama" in said
    assert cli.call(["recipe", "check", recipe(tmp_path, named, "  - prune: {ffn: 0.5}\n")]) == 0
