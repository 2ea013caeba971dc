"""Write a quantized model in the compressed-tensors format, which transformers and vLLM load.

Codes are packed into int32 (``pack-quantized``), low bits first, stored as code + 2^(b-1).
"""

import copy
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from slmc.artefact import Artefact
from slmc.compress.quantize.layer_report import Quantized
from slmc.model import quantized
from slmc.model.saving import forget_source, tell_how_to_load


def save(
    model: PreTrainedModel,
    layers: Sequence[Quantized],
    group_size: int,
    dataset: Artefact,
    out: Path,
) -> None:
    """Write a model in Hugging Face format, its quantized layers as packed codes.

    Args:
        model: The model in memory, with dequantized weights.
        layers: The quantized layers.
        group_size: Inputs that share a scale.
        dataset: Source of the vocabulary.
        out: Folder to write into.

    Raises:
        MissingError: compressed-tensors is not installed.
    """
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    config = copy.deepcopy(model.config)
    if layers:
        schemes = _schemes(layers, group_size)
        config.quantization_config = _settings(schemes, layers)
        for layer in layers:
            del state[f"{layer.name}.weight"]
            for name, tensor in _compressed(layer).items():
                state[f"{layer.name}.{name}"] = tensor
    forget_source(config)
    tell_how_to_load(config)
    config.save_pretrained(out)
    contiguous = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(contiguous, out / "model.safetensors", metadata={"format": "pt"})
    for name in ("items.parquet", "preprocessor.json"):
        shutil.copyfile(dataset.file(name), out / name)


def _schemes(layers: Sequence[Quantized], group_size: int) -> dict[int, Any]:
    """Return one quantization scheme per bit width."""
    quantized.require()
    with quantized.quiet():
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

        return {
            bits: QuantizationScheme(
                targets=[layer.name for layer in layers if layer.grid.bits == bits],
                weights=QuantizationArgs(
                    num_bits=bits,
                    symmetric=layers[0].grid.symmetric,
                    strategy="group",
                    group_size=group_size,
                ),
                format="pack-quantized",
            )
            for bits in sorted({layer.grid.bits for layer in layers})
        }


def _settings(schemes: Mapping[int, Any], layers: Sequence[Quantized]) -> dict[str, Any]:
    """Return the ``quantization_config`` of ``config.json``."""
    from compressed_tensors.quantization import QuantizationConfig

    config = QuantizationConfig(
        config_groups={f"int{bits}": scheme for bits, scheme in schemes.items()},
        quantization_status="compressed",
        format="pack-quantized",
        ignore=[],
    )
    settings: dict[str, Any] = config.model_dump(mode="json")
    return settings


def _compressed(layer: Quantized) -> dict[str, Tensor]:
    """Return the tensors of one layer, by local name."""
    from compressed_tensors.compressors.pack_quantized import pack_to_int32

    grid = layer.grid
    stored = {
        "weight_packed": pack_to_int32(layer.codes.cpu(), grid.bits),
        "weight_scale": grid.scale.cpu(),
        "weight_shape": torch.tensor(layer.codes.shape),
    }
    if not grid.symmetric:
        stored["weight_zero_point"] = pack_to_int32(grid.zero_point.cpu(), grid.bits, packed_dim=0)
    return stored
