"""The units of a decoder layer that can be removed: KV groups and MLP channels.

A KV group is one key-value head and its query heads; removing it does not change what any other
head computes. torch-pruning finds dependencies between layers, not heads, and removes too few
query channels with grouped heads; so the weights of each group are determined here.

Letters: ``U`` units of a layer, ``n`` rows or columns of one matrix per unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slmc.errors import UsageError

ROWS, COLUMNS = 0, 1
PARTS = {"heads": "attention", "ffn": "MLP"}
"""Field of the config -> the part of a layer that it prunes."""


@dataclass(frozen=True)
class Slice:
    """The rows or columns of a matrix that belong to each unit."""

    linear: nn.Linear
    dim: int
    """:data:`ROWS` (outputs, with their biases) or :data:`COLUMNS` (inputs)."""
    index: Tensor
    """``[U, n]`` int64."""

    def per_unit(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the sum over each unit, ``[U]`` float64.

        Args:
            weight: ``[out, in]``, one value per weight.
            bias: ``[out]``, one value per bias; belongs to the rows.
        """
        sums = weight.double().sum(dim=1 - self.dim)
        if self.dim == ROWS and bias is not None:
            sums = sums + bias.double()
        return sums[self.index].sum(dim=1)


@dataclass(frozen=True)
class Units:
    """The units of a layer, with all their weights."""

    inputs: tuple[Slice, ...]
    """Rows that compute a unit."""
    output: Slice
    """Columns that add its output to the hidden state."""

    def __len__(self) -> int:
        """Return the number of units, U."""
        return len(self.output.index)

    @property
    def slices(self) -> tuple[Slice, ...]:
        """All slices."""
        return (*self.inputs, self.output)


def kv_groups(layer: nn.Module, config: Any) -> Units:
    """Return the KV groups of a decoder layer; raises ``UsageError`` for other kinds of attention.

    Args:
        layer: With q_proj, k_proj, v_proj (or one qkv_proj in the order of Phi-3) and o_proj.
        config: The decoder's config.
    """
    attention = getattr(layer, "self_attn", None)
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    o_proj = getattr(attention, "o_proj", None)
    if attention is None or not isinstance(o_proj, nn.Linear) or o_proj.in_features % heads:
        raise refusal("heads", config)
    width = o_proj.in_features // heads
    query = heads // groups * width
    fused = hasattr(attention, "qkv_proj")
    parts = {"qkv_proj": [query, width, width]} if fused else {}
    parts = parts or {"q_proj": [query], "k_proj": [width], "v_proj": [width]}
    inputs = [_rows(attention, name, groups, sizes) for name, sizes in parts.items()]
    units = _units(inputs, o_proj, groups, query)
    # A norm over one head is shared by all heads; a norm over all heads would mix them.
    if units is None or not _covered(attention, units, other=width):
        raise refusal("heads", config)
    return units


def channels(layer: nn.Module, config: Any) -> Units:
    """Return the MLP channels of a decoder layer; raises ``UsageError`` for other kinds of MLP.

    Args:
        layer: With gate_proj and up_proj (or one gate_up_proj, gate first) and down_proj.
        config: The decoder's config.
    """
    mlp, count = getattr(layer, "mlp", None), getattr(config, "intermediate_size", None)
    down = getattr(mlp, "down_proj", None)
    if mlp is None or not isinstance(down, nn.Linear) or down.in_features != count:
        raise refusal("ffn", config)
    fused = hasattr(mlp, "gate_up_proj")
    parts = {"gate_up_proj": [1, 1]} if fused else {"gate_proj": [1], "up_proj": [1]}
    inputs = [_rows(mlp, name, count, sizes) for name, sizes in parts.items()]
    units = _units(inputs, down, count, 1)
    if units is None or not _covered(mlp, units, other=None):
        raise refusal("ffn", config)
    return units


def _rows(module: nn.Module, name: str, units: int, sizes: Sequence[int]) -> Slice | None:
    """Return the rows of a matrix with one block per entry of ``sizes``, split into ``units``."""
    linear = getattr(module, name, None)
    if not isinstance(linear, nn.Linear) or linear.out_features != units * sum(sizes):
        return None
    starts = [units * sum(sizes[:i]) for i in range(len(sizes))]
    blocks = [_block(start, units, size) for start, size in zip(starts, sizes, strict=True)]
    return Slice(linear, ROWS, torch.cat(blocks, dim=1).to(linear.weight.device))


def _units(
    inputs: Sequence[Slice | None], output: nn.Linear, units: int, size: int
) -> Units | None:
    slices = tuple(one for one in inputs if one is not None)
    if len(slices) < len(inputs) or output.in_features != units * size:
        return None
    index = _block(0, units, size).to(output.weight.device)
    return Units(slices, Slice(output, COLUMNS, index))


def _block(start: int, units: int, size: int) -> Tensor:
    return start + torch.arange(units * size).reshape(units, size)


def _covered(module: nn.Module, units: Units, other: int | None) -> bool:
    """Return whether all weights belong to units, or to norms over ``other`` values."""
    known = {id(p) for one in units.slices for p in one.linear.parameters()}
    return all(
        id(p) in known or (p.numel() == other and "norm" in name)
        for name, p in module.named_parameters()
    )


def refusal(field: str, config: Any) -> UsageError:
    """Return the error for a decoder that cannot be pruned by ``heads`` or ``ffn``."""
    return UsageError(
        f"prune: {field} cannot prune the {PARTS[field]} of {config.model_type}.",
        f"Leave {field} out, or prune a Llama, Qwen, Gemma, Mistral or Phi-3.",
    )
