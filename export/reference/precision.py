"""The model in PyTorch, computing in the precision of its engine: what parity compares with."""

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
"""Step of codes whose largest stands for 1, as float32 has it."""


def linear_layers(model: Recommender) -> dict[str, nn.Linear]:
    """The linear layers of the decoder, by name: what a precision is about."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layers." in f".{name}"
    }


def in_precision(
    model: Recommender, precision: str, own: Mapping[str, Codes], layout: str
) -> Recommender:
    """The model as the engine is to compute it.

    Args:
        model: In float32, of the values of its codes if it is quantized.
        precision: Of the engine.
        own: Codes of a quantized model.
        layout: Of the engine; ``padded`` leaves tokens in float32 beside blocks of codes.
    """
    coarse = layout == "packed" and getattr(model.config, "item_bits", None) == 8
    if precision == "fp32" and not coarse:
        return model
    made = copied(model)
    if coarse and isinstance(made, SequentialRecommender):
        # Scores are products with 8-bit codes, for which user vectors are rounded too.
        block = next((size for size in BLOCKS if size >= made.config.item_dim), BLOCKS[-1])
        rounded_users = nn.Sequential(made.output_proj, Blocks(block))
        made.set_submodule("output_proj", rounded_users)
    for name, layer in linear_layers(made).items():
        if precision == "int8":
            made.set_submodule(name, PerToken(layer))
        elif precision in HALVES:
            made.set_submodule(name, Half(layer, precision))
        elif precision == "int8-accurate" or (name in own and own[name].bits == 8):
            codes = own.get(name)
            if codes is None:
                weight = layer.weight.detach().numpy()
                codes = rounded(weight, bits=8, group_size=ACCURATE_BLOCK)
            made.set_submodule(name, InBlocks(layer, codes, layout))
    return made


@contextmanager
def known_prefix(model: Recommender) -> Iterator[None]:
    """Take keys and values of a prompt before the items as constants, as every engine does."""
    model.prefix = model.prefix_states()
    try:
        yield
    finally:
        model.prefix = ()


def copied(model: Recommender) -> Recommender:
    """A copy to put into a precision; what an engine holds of the prompt stays the model's."""
    with known_prefix(model):
        return copy.deepcopy(model)


def rounds_tokens(model: Recommender) -> bool:
    """Whether a model of :func:`in_precision` rounds what its layers are given."""
    return any(isinstance(module, (PerToken, Blocks, Half)) for module in model.modules())


class PerToken(nn.Module):
    """A linear layer of 8-bit weights on 8-bit tokens, a scale an output and a scale a token."""

    def __init__(self, layer: nn.Linear) -> None:
        """Round the weights of ``layer``."""
        super().__init__()
        weight = layer.weight.detach()
        scale = weight.abs().amax(dim=1) / LARGEST_CODE
        self.scale = torch.where(scale == 0, torch.ones(()), scale)
        self.codes = (weight / self.scale[:, None]).round().clamp(-LARGEST_CODE, LARGEST_CODE)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """``[..., K]`` to ``[..., N]``."""
        step = x.abs().amax(dim=-1, keepdim=True).clamp(min=float(TINY)) * UNIT
        tokens = (x / step).round().clamp(-ZERO_POINT, ZERO_POINT - 1)
        # Products of 8-bit codes are exact in float64, and their sums too.
        whole = (tokens.double() @ self.codes.double().T).float()
        found = whole * self.scale * step
        return found if self.bias is None else found + self.bias


class InBlocks(nn.Module):
    """A linear layer of 8-bit codes; MatMulNBits rounds tokens in the same blocks of inputs."""

    def __init__(self, layer: nn.Linear, codes: Codes, layout: str) -> None:
        """Take the codes of ``layer``."""
        super().__init__()
        self.weight, self.bias = torch.from_numpy(codes.weight), layer.bias
        rounds = layout == "packed" and nbits_supports(codes)
        self.tokens = Blocks(codes.group_size) if rounds else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``[..., K]`` to ``[..., N]``."""
        return nn.functional.linear(self.tokens(x), self.weight, self.bias)


class Half(nn.Module):
    """A linear layer whose weights, tokens and products are rounded to 16 bits."""

    def __init__(self, layer: nn.Linear, precision: str, codes: Codes | None = None) -> None:
        """Round the weights of ``layer`` to bf16 or fp16, or the scales of its 4-bit codes."""
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
        """``[..., K]`` to ``[..., N]``."""
        found = (x.to(self.kind).float() @ self.weight.T).to(self.kind).float()
        return found if self.bias is None else found + self.bias


class Blocks(nn.Module):
    """Vectors rounded to 8 bits in blocks with a scale each."""

    def __init__(self, size: int) -> None:
        """Take the size of a block; the last of a vector may be short."""
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """``[..., K]`` to the same."""
        inputs = x.shape[-1]
        blocks = nn.functional.pad(x, (0, -inputs % self.size)).unflatten(-1, (-1, self.size))
        scale = blocks.abs().amax(dim=-1, keepdim=True) / LARGEST_CODE
        steps = (blocks / torch.where(scale == 0, torch.ones(()), scale)).round()
        return (steps * scale).flatten(-2)[..., :inputs]
