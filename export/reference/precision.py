"""The model in PyTorch in the precision of its engine: the reference of the parity check."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from slmc.export.config import HALVES
from slmc.export.constraints import BLOCKS
from slmc.export.graph.dynamic_int8 import LARGEST_CODE, TINY, ZERO_POINT
from slmc.export.graph.lowering import ACCURATE_BLOCK
from slmc.export.graph.nbits import nbits_supports
from slmc.model.codes import Codes, rounded
from slmc.model.loading import Recommender
from slmc.model.recommender import SequentialRecommender

UNIT = float(np.float32(1 / LARGEST_CODE))
"""Scale of int8 codes whose largest value is 1, in float32."""


def linear_layers(model: Recommender) -> dict[str, nn.Linear]:
    """Return the linear layers of the decoder, by name; a precision applies to these."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layers." in f".{name}"
    }


def in_precision(
    model: Recommender, precision: str, layer_codes: Mapping[str, Codes], layout: str
) -> Recommender:
    """Return the model as the engine computes it.

    Args:
        model: In float32; a quantized model has the values of its codes.
        precision: Precision of the engine.
        layer_codes: Codes of a quantized model, by layer.
        layout: Layout of the engine; with ``padded``, activations of block-quantized layers stay
            in float32.
    """
    int8_table = layout == "packed" and getattr(model.config, "item_bits", None) == 8
    if precision == "fp32" and not int8_table:
        return model
    reference = copied(model)
    if int8_table and isinstance(reference, SequentialRecommender):
        # User vectors are rounded too before they are multiplied with an 8-bit item table.
        block = next((size for size in BLOCKS if size >= reference.config.item_dim), BLOCKS[-1])
        rounded_users = nn.Sequential(reference.output_proj, BlockRounding(block))
        reference.set_submodule("output_proj", rounded_users)
    for name, layer in linear_layers(reference).items():
        codes = layer_codes.get(name)
        if precision == "int8":
            reference.set_submodule(name, DynamicInt8Linear(layer))
        elif precision in HALVES:
            reference.set_submodule(name, HalfLinear(layer, precision))
        elif precision == "int8-accurate" or (codes is not None and codes.bits == 8):
            if codes is None:
                weight = layer.weight.detach().numpy()
                codes = rounded(weight, bits=8, group_size=ACCURATE_BLOCK)
            reference.set_submodule(name, BlockInt8Linear(layer, codes, layout))
    return reference


@contextmanager
def known_prefix(model: Recommender) -> Iterator[None]:
    """Use the keys and values of the prompt before the items as constants, as every engine does."""
    model.prefix = model.prefix_states()
    try:
        yield
    finally:
        model.prefix = ()


def copied(model: Recommender) -> Recommender:
    """Return a copy to quantize; keys and values of the prompt stay those of the float model."""
    with known_prefix(model):
        return copy.deepcopy(model)


def rounds_activations(model: Recommender) -> bool:
    """Return whether a model of :func:`in_precision` rounds the inputs of its layers."""
    rounding = (DynamicInt8Linear, BlockRounding, HalfLinear)
    return any(isinstance(module, rounding) for module in model.modules())


class DynamicInt8Linear(nn.Module):
    """A linear layer with int8 weights and dynamic int8 activations.

    Weights have one scale per output, activations one scale per token.
    """

    def __init__(self, layer: nn.Linear) -> None:
        """Quantize the weights of ``layer``."""
        super().__init__()
        weight = layer.weight.detach()
        scale = weight.abs().amax(dim=1) / LARGEST_CODE
        self.scale = torch.where(scale == 0, torch.ones(()), scale)
        self.codes = (weight / self.scale[:, None]).round().clamp(-LARGEST_CODE, LARGEST_CODE)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., K]`` to ``[..., N]``."""
        scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=float(TINY)) * UNIT
        activations = (x / scale).round().clamp(-ZERO_POINT, ZERO_POINT - 1)
        # A matmul of 8-bit codes is exact in float64.
        integers = (activations.double() @ self.codes.double().T).float()
        y = integers * self.scale * scale
        return y if self.bias is None else y + self.bias


class BlockInt8Linear(nn.Module):
    """A linear layer with 8-bit weights in blocks; MatMulNBits rounds activations in these too."""

    def __init__(self, layer: nn.Linear, codes: Codes, layout: str) -> None:
        """Take the codes of ``layer``."""
        super().__init__()
        self.weight, self.bias = torch.from_numpy(codes.weight), layer.bias
        rounds = layout == "packed" and nbits_supports(codes)
        self.activations = BlockRounding(codes.group_size) if rounds else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., K]`` to ``[..., N]``."""
        return nn.functional.linear(self.activations(x), self.weight, self.bias)


class HalfLinear(nn.Module):
    """A linear layer whose weights, activations and outputs are rounded to 16 bits."""

    def __init__(self, layer: nn.Linear, precision: str, codes: Codes | None = None) -> None:
        """Round the weights of ``layer``, or the scales of its 4-bit codes, to bf16 or fp16."""
        super().__init__()
        kind = torch.float16 if precision == "fp16" else torch.bfloat16
        self.kind, self.bias = kind, layer.bias
        weight = layer.weight.detach()
        if codes is not None:
            scale = torch.from_numpy(codes.scale).to(kind).float()
            signed = torch.from_numpy(codes.codes.astype(np.float32)) - 8
            weight = signed * scale.repeat_interleave(codes.group_size, dim=1)
        self.weight = weight.to(kind).float()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., K]`` to ``[..., N]``."""
        y = (x.to(self.kind).float() @ self.weight.T).to(self.kind).float()
        return y if self.bias is None else y + self.bias


class BlockRounding(nn.Module):
    """Rounds vectors to 8 bits in blocks, with one scale per block."""

    def __init__(self, size: int) -> None:
        """Take the block size; the last block of a vector may be shorter."""
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., K]`` to the same shape."""
        inputs = x.shape[-1]
        blocks = nn.functional.pad(x, (0, -inputs % self.size)).unflatten(-1, (-1, self.size))
        scale = blocks.abs().amax(dim=-1, keepdim=True) / LARGEST_CODE
        codes = (blocks / torch.where(scale == 0, torch.ones(()), scale)).round()
        return (codes * scale).flatten(-2)[..., :inputs]
