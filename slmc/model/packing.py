"""Attention over packed tokens, the same for training, scoring and export.

Histories of different lengths are concatenated to a single stream of ``T`` tokens, so that linear
layers compute no padding. Attention is computed in windows: each window has ``C`` queries and the
``S`` keys that they may attend to, under a mask that is causal and separates histories.

- :func:`stream` cuts a ragged batch into windows (scoring, ONNX Runtime),
- :func:`rows` makes each row of a rectangle a window (training rows, padded export).

It works with every rotary decoder of transformers, through ``AttentionInterface``.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from slmc.errors import UsageError

IMPLEMENTATION = "slmc_packed"
IGNORED = frozenset(
    {"position_ids", "use_cache", "cache_position", "output_attentions", "output_hidden_states"}
)
"""Arguments of a decoder's attention that do not change its result."""
WINDOW = 32
"""Queries of a window: smaller ones compute fewer masked scores, larger ones gather fewer keys."""
SERVING_WINDOW = 16
"""Queries of a window in engines, whose batches may be one short history."""


Prefix = tuple[tuple[Tensor, Tensor], ...]
"""For each layer, keys and values ``[kv_heads, P, D]`` of tokens before every history."""


@dataclass(frozen=True)
class Packing:
    """Which tokens attend to which: ``N`` windows of ``C`` queries and ``S`` keys, ``T`` tokens."""

    mask: Tensor
    """``[N, 1, C, S]`` float32: 0 where a query attends to a key, the lowest float elsewhere."""
    distance: Tensor
    """``[N, 1, C, S]`` int64: tokens between query and key, for sliding windows."""
    positions: Tensor
    """``[1, T]`` int64: position of each token in its history."""
    query_index: Tensor | None = None
    """``[N, C]`` token of each query; ``None`` if windows are consecutive tokens."""
    key_index: Tensor | None = None
    """``[N, S]`` token of each key; ``None`` if a window's keys are its queries' tokens."""
    prefix: Prefix = ()
    """Keys and values that all queries attend to: the first P of the S keys of the mask."""
    last_layer: "LastLayer | None" = None
    """Attention of the last layer, if only the states of last tokens are needed."""
    dropout: float = 0.0
    """Share of the attention weights that is dropped in training."""


@dataclass(frozen=True)
class LastLayer:
    """Attention of the last layer, for the last token of each history only."""

    layer: int
    """Index of the last layer."""
    packing: Packing
    """One window of one query for each history."""
    row_of_token: Tensor
    """``[T]`` int64, the history of each token: all its tokens get the result of the last one."""


def real_items(item_ids: Tensor) -> Tensor:
    """Return which tokens of histories ``[B, L]``, padded with 0 on the left, are not padding.

    The last token always counts, so that an empty history is scored as one padding item.
    """
    real = item_ids != 0
    return torch.cat([real[:, :-1], torch.ones_like(real[:, -1:])], dim=1)


def rows(segments: Tensor, positions: Tensor) -> Packing:
    """Make each row a window.

    Args:
        segments: ``[R, L]`` int64; tokens attend to themselves and to earlier tokens of their row
            with the same number.
        positions: ``[R, L]`` int64.
    """
    place = torch.arange(segments.shape[1], device=segments.device)
    causal = place[:, None] >= place[None, :]
    seen = (segments[:, :, None] == segments[:, None, :]) & causal
    # There may be padding between two tokens of a history: distances are those of positions.
    distance = positions[:, :, None] - positions[:, None, :]
    return Packing(
        mask=_additive(seen)[:, None],
        distance=distance[:, None],
        positions=positions.reshape(1, -1),
    )


