"""Attention over packed tokens: one form for training, scoring and export.

Histories of different lengths stand one behind the other in a single stream of ``T`` tokens,
so that every linear layer works on real tokens alone. Attention is computed in windows: each
window holds ``C`` queries and the ``S`` keys that they can see, under a mask that is causal
and keeps histories apart.

- :func:`stream` cuts a ragged batch into windows (scoring, ONNX Runtime),
- :func:`rows` takes each row of a rectangle as a window (training rows, padded export).

It plugs into every rotary decoder of transformers through ``AttentionInterface``.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

IMPLEMENTATION = "slmc_packed"
WINDOW = 32
"""Queries of a window: smaller computes fewer masked scores, larger gathers fewer keys twice."""


Prefix = tuple[tuple[Tensor, Tensor], ...]
"""By layer, keys and values ``[P, kv_heads, D]`` of tokens that stand before every history."""


@dataclass(frozen=True)
class Packing:
    """Which tokens see which: ``N`` windows of ``C`` queries and ``S`` keys over ``T`` tokens."""

    mask: Tensor
    """``[N, 1, C, S]`` float32: 0 where a query sees a key, the lowest float elsewhere."""
    distance: Tensor
    """``[N, 1, C, S]`` int64: tokens between query and key, for sliding windows."""
    positions: Tensor
    """``[1, T]`` int64: place of each token within its history."""
    query_index: Tensor | None = None
    """``[N, C]`` token of each query; ``None`` if windows are consecutive tokens."""
    key_index: Tensor | None = None
    """``[N, S]`` token of each key; ``None`` if a window's keys are its queries' tokens."""
    prefix: Prefix = ()
    """What every query sees besides: the first P of the S keys that mask and distance tell of."""


def rows(segments: Tensor, positions: Tensor) -> Packing:
    """Take each row as a window.

    Args:
        segments: ``[R, L]`` int64; tokens see the earlier tokens of their row that have the
            same number.
        positions: ``[R, L]`` int64.
    """
    place = torch.arange(segments.shape[1], device=segments.device)
    causal = place[:, None] >= place[None, :]
    seen = (segments[:, :, None] == segments[:, None, :]) & causal
    # Padding may stand between two tokens of a history: only positions tell their distance.
    distance = positions[:, :, None] - positions[:, None, :]
    return Packing(
        mask=_additive(seen)[:, None],
        distance=distance[:, None],
        positions=positions.reshape(1, -1),
    )


def stream(lengths: Tensor, row_of_token: Tensor, longest: int) -> Packing:
    """Cut a stream of histories, one behind the other, into windows of :data:`WINDOW` queries.

    Args:
        lengths: ``[B]`` int64 tokens of each history, none of them 0.
        row_of_token: ``[T]`` int64, the history that each token belongs to, ascending.
        longest: An upper bound of ``lengths``; a window sees ``longest - 1`` tokens back.
    """
    device, tokens = lengths.device, row_of_token.shape[0]
    offset = lengths.cumsum(0) - lengths
    token = torch.arange(tokens, device=device)
    first = torch.arange((tokens + WINDOW - 1) // WINDOW, device=device)[:, None] * WINDOW
    query = first + torch.arange(WINDOW, device=device)
    key = first + torch.arange(WINDOW + longest - 1, device=device) - (longest - 1)
    query_index = query.clamp(max=tokens - 1)
    begin = offset[row_of_token[query_index]]
    seen = (key[:, None, :] <= query_index[:, :, None]) & (key[:, None, :] >= begin[:, :, None])
    return Packing(
        mask=_additive(seen)[:, None],
        distance=(query_index[:, :, None] - key[:, None, :])[:, None],
        positions=(token - offset[row_of_token])[None],
        query_index=query_index,
        key_index=key.clamp(0, tokens - 1),
    )


def behind(layout: Packing, prefix: Prefix) -> Packing:
    """The same histories, each behind tokens whose keys and values are known already.

    Those tokens need not be computed: in a causal decoder nothing that follows changes them.
    """
    length, size = prefix[0][0].shape[0], layout.mask.shape[2]
    positions = layout.positions + length
    index = layout.query_index
    query = positions.reshape(-1, size) if index is None else positions[0][index]
    known = torch.arange(length, device=positions.device)
    distance = query[:, None, :, None] - known
    return replace(
        layout,
        mask=nn.functional.pad(layout.mask, (length, 0)),
        distance=torch.cat([distance, layout.distance], dim=-1),
        positions=positions,
        prefix=prefix,
    )


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of a decoder layer within the windows of ``packing``.

    Args:
        module: The attention module, for its training flag.
        query: ``[1, heads, T, D]``.
        key: ``[1, kv_heads, T, D]``; each serves ``heads / kv_heads`` query heads.
        value: ``[1, kv_heads, T, D]``.
        attention_mask: Unused; the mask is part of ``packing``.
        packing: Windows and masks.
        scaling: Factor of the scores, ``D ** -0.5`` if none.
        dropout: Of the attention weights, in training.
        sliding_window: Tokens that a query sees, itself included.
        softcap: Bound of the scores, as Gemma 2.

    Returns:
        ``[1, T, heads, D]`` and no weights.
    """
    heads, tokens, width = query.shape[1:]
    kv_heads = key.shape[1]
    size = packing.mask.shape[2]
    q = _windows(query, packing.query_index, size)
    k = _windows(key, packing.key_index, size)
    v = _windows(value, packing.key_index, size)
    if packing.prefix:
        layer: Any = module.layer_idx
        k, v = (
            torch.cat([known.expand(seen.shape[0], -1, -1, -1), seen], dim=1)
            for known, seen in zip(packing.prefix[layer], (k, v), strict=True)
        )
    # Query heads of a kv head are laid along the queries, so that no key is repeated.
    q = q.reshape(-1, size, kv_heads, heads // kv_heads, width).permute(0, 2, 3, 1, 4)
    q = q.reshape(-1, kv_heads, heads // kv_heads * size, width)
    scores = torch.matmul(q, k.permute(0, 2, 3, 1)) * (scaling or width**-0.5)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    mask = packing.mask
    if sliding_window is not None:
        mask = mask.masked_fill(packing.distance >= sliding_window, torch.finfo(mask.dtype).min)
    scores = scores.reshape(-1, heads, size, mask.shape[3]) + mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    weights = weights.reshape(-1, kv_heads, heads // kv_heads * size, mask.shape[3])
    out = torch.matmul(weights, v.permute(0, 2, 1, 3)).reshape(-1, heads, size, width)
    out = out.permute(0, 2, 1, 3).reshape(-1, heads, width)
    return out[:tokens][None], None


def _windows(x: Tensor, index: Tensor | None, size: int) -> Tensor:
    """``[1, heads, T, D]`` as ``[N, size, heads, D]``."""
    x = x[0].transpose(0, 1)
    return x.reshape(-1, size, *x.shape[1:]) if index is None else x[index]


def _additive(seen: Tensor) -> Tensor:
    """0 where ``seen``, the lowest float32 elsewhere."""
    lowest = torch.finfo(torch.float32).min
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, lowest)


AttentionInterface.register(IMPLEMENTATION, packed_attention)
AttentionMaskInterface.register(IMPLEMENTATION, lambda *_, **__: None)
