"""Decoders that are refused, since histories of a batch would change each other's scores."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from slmc.errors import UsageError
from slmc.model import backbone, decoders, packing, random_models, selfcheck
from slmc.model.loading import check_decoder
from slmc.model.silence import silence_transformers

SIZES: dict[str, Any] = {
    "hidden": 32, "intermediate": 64, "vocab_size": 8, "pad_token_id": None,
}  # fmt: skip
SHAPE = "layers=2&hidden=32&heads=4&kv_heads=2&intermediate=64"
REMEDY = "Name an attention-only decoder such as Llama, Qwen 3, Gemma, Mistral, Phi or SmolLM."

OTHER_KINDS: list[tuple[str, dict[str, Any], str]] = [
    ("lfm2", {"layer_types": ["conv", "full_attention"]}, "has layers of conv, but only attention"),
    ("qwen3_5_text", {}, "has layers of linear_attention, but only attention is supported."),
    ("qwen3_next", {}, "has layers of linear_attention, but only attention is supported."),
    ("olmo_hybrid", {}, "has layers of linear_attention, but only attention is supported."),
    ("minimax", {}, "has layers of linear_attention, but only attention is supported."),
    (
        "recurrent_gemma",
        {"layers": 3},
        "has layers of recurrent, but only attention is supported.",
    ),
    ("falcon_h1", {}, "has layers of hybrid, but only attention is supported."),
    (
        "bamba",
        {"mamba_n_heads": 8},
        "has layers of linear_attention, but only attention is supported.",
    ),
    ("llama4_text", {}, "has layers of chunked_attention, but only attention is supported."),
    ("mixtral", {}, "is a mixture of experts (MixtralSparseMoeBlock), which is not supported."),
    ("qwen3_moe", {}, "is a mixture of experts (Qwen3MoeSparseMoeBlock), which is not supported."),
    ("jetmoe", {}, "is a mixture of experts (JetMoeMoE), which is not supported."),
    ("aria_text", {}, "is a mixture of experts (AriaTextMoELayer), which is not supported."),
    ("gpt_oss", {}, "is a mixture of experts (GptOssTopKRouter), which is not supported."),
    ("gpt_neox", {}, "has no token table named embed_tokens."),
]
BY_SELF_CHECK: list[tuple[str, str]] = [
    ("doge", "passes attention_mask to its attention, which packed attention does not support."),
    ("granite_swa", "passes s_aux to its attention, which packed attention does not support."),
    ("nemotron", "cannot compute packed histories (it does not pass the packing to its attention"),
    ("stablelm", "cannot compute packed histories (it does not pass the packing to its attention"),
]


@pytest.mark.parametrize(("kind", "options", "message"), OTHER_KINDS)
def test_a_decoder_with_other_layers_than_attention(
    kind: str, options: dict[str, Any], message: str
) -> None:
    config = random_models.llm_config(kind, **SIZES | options)
    with pytest.raises(UsageError) as caught:
        decoders.build_on_meta(backbone.truncated(config, 2, kind), f"backbone {kind}")
    assert message in caught.value.what and caught.value.what.startswith(f"backbone {kind}: ")
    assert caught.value.remedy == REMEDY and caught.value.exit_code == 2


@pytest.mark.parametrize(("kind", "message"), BY_SELF_CHECK)
def test_arguments_that_packed_attention_does_not_support(kind: str, message: str) -> None:
    name = f"random://{kind}?{SHAPE}"
    for find in (backbone.load, backbone.check):
        with pytest.raises(UsageError) as caught:
            find(name)
        assert caught.value.what.startswith(f"backbone {name}: {kind} {message}")


def test_the_sinks_of_a_dense_decoder_are_refused_from_a_directory(tmp_path: Path) -> None:
    config = random_models.llm_config("granite_swa", **SIZES)
    with silence_transformers():
        AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="passes s_aux to its attention"):
        backbone.load(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "random://llama?layers=2&hidden=33&heads=4",
            "llama cannot be built with these sizes (Class valid",
        ),
        ("random://gemma3?layers=2", "gemma3 is more than a decoder: its decoder is gemma3_text"),
        ("random://gemma3n_text?layers=2&hidden=32", "gemma3n_text"),
    ],
)
def test_invalid_sizes(name: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        backbone.load(name)
    assert message in caught.value.what


def decoder(kind: str = "llama", **options: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModel.from_config(
        random_models.llm_config(kind, **SIZES | options)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter * 8)
    return model.eval()


SUPPORTED: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("mistral", {"sliding_window": 4096}),
    ("gemma2", {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4096}),
    ("qwen3", {"head_dim": 8}),
]


@pytest.mark.parametrize(("kind", "options"), SUPPORTED)
def test_a_supported_decoder_passes_and_is_not_changed(kind: str, options: dict[str, Any]) -> None:
    model = decoder(kind, **options)
    settings, layers = model.config.to_dict(), list(model.layers)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    selfcheck.check(model, "it")
    assert torch.equal(torch.rand(2), expected)  # the random state of the caller is unchanged
    assert model.config.to_dict() == settings and list(model.layers) == layers
    assert model.config._attn_implementation != packing.IMPLEMENTATION


Change = Callable[[PreTrainedModel], None]


def carry_over(model: PreTrainedModel) -> None:
    """Add to each token a part of the previous one."""

    def mixed(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return output + 0.01 * output.roll(1, dims=1)

    model.layers[1].mlp.register_forward_hook(mixed)


def scale_later(model: PreTrainedModel) -> None:
    """Scale queries by the position of the token in the stream."""

    def scaled(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return output * (1 + 0.01 * torch.arange(output.shape[1])[:, None])

    model.layers[0].self_attn.q_proj.register_forward_hook(scaled)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            carry_over,
            "llama",
            "llama cannot be packed: a history changes the states of the next one",
        ),
        (
            scale_later,
            "llama",
            "llama cannot be packed: a history changes the states of the next one",
        ),
    ],
)
def test_tokens_mixed_outside_attention_are_detected(
    change: Change, kind: str, message: str
) -> None:
    model = decoder(kind)
    change(model)
    with pytest.raises(UsageError) as caught:
        selfcheck.check(model, "it")
    assert caught.value.what.startswith(f"it: {message}") and caught.value.remedy == REMEDY


def test_a_sliding_window_that_packed_attention_ignores(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder("gemma2", head_dim=8, query_pre_attn_scalar=8, sliding_window=4096)
    plain = packing.packed_attention

    def without_window(*args: Any, sliding_window: int | None = None, **others: Any) -> Any:
        return plain(*args, **others)

    monkeypatch.setitem(
        selfcheck.packing.AttentionInterface._global_mapping, packing.IMPLEMENTATION, without_window
    )
    with pytest.raises(UsageError, match="its attention differs from packed"):
        selfcheck.check(model, "it")


@pytest.mark.parametrize(
    ("rope", "bound"),
    [
        ({"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, 12),
        (
            {"rope_type": "longrope", "factor": 2.0, "rope_theta": 1e4, "short_factor": [1.0] * 4,
             "long_factor": [2.0] * 4, "original_max_position_embeddings": 12},
            12,
        ),
    ],
)  # fmt: skip
def test_rotary_positions_that_change_within_the_history(rope: dict[str, Any], bound: int) -> None:
    positions = bound if rope["rope_type"] == "dynamic" else 4 * bound
    options = {"max_position_embeddings": positions, "rope_parameters": rope}
    shape = {"num_items": 5, "history": bound - 2}
    model = random_models.recommender(decoder=SIZES | options, **shape)
    check_decoder(model, "it")
    model.config.prefix_length = 3
    with pytest.raises(UsageError) as caught:
        check_decoder(model, "it")
    assert caught.value.what == (
        f"it: its rotary positions ({rope['rope_type']}) change beyond 12 tokens, and "
        "histories have up to 13: a long one would change the scores of others."
    )
    for parameter in model.backbone.parameters():
        parameter.data *= 8
    # The refusal is right: a long history changes the scores of a short one in its batch.
    short, long = torch.zeros(1, 20, dtype=torch.long), torch.full((1, 20), 3)
    short[0, -4:] = torch.tensor([1, 2, 3, 4])
    with torch.no_grad():
        alone = model.user_vectors(short)[0]
        together = model.user_vectors(torch.cat([short, long]))[0]
    assert (alone - together).abs().max() > 1e-4 * alone.abs().max()


def test_attention_arguments_without_effect_are_accepted() -> None:
    q = torch.randn(1, 2, 3, 4)
    place = torch.arange(3)[None]
    layout = packing.rows(torch.ones_like(place), place)
    plain = packing.packed_attention(nn.Module(), q, q, q, None, packing=layout)[0]
    more = {"s_aux": None, "position_ids": place, "is_causal": True, "use_cache": False}
    same = packing.packed_attention(nn.Module(), q, q, q, None, packing=layout, **more)[0]
    assert torch.equal(plain, same)
    for other in ({"s_aux": torch.zeros(2)}, {"is_causal": False}, {"bias": 1}):
        with pytest.raises(UsageError, match=f"passes {next(iter(other))} to its attention"):
            packing.packed_attention(nn.Module(), q, q, q, None, packing=layout, **other)


def test_layers_of_each_kind_are_checked() -> None:
    kinds = ["sliding_attention"] * 3 + ["full_attention"] * 2
    options = {"head_dim": 8, "query_pre_attn_scalar": 8, "layers": 5}
    assert decoders.needed_layers(decoder("gemma3_text", layer_types=kinds, **options)) == 4
    assert decoders.needed_layers(decoder("llama", layers=5)) == 2
    assert decoders.needed_layers(decoder("llama", layers=1)) == 1
