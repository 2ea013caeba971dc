"""The sequential recommender: item vectors, decoder layers of an LLM, and a user vector.

E4SRec (Li et al. 2023, arXiv 2312.02443), the model that SLMRec distils. Letters: ``B``
histories, ``L`` their length, ``V`` items, ``d`` item width, ``H`` backbone width, ``T``
tokens of a packed stream.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
)

from slmc.model import decoders, packing
from slmc.model.packing import Packing, Prefix
from slmc.model.quantized_table import QuantizedTable
from slmc.model.types import name_with_import, register

FORMER_TYPE = "slmc"


class RecommenderConfig(PreTrainedConfig):
    """Config of a :class:`SequentialRecommender`; ``backbone_config`` is that of its decoder."""

    model_type = name_with_import(FORMER_TYPE)
    final_norm: bool = True
    """Whether the decoder's norm follows its last layer; not after an early exit
    (:mod:`slmc.model.exit_heads`), whose head was trained on the states before any norm. It is
    stored only if it is false."""
    sub_configs: ClassVar[dict[str, Any]] = {"backbone_config": AutoConfig}

    def __init__(
        self,
        backbone_config: PreTrainedConfig | dict[str, Any] | None = None,
        num_items: int = 1,
        item_dim: int = 64,
        history: int = 50,
        prefix_length: int = 0,
        suffix_length: int = 0,
        dropout: float = 0.0,
        residual_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        item_bits: int | None = None,
        final_norm: bool = True,
        **kwargs: Any,
    ) -> None:
        """Store the fields; ``backbone_config`` as a ``dict`` needs a ``model_type``.

        ``dropout`` is applied after input_proj and before output_proj, ``residual_dropout`` after
        each attention and MLP of the backbone, ``attention_dropout`` to attention weights; all
        three only in training. ``item_bits`` is the width of the item table's codes, ``None`` for
        a float table.
        """
        if isinstance(backbone_config, dict):
            backbone_config = AutoConfig.for_model(**backbone_config)
        self.backbone_config: Any = backbone_config
        self.num_items = num_items
        self.item_dim = item_dim
        self.history = history
        self.prefix_length = prefix_length
        self.suffix_length = suffix_length
        self.dropout = dropout
        self.residual_dropout = residual_dropout
        self.attention_dropout = attention_dropout
        self.item_bits = item_bits
        if not final_norm:
            self.final_norm = False
        super().__init__(**kwargs)


class SequentialRecommender(PreTrainedModel):
    """Ranks a catalogue for a history of items; rows are 1-based, row 0 is padding."""

    config_class = RecommenderConfig
    main_input_name = "item_ids"
    _supports_attention_backend = True
    config: RecommenderConfig
    prompt: Tensor
    prefix: Prefix = ()
    """Result of :meth:`prefix_states` if the weights do not change any more, else empty."""
    serving: bool = False
    """Whether :meth:`user_vectors` computes the last layer for last tokens only."""

    def __init__(self, config: RecommenderConfig, decoder: PreTrainedModel | None = None) -> None:
        """Build the modules around ``decoder``, or around a new one of the config's shape."""
        super().__init__(config)
        backbone = config.backbone_config
        if backbone is None:
            raise ValueError("a recommender needs a backbone_config")
        self.item_embeddings = _item_table(config)
        self.input_proj = nn.Linear(config.item_dim, backbone.hidden_size)
        self.backbone = (
            AutoModel.from_config(backbone) if decoder is None else _marked_as_loaded(decoder)
        )
        if not config.final_norm:
            decoders.drop_final_norm(self.backbone)
        self.backbone.set_attn_implementation(packing.IMPLEMENTATION)
        # Its token table has one unused row: the inputs are items, not tokens.
        self.backbone.get_input_embeddings().requires_grad_(False)
        self.output_proj = nn.Linear(backbone.hidden_size, config.item_dim, bias=False)
        prompt = config.prefix_length + config.suffix_length
        self.register_buffer("prompt", torch.zeros(prompt, backbone.hidden_size))
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if module is self.item_embeddings and isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
            with torch.no_grad():
                module.weight[0].zero_()
        elif module in (self.input_proj, self.output_proj):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def set_dropout(self, dropout: float, residual: float, attention: float) -> None:
        """Set the dropout of :class:`RecommenderConfig` for the following training."""
        self.config.dropout = self.dropout.p = dropout
        self.config.residual_dropout, self.config.attention_dropout = residual, attention

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers of the backbone."""
        return cast(nn.ModuleList, self.backbone.layers)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return inputs of the backbone for tokens ``[T]``: item rows, or -1 - j for prompt j."""
        items = self.dropout(self.input_proj(self.item_embeddings(tokens.clamp(min=0))))
        if not len(self.prompt):
            return items
        prompts = self.prompt[(-1 - tokens).clamp(min=0)]
        return torch.where((tokens < 0)[:, None], prompts, items)

    def hidden_states(self, tokens: Tensor, layout: Packing) -> Tensor:
        """Return hidden states after the final norm, ``[T, H]``, of packed tokens ``[T]``."""
        if self.training and self.config.attention_dropout:
            layout = replace(layout, dropout=self.config.attention_dropout)
        with self._residual_dropout():
            out = self.backbone(
                inputs_embeds=self.embed(tokens)[None],
                position_ids=layout.positions,
                use_cache=False,
                packing=layout,
            )
        states: Tensor = out.last_hidden_state[0]
        return states

    @contextmanager
    def _residual_dropout(self) -> Iterator[None]:
        """In training, apply dropout to the outputs of each attention and MLP."""
        share = self.config.residual_dropout if self.training else 0.0
        handles = []

        def drop(_: nn.Module, __: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (nn.functional.dropout(output[0], share), *output[1:])
            return nn.functional.dropout(output, share)

        for layer in self.layers if share else ():
            adding = [part for part in layer.children() if _has_linear(part)]
            handles += [part.register_forward_hook(drop) for part in adding]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def head(self, states: Tensor) -> Tensor:
        """Return user vectors ``[..., d]`` of final hidden states ``[..., H]``."""
        return self.output_proj(self.dropout(states))

    def user_vectors(self, item_ids: Tensor) -> Tensor:
        """Return user vectors ``[B, d]`` of histories ``[B, L]``, padded with 0 on the left.

        Padding is not computed. An empty history, a row of padding, is scored as one padding item.
        """
        ids, real = self._with_prompt(item_ids)
        place = real.nonzero()
        if torch.compiler.is_exporting():
            # torch.export specialises sizes 0 and 1; the ONNX graph does not have this bound.
            torch._check(place.shape[0] >= 2)
        lengths = real.sum(dim=1)
        layout = self._after_prefix(self._stream(lengths, place[:, 0], ids.shape[1]))
        states = self.hidden_states(ids[place[:, 0], place[:, 1]], layout)
        return self.head(states[lengths.cumsum(0) - 1])

    def padded_user_vectors(self, item_ids: Tensor) -> Tensor:
        """As :meth:`user_vectors`, but computes padding too, with standard operators only."""
        ids, real = self._with_prompt(item_ids)
        positions = (real.long().cumsum(dim=1) - 1).clamp(min=0)
        layout = self._after_prefix(packing.rows(real.long(), positions))
        states = self.hidden_states(ids.reshape(-1), layout)
        return self.head(states.reshape(*ids.shape, -1)[:, -1])

    @torch.no_grad()
    def prefix_states(self) -> Prefix:
        """Return keys and values of the prompt before the items, the same for all histories.

        Stored as :attr:`prefix`, they replace the tokens of the prompt; empty without a prompt.
        """
        length = self.config.prefix_length
        if not length:
            return ()
        place = torch.arange(length, device=self.prompt.device)[None]
        cache = DynamicCache()  # keeps all tokens, also for layers with a sliding window
        self.backbone(
            inputs_embeds=self.prompt[None, :length],
            position_ids=place,
            past_key_values=cache,
            use_cache=True,
            packing=packing.rows(torch.ones_like(place), place),
        )
        layers: list[Any] = cache.layers
        return tuple((layer.keys[0], layer.values[0]) for layer in layers)

    def _stream(self, lengths: Tensor, row_of_token: Tensor, longest: int) -> Packing:
        if not self.serving:
            return packing.stream(lengths, row_of_token, longest)
        return packing.serving(lengths, row_of_token, longest, len(self.layers))

    def _after_prefix(self, layout: Packing) -> Packing:
        return packing.after_prefix(layout, self.prefix) if self.prefix else layout

    def _with_prompt(self, item_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens ``[B, P + L + S]`` with the prompt, and which of them are not padding.

        P is 0 if the keys and values of the prompt before the items are known.
        """
        real = packing.real_items(item_ids)
        prefix, suffix = self.config.prefix_length, self.config.suffix_length
        if not prefix + suffix:
            return item_ids, real
        batch = item_ids.shape[0]
        prompt = (-1 - torch.arange(prefix + suffix, device=item_ids.device)).expand(batch, -1)
        before, after = prompt[:, prefix if self.prefix else 0 : prefix], prompt[:, prefix:]
        ids = torch.cat([before, item_ids, after], dim=1)
        parts = [torch.ones_like(before), real, torch.ones_like(after)]
        return ids, torch.cat([part.bool() for part in parts], dim=1)

    def item_vectors(self) -> Tensor:
        """Return item vectors ``[V + 1, d]``; row 0 is padding and is never ranked."""
        return self.item_embeddings.weight

    def forward(self, item_ids: Tensor) -> Tensor:
        """Return scores ``[B, V + 1]`` of all items for histories ``[B, L]``; row 0 is -inf."""
        scores = self.user_vectors(item_ids) @ self.item_vectors()[1:].T
        return nn.functional.pad(scores, (1, 0), value=float("-inf"))

    @contextmanager
    def block_states(self, ends: tuple[int, ...]) -> Iterator[list[Tensor]]:
        """Collect the hidden states ``[T, H]`` after each of the layers ``ends``, before any norm.

        All blocks are compared at the same point: the residual stream after the last layer of the
        block, also for the last block.
        """
        states: list[Tensor] = []

        def keep(_: nn.Module, __: Any, output: Any) -> None:
            states.append((output[0] if isinstance(output, tuple) else output)[0])

        hook: Callable[..., None] = keep
        handles = [self.layers[end].register_forward_hook(hook) for end in ends]
        try:
            yield states
        finally:
            for handle in handles:
                handle.remove()


def _marked_as_loaded(decoder: PreTrainedModel) -> PreTrainedModel:
    """Mark the modules of a decoder, so that transformers does not initialise them again."""
    for module in decoder.modules():
        setattr(module, "_is_hf_initialized", True)  # noqa: B010 - no attribute of nn.Module
    return decoder


def _has_linear(module: nn.Module) -> bool:
    """Return whether a module is an attention or an MLP, not a norm."""
    return any(isinstance(part, nn.Linear) for part in module.modules())


def _item_table(config: RecommenderConfig) -> nn.Embedding | QuantizedTable:
    rows, width = config.num_items + 1, config.item_dim
    if config.item_bits is not None:
        return QuantizedTable(rows, width, config.item_bits)
    return nn.Embedding(rows, width, padding_idx=0)


register(RecommenderConfig, SequentialRecommender, FORMER_TYPE)
