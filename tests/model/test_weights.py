"""Which files of a directory are read as weights, and errors that name file and tensor."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from llms import save_llama
from safetensors.torch import load_file, save_file
from torch import Tensor

from slmc.errors import UsageError
from slmc.model import backbone

Tensors = dict[str, Tensor]
LAYER = "model.layers.0."
UP, NORM, TABLE = LAYER + "mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save_llama(tmp_path_factory.mktemp("llm"), vocab_size=50)


@pytest.fixture
def tensors(source: Path) -> Tensors:
    return load_file(source / "model.safetensors")


@pytest.fixture
def folder(source: Path, tmp_path: Path) -> Path:
    shutil.copy(source / "config.json", tmp_path)
    return tmp_path


def put(folder: Path, tensors: Tensors, name: str = "model.safetensors") -> None:
    contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
    save_file(contiguous, folder / name, metadata={"format": "pt"})


def put_index(folder: Path, weight_map: dict[str, str]) -> None:
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def noise(tensors: Tensors) -> Tensors:
    return {key: torch.randn_like(tensor) for key, tensor in tensors.items()}


def check_read(folder: Path, tensors: Tensors) -> None:
    model = backbone.load(str(folder)).model
    for name, tensor in model.state_dict().items():
        if name != backbone.EMBEDDING:
            assert torch.equal(tensor, tensors[f"model.{name}"]), name


def refused(folder: Path) -> UsageError:
    """Return the error of a directory, which is the same when it is loaded and checked."""
    with pytest.raises(UsageError) as loaded:
        backbone.load(str(folder))
    with pytest.raises(UsageError) as checked:
        backbone.check(str(folder))
    assert loaded.value.what == checked.value.what and loaded.value.exit_code == 2
    start = f"backbone {folder}: "
    assert loaded.value.what.startswith(start)
    loaded.value.what = loaded.value.what.removeprefix(start)
    return loaded.value


@pytest.mark.parametrize(
    "other",
    ["z_ema", "model.fp16", "adapter_model", "consolidated", "model-00001-of-00002", "a"],
)
def test_other_files_than_model_safetensors_are_not_read(
    folder: Path, tensors: Tensors, other: str
) -> None:
    put(folder, tensors)
    put(folder, noise(tensors), f"{other}.safetensors")
    check_read(folder, tensors)


def test_files_that_the_index_does_not_name_are_not_read(folder: Path, tensors: Tensors) -> None:
    put(folder, tensors, "model-00001-of-00001.safetensors")
    put_index(folder, dict.fromkeys(tensors, "model-00001-of-00001.safetensors"))
    for stale in (FIRST, SECOND, "model.safetensors"):
        put(folder, noise(tensors), stale)
    check_read(folder, tensors)


def test_a_tensor_is_read_from_the_file_that_the_index_names(
    folder: Path, tensors: Tensors
) -> None:
    put(folder, tensors, FIRST)
    put(folder, noise(tensors), SECOND)
    put_index(folder, dict.fromkeys(tensors, FIRST) | {"lm_head.weight": SECOND})
    check_read(folder, tensors)


@pytest.mark.parametrize(
    "other",
    ["adapter.layers.0.self_attn.q_proj.weight", "audio_tower.layers.0.self_attn.k_proj.weight",
     "a.layers.0.self_attn.q_proj.weight"],
)  # fmt: skip
@pytest.mark.parametrize("prefix", ["model.", "", "model.language_model.", "z.text."])
def test_other_layers_in_the_files_do_not_decide_the_prefix(
    folder: Path, tensors: Tensors, prefix: str, other: str
) -> None:
    renamed = {key.replace("model.", prefix, 1): tensor for key, tensor in tensors.items()}
    put(folder, renamed | {other: torch.randn(32, 32)})
    check_read(folder, tensors)


def test_a_tower_of_the_same_shape_is_not_the_decoder(folder: Path, tensors: Tensors) -> None:
    tower = {
        key.replace("model.", "a.", 1): tensor + 1
        for key, tensor in tensors.items()
        if "embed_tokens" not in key and "lm_head" not in key
    }
    put(folder, tensors | tower)
    check_read(folder, tensors)


def scaled(tensors: Tensors, kind: torch.dtype) -> Tensors:
    """Weights divided by a scale, as in quantized checkpoints."""
    scale = tensors[UP].abs().max() / 100
    return tensors | {UP: (tensors[UP] / scale).to(kind)}


METHODS: list[dict[str, Any]] = [
    {"quant_method": "fp8", "weight_block_size": [128, 128]},
    {"quant_method": "compressed-tensors", "format": "int-quantized"},
    {"quant_method": "bitsandbytes", "load_in_8bit": True},
    {"quant_method": "bitsandbytes", "load_in_4bit": True},
    {"quant_method": "gptq", "bits": 4},
    {"quant_method": "awq", "bits": 4},
    {"quant_method": "mxfp4"},
]


@pytest.mark.parametrize("settings", METHODS)
@pytest.mark.parametrize("where", ["config", "text_config"])
def test_weights_that_are_quantized_by_their_config_are_refused(
    folder: Path, tensors: Tensors, settings: dict[str, Any], where: str
) -> None:
    put(folder, tensors)
    config = json.loads((folder / "config.json").read_text())
    config |= {"quantization_config": settings}
    if where == "text_config":
        config = {"model_type": "gemma3", "text_config": config}
    (folder / "config.json").write_text(json.dumps(config))
    error = refused(folder)
    assert error.what == (
        f"its config.json says that its weights are quantized ({settings['quant_method']}), but "
        "only float weights can be read."
    )
    assert error.remedy == (
        "Name a directory of float weights (bf16, fp16 or fp32), or a .gguf file."
    )


@pytest.mark.parametrize(
    ("kind", "called"),
    [(torch.float8_e4m3fn, "F8_E4M3"), (torch.int8, "I8"), (torch.uint8, "U8")],
)
def test_codes_are_refused_whatever_the_config_says(
    folder: Path, tensors: Tensors, kind: torch.dtype, called: str
) -> None:
    put(folder, scaled(tensors, kind))
    assert refused(folder).what == (
        f"{UP} in model.safetensors is of type {called}, not a float: its weights are quantized."
    )


def test_tensors_that_the_decoder_does_not_have_are_refused(folder: Path, tensors: Tensors) -> None:
    put(
        folder,
        tensors | {UP + "_scale": torch.ones(1), LAYER + "rotary_emb.inv_freq": torch.ones(4)},
    )
    assert refused(folder).what == (
        f"its weights contain {UP}_scale in model.safetensors, which a decoder of its config.json "
        "does not have."
    )


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def to_pointer(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12345\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_short, "model.safetensors is damaged: it ends within model."),
        (to_pointer, "model.safetensors is a Git LFS pointer and not the weights."),
        (lambda file: file.write_bytes(b""), "model.safetensors is damaged: "),
        (lambda file: file.write_bytes(b"<html>" * 9), "model.safetensors is damaged: "),
        (lambda file: file.unlink(), "it has no .safetensors weights, and pickled ones are not"),
    ],
)
def test_damaged_files_are_named(
    folder: Path, tensors: Tensors, damage: Callable[[Path], None], message: str
) -> None:
    put(folder, tensors)
    damage(folder / "model.safetensors")
    assert refused(folder).what.startswith(message)


def test_a_shard_that_is_missing_is_named_with_what_it_holds(
    folder: Path, tensors: Tensors
) -> None:
    put(folder, {key: tensor for key, tensor in tensors.items() if key != TABLE}, SECOND)
    put_index(folder, {key: FIRST if key == TABLE else SECOND for key in tensors})
    assert refused(folder).what == f"{FIRST} is missing, which holds {TABLE}."
    to_pointer(folder / FIRST)
    assert refused(folder).what.endswith(f"pointer and not the weights, which holds {TABLE}.")
    put(folder, {"other": tensors[TABLE]}, FIRST)
    assert refused(folder).what == (
        f"{FIRST} lacks {TABLE}, which model.safetensors.index.json lists in it."
    )
    (folder / "model.safetensors.index.json").write_text("[]")
    assert refused(folder).what == "model.safetensors.index.json is not an index of weights."
    (folder / "model.safetensors.index.json").unlink()
    assert refused(folder).what == (
        f"it contains {FIRST}, but neither model.safetensors nor model.safetensors.index.json."
    )


def with_entry(value: float, name: str) -> Callable[[Tensors], Tensors]:
    def change(tensors: Tensors) -> Tensors:
        changed = tensors[name].clone()
        changed.view(-1)[1] = value
        return tensors | {name: changed}

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_entry(float("nan"), UP), f"{UP} in model.safetensors holds NaN."),
        (with_entry(float("inf"), NORM), f"{NORM} in model.safetensors holds infinite numbers."),
        (with_entry(float("-inf"), TABLE), f"{TABLE} in model.safetensors holds infinite numbers."),
        (
            lambda tensors: tensors | {NORM: torch.ones(1)},
            f"{NORM} in model.safetensors has the shape [1], but its config.json requires [32].",
        ),
        (
            lambda tensors: tensors | {UP: tensors[UP][:48]},
            f"{UP} in model.safetensors has the shape [48, 32], but its config.json requires "
            "[64, 32].",
        ),
        (
            lambda tensors: tensors | {TABLE: tensors[TABLE][:, :8]},
            f"{TABLE} in model.safetensors has the shape [50, 8], but its config.json requires "
            "[50, 32].",
        ),
        (
            lambda tensors: tensors | {TABLE: torch.zeros(50, 32)},
            f"{TABLE} holds only zeros: it was never initialised.",
        ),
        (
            lambda tensors: {key: tensors[key] for key in tensors if key != UP},
            f"its weights lack {UP} (model.safetensors).",
        ),
        (
            lambda tensors: {key: tensors[key] for key in tensors if key != TABLE},
            f"its weights lack {TABLE} (model.safetensors).",
        ),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(
    folder: Path, tensors: Tensors, change: Callable[[Tensors], Tensors], message: str
) -> None:
    put(folder, change(tensors))
    assert refused(folder).what == message


def test_code_of_a_repository_is_not_run(folder: Path, tensors: Tensors) -> None:
    put(folder, tensors)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    assert refused(folder).what.startswith("its config.json cannot be read (")
