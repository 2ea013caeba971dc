"""SASRec (Kang & McAuley 2018, arXiv 1808.09781) with cross-entropy over the whole catalogue.

The baseline that a recommender on an LLM has to beat, and the source of its item table. With
the full softmax it is a much stronger baseline than with the sampled loss of the paper (Klenitskiy
& Vasilev 2023, arXiv 2309.07602). Pre-norm, GELU, learned positions; letters as in
:mod:`slmc.model.recommender`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from slmc.model import packing
from slmc.model.packing import Packing, Prefix
from slmc.model.types import name_with_import, register

FORMER_TYPE = "slmc_sasrec"


class SasrecModelConfig(PreTrainedConfig):
    """Config of a :class:`Sasrec`."""

    model_type = name_with_import(FORMER_TYPE)

    def __init__(
        self,
        num_items: int = 1,
        item_dim: int = 64,
        history: int = 50,
        num_layers: int = 2,
        num_heads: int = 2,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        """Store the fields."""
        self.num_items = num_items
        self.item_dim = item_dim
        self.history = history
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.dropout = dropout
        super().__init__(**kwargs)


class SasrecLayer(nn.Module):
    """A pre-norm transformer layer of width ``d``."""

    def __init__(self, config: SasrecModelConfig, index: int) -> None:
        """Build attention and feed-forward of layer number ``index``."""
        super().__init__()
        width = config.item_dim
        self.layer_idx = index
        self.heads = config.num_heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.feed_norm = nn.LayerNorm(width)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, layout: Packing) -> Tensor:
        """Return hidden states ``[1, T, d]`` after the layer."""
        q, k, v = self.qkv(self.attention_norm(x)).chunk(3, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        mixed, _ = packing.packed_attention(self, q, k, v, None, packing=layout)
        x = x + self.dropout(self.attention_out(mixed.flatten(2)))
        out: Tensor = x + self.dropout(self.feed(self.feed_norm(x)))
        return out


class Sasrec(PreTrainedModel):
    """Ranks a catalogue for a history of items; rows are 1-based, row 0 is padding."""

    config_class = SasrecModelConfig
    main_input_name = "item_ids"
    config: SasrecModelConfig
    prefix: Prefix = ()
    """Keys and values of a prompt; a SASRec has none."""
    serving: bool = False
    """Whether :meth:`user_vectors` computes the last layer for last tokens only."""

    def __init__(self, config: SasrecModelConfig) -> None:
        """Build the modules."""
        super().__init__(config)
        self.item_embeddings = nn.Embedding(config.num_items + 1, config.item_dim, padding_idx=0)
        self.position_embeddings = nn.Embedding(config.history, config.item_dim)
        self.layers = nn.ModuleList(
            SasrecLayer(config, index) for index in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.item_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
            elif module.padding_idx is not None:
                with torch.no_grad():
                    module.weight[module.padding_idx].zero_()

    def set_dropout(self, share: float) -> None:
        """Set the dropout of all modules for the following training."""
        self.config.dropout = share
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = share

    def hidden_states(self, tokens: Tensor, layout: Packing) -> Tensor:
        """Return hidden states after the final norm, ``[T, d]``, of packed item rows ``[T]``."""
        x = self.item_embeddings(tokens)[None] + self.position_embeddings(layout.positions)
        x = self.dropout(x)
        for layer in self.layers:
            x = layer(x, layout)
        states: Tensor = self.norm(x)[0]
        return states

    def head(self, states: Tensor) -> Tensor:
        """Return user vectors, which are the final hidden states."""
        return states

    def user_vectors(self, item_ids: Tensor) -> Tensor:
        """Return user vectors ``[B, d]`` of histories ``[B, L]``, padded with 0 on the left.

        Padding is not computed. An empty history, a row of padding, is scored as one padding item.
        """
        real = packing.real_items(item_ids)
        place, lengths = real.nonzero(), real.sum(dim=1)
        if torch.compiler.is_exporting():
            # torch.export specialises sizes 0 and 1; the ONNX graph does not have this bound.
            torch._check(place.shape[0] >= 2)
        layout = self._stream(lengths, place[:, 0], item_ids.shape[1])
        states = self.hidden_states(item_ids[place[:, 0], place[:, 1]], layout)
        return self.head(states[lengths.cumsum(0) - 1])

    def padded_user_vectors(self, item_ids: Tensor) -> Tensor:
        """As :meth:`user_vectors`, but computes padding too, with standard operators only."""
        real = packing.real_items(item_ids).long()
        positions = (real.cumsum(dim=1) - 1).clamp(min=0)
        states = self.hidden_states(item_ids.reshape(-1), packing.rows(real, positions))
        return self.head(states.reshape(*item_ids.shape, -1)[:, -1])

    def prefix_states(self) -> Prefix:
        """Return no keys and values: a SASRec has no prompt."""
        return ()

    def _stream(self, lengths: Tensor, row_of_token: Tensor, longest: int) -> Packing:
        if not self.serving:
            return packing.stream(lengths, row_of_token, longest)
        return packing.serving(lengths, row_of_token, longest, len(self.layers))

    def item_vectors(self) -> Tensor:
        """Return item vectors ``[V + 1, d]``; row 0 is padding and is never ranked."""
        return self.item_embeddings.weight

    def forward(self, item_ids: Tensor) -> Tensor:
        """Return scores ``[B, V + 1]`` of all items for histories ``[B, L]``; row 0 is -inf."""
        scores = self.user_vectors(item_ids) @ self.item_vectors()[1:].T
        return nn.functional.pad(scores, (1, 0), value=float("-inf"))


register(SasrecModelConfig, Sasrec, FORMER_TYPE)
