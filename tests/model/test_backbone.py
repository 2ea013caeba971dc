"""Backbones: only the first layers are read, and wrong names give clear messages."""

from pathlib import Path

import pytest
import torch
from llms import save_llama
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from slmc.errors import MissingError, UsageError
from slmc.model import backbone, random_models, sources


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save_llama(tmp_path_factory.mktemp("llm"), layers=4, vocab_size=50)


def test_the_first_layers_are_those_of_the_llm(llm: Path) -> None:
    loaded = backbone.load(str(llm), layers=2)
    stored = load_file(llm / "model.safetensors")
    for name, tensor in loaded.model.state_dict().items():
        if name != backbone.EMBEDDING:
            assert torch.equal(tensor, stored[f"model.{name}"])
    assert loaded.model.config.num_hidden_layers == 2
    rms = stored["model.embed_tokens.weight"].square().mean().sqrt().item()
    assert loaded.token_rms == pytest.approx(rms, rel=1e-5)


def test_layers_that_are_not_requested_are_not_read(llm: Path, tmp_path: Path) -> None:
    kept = {k: v for k, v in load_file(llm / "model.safetensors").items() if "layers.3" not in k}
    save_file(kept, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((llm / "config.json").read_text())
    assert backbone.load(str(tmp_path), layers=3).model.config.num_hidden_layers == 3
    with pytest.raises(UsageError) as caught:
        backbone.load(str(tmp_path))
    assert str(caught.value).startswith(f"backbone {tmp_path}: its weights lack model.layers.3.")


def test_too_many_layers(llm: Path) -> None:
    with pytest.raises(UsageError) as caught:
        backbone.load(str(llm), layers=9)
    assert caught.value.what == f"layers: 9 are requested, but backbone {llm} has 4."


def test_a_directory_of_a_decoder_without_rotary_positions(tmp_path: Path) -> None:
    config = random_models.llm_config("opt", hidden=32, heads=2, layers=1, vocab_size=8)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UsageError) as caught:
        backbone.load(str(tmp_path))
    assert caught.value.what.endswith("opt is not a decoder with rotary positions.")


def test_pickled_weights_are_not_opened(llm: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((llm / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04never opened")
    with pytest.raises(UsageError) as caught:
        backbone.load(str(tmp_path))
    assert "it has no .safetensors weights, and pickled ones are not opened" in caught.value.what


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere/at/all", "there is no such directory, and it is not a hub id"),
        ("random://nonsense?layers=2", "transformers has no model type 'nonsense'"),
        ("random://opt?layers=2&hidden=32&heads=2", "opt is not a decoder with rotary positions"),
        ("random://gpt2?layers=2&hidden=32&heads=2", "gpt2 is not a decoder with rotary positions"),
        ("random://bert?layers=2&hidden=32&heads=2", "bert is not a decoder with rotary positions"),
        ("random://llama?depth=2", "'depth' is not the name of a size, or not a whole number"),
    ],
)
def test_wrong_names(name: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        backbone.load(name)
    assert message in caught.value.what


def test_a_hub_id_while_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MissingError) as caught:
        backbone.load("nobody/never-downloaded")
    assert caught.value.what.startswith(
        "backbone nobody/never-downloaded: it is not in the local hub cache"
    )


def test_a_directory_without_config(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        backbone.load(str(tmp_path))
    assert caught.value.what == f"backbone {tmp_path}: it contains no config.json."


def test_the_fingerprint_depends_on_the_weights(llm: Path, tmp_path: Path) -> None:
    class Names:
        backbone = str(tmp_path)
        revision = None

    for file in llm.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    before = sources.fingerprint(Names())
    changed = load_file(tmp_path / "model.safetensors")
    changed["model.norm.weight"] = changed["model.norm.weight"] + 1
    save_file(changed, tmp_path / "model.safetensors")
    assert sources.fingerprint(Names()) != before