def stream(lengths: Tensor, row_of_token: Tensor, longest: int, window: int = WINDOW) -> Packing:
    """Cut a stream of concatenated histories into windows of queries.

    Args:
        lengths: ``[B]`` int64 tokens of each history, at least 1.
        row_of_token: ``[T]`` int64, the history of each token, ascending.
        longest: Upper bound of ``lengths``; a window reaches ``longest - 1`` tokens back.
        window: Queries of a window.
    """
    device, tokens = lengths.device, row_of_token.shape[0]
    offset = lengths.cumsum(0) - lengths
    token = torch.arange(tokens, device=device)
    first = torch.arange((tokens + window - 1) // window, device=device)[:, None] * window
    query = first + torch.arange(window, device=device)
    # A window has at most all tokens as keys, which are few for one short history.
    keys = torch.sym_min(window + longest - 1, tokens)
    newest = (first + (window - 1)).clamp(max=tokens - 1)
    key = newest + torch.arange(keys, device=device) - (keys - 1)
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


def serving(lengths: Tensor, row_of_token: Tensor, longest: int, layers: int) -> Packing:
    """As :func:`stream`, for an engine, which needs only the last token of each history.

    Args:
        lengths: As for :func:`stream`.
        row_of_token: As for :func:`stream`.
        longest: As for :func:`stream`.
        layers: Number of layers of the decoder.
    """
    layout = stream(lengths, row_of_token, longest, SERVING_WINDOW)
    return with_last_layer(layout, lengths, row_of_token, longest, layers - 1)


def with_last_layer(
    layout: Packing, lengths: Tensor, row_of_token: Tensor, longest: int, layer: int
) -> Packing:
    """Let the last layer compute only the last token of each history.

    Args:
        layout: Result of :func:`stream` for the other arguments.
        lengths: As for :func:`stream`.
        row_of_token: As for :func:`stream`.
        longest: As for :func:`stream`.
        layer: Index of the last layer.
    """
    last = (lengths.cumsum(0) - 1)[:, None]
    key = last + torch.arange(longest, device=lengths.device) - (longest - 1)
    seen = key > last - lengths[:, None]
    only = Packing(
        mask=_additive(seen)[:, None, None],
        distance=(last - key)[:, None, None],
        positions=layout.positions,
        query_index=last,
        key_index=key.clamp(min=0),
    )
    return replace(layout, last_layer=LastLayer(layer, only, row_of_token))


def after_prefix(layout: Packing, prefix: Prefix) -> Packing:
    """Put tokens with known keys and values before each history.

    These tokens are not computed: in a causal decoder, later tokens do not change them.
    """
    length, size = prefix[0][0].shape[1], layout.mask.shape[2]
    positions = layout.positions + length
    index = layout.query_index
    query = positions.reshape(-1, size) if index is None else positions[0][index]
    known = torch.arange(length, device=positions.device)
    distance = query[:, None, :, None] - known
    last = layout.last_layer
    return replace(
        layout,
        last_layer=last and replace(last, packing=after_prefix(last.packing, prefix)),
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
    **others: Any,
) -> tuple[Tensor, None]:
    """Compute the attention of a decoder layer within the windows of ``packing``.

    Args:
        module: The attention module, for its training flag.
        query: ``[1, heads, T, D]``.
        key: ``[1, kv_heads, T, D]``; each serves ``heads / kv_heads`` query heads.
        value: ``[1, kv_heads, T, D]``.
        attention_mask: ``None``, since the mask is part of ``packing``.
        packing: Windows and masks.
        scaling: Factor of the scores, ``D ** -0.5`` by default.
        dropout: Dropout of the attention weights in training; ``packing.dropout`` if larger.
        sliding_window: Tokens that a query attends to, including itself.
        softcap: Bound of the scores, as in Gemma 2.
        others: Other arguments that the decoder passes to its attention.

    Returns:
        ``[1, T, heads, D]``, and ``None`` for the attention weights.

    Raises:
        UsageError: An argument would change the attention, and is not supported here.
    """
    _refuse_unknown(others, attention_mask, query, value)
    layer: Any = getattr(module, "layer_idx", None)
    last = packing.last_layer
    if last is not None and last.layer != layer:
        last = None
    packing = packing if last is None else last.packing
    heads, tokens, width = query.shape[1:]
    kv_heads, size = key.shape[1], packing.mask.shape[2]
    # The query heads of a kv head are stacked along the queries, so that no key is repeated.
    group = heads // kv_heads
    q = _windows(query, packing.query_index, size, kv_heads)
    k = _windows(key, packing.key_index, size, kv_heads)
    v = _windows(value, packing.key_index, size, kv_heads)
    if packing.prefix:
        k, v = (
            torch.cat([known.expand(seen.shape[0], -1, -1, -1), seen], dim=2)
            for known, seen in zip(packing.prefix[layer], (k, v), strict=True)
        )
    scores = torch.matmul(q, k.transpose(2, 3)) * (scaling or width**-0.5)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    mask = packing.mask
    if sliding_window is not None:
        mask = mask.masked_fill(packing.distance >= sliding_window, torch.finfo(mask.dtype).min)
    scores = scores + mask.repeat(1, 1, group, 1)
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    share = max(dropout, packing.dropout)
    weights = nn.functional.dropout(weights, p=share, training=module.training)
    out = torch.matmul(weights, v)
    if packing.query_index is None:
        out = out.reshape(-1, heads, size, width).transpose(1, 2)
        return out.reshape(1, -1, heads, width), None
    of_token = _first_heads(mask.shape[0], size, heads, out.device)[:tokens]
    if last is not None:
        of_token = of_token[last.row_of_token]
    head = torch.arange(heads, device=out.device) * size
    return nn.functional.embedding(of_token[None, :, None] + head, out.reshape(-1, width)), None


def _refuse_unknown(
    others: dict[str, Any], attention_mask: Tensor | None, query: Tensor, value: Tensor
) -> None:
    changing = sorted(
        name
        for name, argument in others.items()
        if argument is not None
        and name not in IGNORED
        and not (name == "is_causal" and argument is True)
    )
    if attention_mask is not None:
        changing.insert(0, "attention_mask")
    if query.shape[-1] != value.shape[-1]:
        changing.append("values of another width than queries")
    if changing:
        raise UsageError(
            f"passes {', '.join(changing)} to its attention, which packed attention does not "
            "support.",
            "Name a decoder such as Llama, Qwen 3, Gemma, Mistral, Phi or SmolLM.",
        )


def _windows(x: Tensor, index: Tensor | None, size: int, groups: int) -> Tensor:
    """Reshape ``[1, heads, T, D]`` to ``[N, groups, heads / groups * size, D]``.

    Windows are consecutive tokens, or those of ``index``. Rows are gathered by token and head in
    one step, in the order that the matmuls need.
    """
    heads, _, width = x.shape[1:]
    x = x.transpose(1, 2)
    if index is None:
        windows = x.reshape(-1, size, heads, width).transpose(1, 2)
        if heads == groups:
            return windows
        return windows.reshape(-1, groups, heads // groups * size, width)
    head = torch.arange(heads, device=x.device)[:, None]
    rows = index[:, None] * heads + head
    if heads != groups:
        rows = rows.reshape(-1, groups, heads // groups * size)
    return nn.functional.embedding(rows, x.reshape(-1, width))


def _first_heads(windows: int, size: int, heads: int, device: torch.device) -> Tensor:
    """Return the flat index of each query's first head in ``[windows, heads, size]``."""
    window = torch.arange(windows, device=device)[:, None] * (heads * size)
    return (window + torch.arange(size, device=device)).reshape(-1)


def _additive(seen: Tensor) -> Tensor:
    """Return 0 where ``seen`` is true, the lowest float32 elsewhere."""
    lowest = torch.finfo(torch.float32).min
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, lowest)


AttentionInterface.register(IMPLEMENTATION, packed_attention)
AttentionMaskInterface.register(IMPLEMENTATION, lambda *_, **__: None)
