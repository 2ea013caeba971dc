import errno
import json
from pathlib import Path

import pytest
import text_encoders
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from slmc.errors import UsageError
from slmc.model import text_encoder
from slmc.model.text_encoder import Encoder, text_vectors

TEXTS = ["red soap", "blue nail cream", "film", "red red red red blue", "unheard of", "soap"]


@pytest.fixture
def encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLMC_CACHE", str(tmp_path / "cache"))
    return text_encoders.save(tmp_path / "encoder")


def plain(encoder: Path, layer: int) -> torch.Tensor:
    """One text at a time."""
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model = AutoModel.from_pretrained(encoder).eval()
    rows = []
    for text in TEXTS:
        with torch.no_grad():
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            states = model(ids, output_hidden_states=True).hidden_states[layer]
        rows.append(states[0].mean(dim=0))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("kind", "layer", "read"),
    [("bert", None, 2), ("bert", 1, 1), ("llama", None, 1), ("llama", 0, 0), ("llama", 2, 2)],
)
def test_vectors_are_means_over_tokens_in_the_order_of_texts(
    tmp_path: Path, encoder: Path, kind: str, layer: int | None, read: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(text_encoder, "TOKENS", 8)  # several batches
    folder = text_encoders.save(tmp_path / kind, kind)
    found = text_vectors(TEXTS, Encoder.of(str(folder), None, layer))
    assert torch.allclose(found, plain(folder, read), atol=1e-5)


def test_they_are_computed_once(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = text_vectors(TEXTS, Encoder.of(str(encoder), None, None))
    monkeypatch.setattr(text_encoder, "_computed", lambda *_: pytest.fail("computed again"))
    assert torch.equal(text_vectors(TEXTS, Encoder.of(str(encoder), None, None)), first)
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        text_vectors([*TEXTS, "a"], Encoder.of(str(encoder), None, None))


def test_a_run_does_not_depend_on_what_is_cached(encoder: Path) -> None:
    file = encoder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if "pooler" not in name}
    save_file(kept, file, metadata={"format": "pt"})  # transformers draws what is missing
    drawn = []
    for _ in range(2):  # computed, then cached
        torch.manual_seed(0)
        text_vectors(TEXTS, Encoder.of(str(encoder), None, None))
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


def test_a_full_disk_leaves_nothing(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: object, path: Path) -> None:
        path.write_bytes(b"part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(text_encoder, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        text_vectors(TEXTS, Encoder.of(str(encoder), None, None))
    assert [file.suffix for file in (tmp_path / "cache/texts").iterdir()] in ([], [".lock"])


def test_a_layer_that_it_does_not_have(encoder: Path) -> None:
    with pytest.raises(UsageError) as caught:
        text_vectors(TEXTS, Encoder.of(str(encoder), None, 3))
    assert caught.value.what == f"encoder {encoder}: it has 2 layers, so there is no layer 3."


def test_a_directory_without_a_tokenizer(encoder: Path) -> None:
    for file in encoder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UsageError) as caught:
        text_vectors(TEXTS, Encoder.of(str(encoder), None, None))
    assert caught.value.what == f"encoder {encoder}: it has no tokenizer."


def test_code_of_the_directory_is_not_run(encoder: Path, tmp_path: Path) -> None:
    (encoder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = json.loads((encoder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoModel": "own.Own", "AutoConfig": "own.C"}}
    (encoder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="transformers cannot open it"):
        text_vectors(TEXTS, Encoder.of(str(encoder), None, None))
    assert not (tmp_path / "ran").exists()
