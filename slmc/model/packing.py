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

from slmc.errors import UsageError

IMPLEMENTATION = "slmc_packed"
WITHOUT_EFFECT = frozenset(
    {"position_ids", "use_cache", "cache_position", "output_attentions", "output_hidden_states"}
)
"""Arguments of a decoder's attention that change nothing of what it computes."""
WINDOW = 32
"""Queries of a window: smaller computes fewer masked scores, larger gathers fewer keys twice."""
SERVING_WINDOW = 16
"""The same for engines, whose batches may be one short history."""


Prefix = tuple[tuple[Tensor, Tensor], ...]
"""By layer, keys and values ``[kv_heads, P, D]`` of tokens that stand before every history."""


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
    ending: "Ending | None" = None
    """What the last layer computes instead, where nothing but the last tokens is asked for."""
    dropout: float = 0.0
    """Share of the attention weights that training drops."""


@dataclass(frozen=True)
class Ending:
    """The last layer's attention of each history's last token alone."""

    layer: int
    """Number of the last layer."""
    packing: Packing
    """A window of one query for each history."""
    row_of_token: Tensor
    """``[T]`` int64: every token is given what its history's last one is."""


def real_items(item_ids: Tensor) -> Tensor:
    """Which of histories ``[B, L]``, padded with 0 on the left, are items: bool ``[B, L]``.

    The last place always counts, so that an empty history has the answer of one padding item.
    """
    real = item_ids != 0
    return torch.cat([real[:, :-1], torch.ones_like(real[:, -1:])], dim=1)


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


def stream(lengths: Tensor, row_of_token: Tensor, longest: int, window: int = WINDOW) -> Packing:
    """Cut a stream of histories, one behind the other, into windows of queries.

    Args:
        lengths: ``[B]`` int64 tokens of each history, none of them 0.
        row_of_token: ``[T]`` int64, the history that each token belongs to, ascending.
        longest: An upper bound of ``lengths``; a window sees ``longest - 1`` tokens back.
        window: Queries of a window.
    """
    device, tokens = lengths.device, row_of_token.shape[0]
    offset = lengths.cumsum(0) - lengths
    token = torch.arange(tokens, device=device)
    first = torch.arange((tokens + window - 1) // window, device=device)[:, None] * window
    query = first + torch.arange(window, device=device)
    # No window sees more than all tokens: those of one short history are few.
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
    """As :func:`stream`, in an engine: nothing but the last token of each history is asked for.

    Args:
        lengths: As there.
        row_of_token: As there.
        longest: As there.
        layers: Of the decoder.
    """
    layout = stream(lengths, row_of_token, longest, SERVING_WINDOW)
    return ending(layout, lengths, row_of_token, longest, layers - 1)


def ending(
    layout: Packing, lengths: Tensor, row_of_token: Tensor, longest: int, layer: int
) -> Packing:
    """The same histories, of which the last layer computes the last tokens alone.

    Args:
        layout: As :func:`stream` gave it for the other arguments.
        lengths: As there.
        row_of_token: As there.
        longest: As there.
        layer: Number of the last layer.
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
    return replace(layout, ending=Ending(layer, only, row_of_token))


def behind(layout: Packing, prefix: Prefix) -> Packing:
    """The same histories, each behind tokens whose keys and values are known already.

    Those tokens need not be computed: in a causal decoder nothing that follows changes them.
    """
    length, size = prefix[0][0].shape[1], layout.mask.shape[2]
    positions = layout.positions + length
    index = layout.query_index
    query = positions.reshape(-1, size) if index is None else positions[0][index]
    known = torch.arange(length, device=positions.device)
    distance = query[:, None, :, None] - known
    end = layout.ending
    return replace(
        layout,
        ending=end and replace(end, packing=behind(end.packing, prefix)),
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
    """Attention of a decoder layer within the windows of ``packing``.

    Args:
        module: The attention module, for its training flag.
        query: ``[1, heads, T, D]``.
        key: ``[1, kv_heads, T, D]``; each serves ``heads / kv_heads`` query heads.
        value: ``[1, kv_heads, T, D]``.
        attention_mask: ``None``: the mask is part of ``packing``.
        packing: Windows and masks.
        scaling: Factor of the scores, ``D ** -0.5`` if none.
        dropout: Of the attention weights, in training; ``packing.dropout`` if that is more.
        sliding_window: Tokens that a query sees, itself included.
        softcap: Bound of the scores, as Gemma 2.
        others: What else the decoder hands to its attention.

    Returns:
        ``[1, T, heads, D]`` and no weights.

    Raises:
        UsageError: An argument would change the attention in a way that is not known here.
    """
    _refuse_unknown(others, attention_mask, query, value)
    layer: Any = getattr(module, "layer_idx", None)
    end = packing.ending if packing.ending is not None and packing.ending.layer == layer else None
    packing = packing if end is None else end.packing
    heads, tokens, width = query.shape[1:]
    kv_heads, size = key.shape[1], packing.mask.shape[2]
    # Query heads of a kv head are laid along the queries, so that no key is repeated.
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
    if end is not None:
        of_token = of_token[end.row_of_token]
    head = torch.arange(heads, device=out.device) * size
    return nn.functional.embedding(of_token[None, :, None] + head, out.reshape(-1, width)), None


def _refuse_unknown(
    others: dict[str, Any], attention_mask: Tensor | None, query: Tensor, value: Tensor
) -> None:
    changing = sorted(
        name
        for name, given in others.items()
        if given is not None
        and name not in WITHOUT_EFFECT
        and not (name == "is_causal" and given is True)
    )
    if attention_mask is not None:
        changing.insert(0, "attention_mask")
    if query.shape[-1] != value.shape[-1]:
        changing.append("values of another width than queries")
    if changing:
        raise UsageError(
            f"gives its attention {', '.join(changing)}, which packed attention does not know.",
            "Name a decoder such as Llama, Qwen 3, Gemma, Mistral, Phi or SmolLM.",
        )


def _windows(x: Tensor, index: Tensor | None, size: int, groups: int) -> Tensor:
    """``[1, heads, T, D]`` as ``[N, groups, heads / groups * size, D]``.

    Windows are consecutive tokens, or those of ``index``. Rows are gathered by token and head at
    once, straight into the order of the products.
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
    """Where each query's first head lies in ``[windows, heads, size]``, one after the other."""
    window = torch.arange(windows, device=device)[:, None] * (heads * size)
    return (window + torch.arange(size, device=device)).reshape(-1)


def _additive(seen: Tensor) -> Tensor:
    """0 where ``seen``, the lowest float32 elsewhere."""
    lowest = torch.finfo(torch.float32).min
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, lowest)


AttentionInterface.register(IMPLEMENTATION, packed_attention)
AttentionMaskInterface.register(IMPLEMENTATION, lambda *_, **__: None)
