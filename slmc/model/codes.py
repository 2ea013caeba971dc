"""Linear weights as integer codes with a scale for each group of inputs.

Letters: ``N`` outputs, ``K`` inputs, ``G`` groups of inputs that share a scale, ``b`` bits.
"""

import json
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from slmc.artefact import Artefact
from slmc.model import quantized

PACKED_SUFFIX = ".weight_packed"


@dataclass(frozen=True)
class Codes:
    """A weight ``[N, K]``: ``(codes - zero_point) * scale`` in each group."""

    bits: int
    group_size: int
    codes: NDArray[np.uint8]
    """``[N, K]``, in ``[0, 2^b - 1]``."""
    scale: NDArray[np.float32]
    """``[N, G]``, ``G = ceil(K / group_size)``."""
    zero_point: NDArray[np.uint8] | None = None
    """``[N, G]``; None means ``2^(b-1)`` for all groups."""

    @property
    def weight(self) -> NDArray[np.float32]:
        """The dequantized weight, ``[N, K]``."""
        inputs = self.codes.shape[1]
        middle = np.float32(2 ** (self.bits - 1))
        zero = middle if self.zero_point is None else self._expanded(self.zero_point, inputs)
        weight: NDArray[np.float32] = (self.codes - zero) * self._expanded(self.scale, inputs)
        return weight

    def outputs(self, first: int, end: int) -> "Codes":
        """Return the codes of the outputs from ``first`` to before ``end``."""
        kept = slice(first, end)
        zero = None if self.zero_point is None else self.zero_point[kept]
        return Codes(self.bits, self.group_size, self.codes[kept], self.scale[kept], zero)

    def _expanded(self, values: NDArray[np.generic], inputs: int) -> NDArray[np.float32]:
        return np.repeat(values.astype(np.float32), self.group_size, axis=1)[:, :inputs]


def load_codes(artefact: Artefact) -> dict[str, Codes]:
    """Return the codes of a quantized model, by name of the layer; empty for a float model.

    Raises:
        MissingError: compressed-tensors is not installed.
    """
    config = json.loads(artefact.file("config.json").read_text())
    if "quantization_config" not in config:
        return {}
    quantized.require()
    groups = config["quantization_config"]["config_groups"].values()
    schemes = {name: group["weights"] for group in groups for name in group["targets"]}
    with safe_open(artefact.file("model.safetensors"), framework="pt") as file:
        names = [
            key.removesuffix(PACKED_SUFFIX)
            for key in list(file.keys())
            if key.endswith(PACKED_SUFFIX)
        ]
        return {name: _codes_of_layer(file, name, schemes[name]) for name in names}


def rounded(weight: NDArray[np.float32], *, bits: int, group_size: int) -> Codes:
    """Quantize a weight to the nearest codes, symmetrically.

    Args:
        weight: ``[N, K]``; the last group may be short.
        bits: b.
        group_size: Inputs that share a scale.
    """
    outputs, inputs = weight.shape
    groups = -(-inputs // group_size)
    padded = np.zeros((outputs, groups * group_size), dtype=np.float32)
    padded[:, :inputs] = weight
    padded = padded.reshape(outputs, groups, group_size)
    middle = 2 ** (bits - 1)
    scale = np.abs(padded).max(axis=2) / np.float32(middle - 0.5)
    scale = np.where(scale == 0, np.float32(1), scale)
    codes = np.clip(np.rint(padded / scale[:, :, None]), -middle, middle - 1) + middle
    flat = codes.reshape(outputs, -1)[:, :inputs].astype(np.uint8)
    return Codes(bits, group_size, flat, scale.astype(np.float32))


def _codes_of_layer(file: safe_open, name: str, scheme: dict[str, object]) -> Codes:
    from compressed_tensors.compressors.pack_quantized import unpack_from_int32

    bits, group_size = int(str(scheme["num_bits"])), int(str(scheme["group_size"]))
    shape = torch.Size(file.get_tensor(f"{name}.weight_shape").tolist())
    scale = file.get_tensor(f"{name}.weight_scale").float()
    middle = 2 ** (bits - 1)

    def unpacked(tensor: torch.Tensor, size: torch.Size, dim: int) -> NDArray[np.uint8]:
        codes = unpack_from_int32(tensor, bits, size, packed_dim=dim)
        unsigned: NDArray[np.uint8] = (codes.int() + middle).to(torch.uint8).numpy()
        return unsigned

    zero = None
    if not scheme["symmetric"]:
        zero = unpacked(file.get_tensor(f"{name}.weight_zero_point"), scale.shape, 0)
    codes = unpacked(file.get_tensor(f"{name}{PACKED_SUFFIX}"), shape, 1)
    return Codes(bits, group_size, codes, scale.numpy(), zero)
