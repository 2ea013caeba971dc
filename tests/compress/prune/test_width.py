"""Surgery: the smaller model is the full one with the rest masked, in every kind of decoder."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from prunable import CHANNELS, HEADS, KINDS, WIDTH, build, some_ids
from torch import nn
from transformers import AutoModel

from slmc.compress.prune.sizes import Kept
from slmc.compress.prune.width import check_cuttable, check_same, cut, masked
from slmc.errors import BrokenRunError, UsageError
from slmc.model import backbone
from slmc.model.recommender import SequentialRecommender

MASKED = 1e-5
"""Largest difference to the masked model, of user vectors whose entries are about 1."""
CHANNELS_KEPT = [tuple(range(0, CHANNELS, 3)), tuple(range(5, 5 + CHANNELS // 3))]


def some_kept(kv_heads: int) -> Kept:
    groups = [(1,), (0,)] if kv_heads == 2 else [(0, 3), (1, 2)]
    return Kept((0, 1), {"heads": groups, "ffn": CHANNELS_KEPT})


def zeroed(model: SequentialRecommender, kept: Kept) -> SequentialRecommender:
    """A copy in which what goes is multiplied by 0, written out head by head."""
    copy = deepcopy(model)
    query_heads = HEADS // copy.config.backbone_config.num_key_value_heads
    with torch.no_grad():
        for number, layer in enumerate(copy.layers):
            for head in range(HEADS):
                if head // query_heads not in kept.units["heads"][number]:
                    o_proj = layer.get_parameter("self_attn.o_proj.weight")
                    o_proj[:, head * WIDTH : (head + 1) * WIDTH] = 0
            for channel in range(CHANNELS):
                if channel not in kept.units["ffn"][number]:
                    layer.get_parameter("mlp.down_proj.weight")[:, channel] = 0
    return copy


@pytest.mark.parametrize("kv_heads", [2, 4], ids=["grouped", "multi-head"])
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_the_pruned_model_is_the_masked_one(kind: str, kv_heads: int) -> None:
    model, kept = build(kind, kv_heads=kv_heads), some_kept(kv_heads)
    whole = model.user_vectors(some_ids())
    expected = zeroed(model, kept).user_vectors(some_ids())
    assert 0.1 < expected.abs().mean() < 10 and not torch.allclose(whole, expected, atol=0.1)
    with masked(model, kept):
        assert torch.allclose(model.user_vectors(some_ids()), expected, atol=MASKED)
    assert torch.equal(model.user_vectors(some_ids()), whole)
    small = cut(model, kept)
    assert (small.user_vectors(some_ids()) - expected).abs().max() <= MASKED


@pytest.mark.parametrize("kv_heads", [2, 4], ids=["grouped", "multi-head"])
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_the_pruned_model_is_a_plain_smaller_one(kind: str, kv_heads: int, tmp_path: Path) -> None:
    small = cut(build(kind, kv_heads=kv_heads), some_kept(kv_heads))
    small.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).eval()
    assert torch.equal(again.user_vectors(some_ids()), small.user_vectors(some_ids()))
    config = again.config.backbone_config
    assert config.num_attention_heads == 2 and config.head_dim == WIDTH
    assert config.num_key_value_heads == kv_heads // 2
    assert config.intermediate_size == CHANNELS // 3
    for layer in again.layers:
        assert layer.self_attn.num_key_value_groups == HEADS // kv_heads
        assert layer.self_attn.o_proj.weight.shape == (32, 2 * WIDTH)
        assert layer.mlp.down_proj.weight.shape == (32, CHANNELS // 3)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_layers_that_stay_are_as_they_were(kind: str) -> None:
    model = build(kind, layers=5)
    with torch.no_grad():  # layers that add nothing, whose going changes nothing
        for number in (1, 3):
            model.layers[number].get_parameter("self_attn.o_proj.weight").zero_()
            model.layers[number].get_parameter("mlp.down_proj.weight").zero_()
    expected, before = model.user_vectors(some_ids()), deepcopy(model.state_dict())
    types = getattr(model.config.backbone_config, "layer_types", None)
    small = cut(model, Kept((0, 2, 4), {}))
    assert torch.allclose(small.user_vectors(some_ids()), expected, atol=MASKED)
    assert small.config.backbone_config.num_hidden_layers == len(small.layers) == 3
    if types:
        assert small.config.backbone_config.layer_types == [types[i] for i in (0, 2, 4)]
    for name, tensor in small.state_dict().items():
        for new, old in ((0, 0), (1, 2), (2, 4)):
            if f"layers.{new}." in name:
                assert torch.equal(tensor, before[name.replace(f".{new}.", f".{old}.", 1)])
        if "layers." not in name:
            assert torch.equal(tensor, before[name])


@torch.inference_mode()
def test_depth_and_width_together() -> None:
    model = build("gemma3_text", layers=3)
    kept = Kept((0, 2), {"heads": [(1,), (0,)], "ffn": CHANNELS_KEPT})
    with masked(model, kept):
        expected = model.user_vectors(some_ids())
    assert (cut(model, kept).user_vectors(some_ids()) - expected).abs().max() <= MASKED


@torch.inference_mode()
def test_a_prompt_stays() -> None:
    model = build("llama", prefix_length=2, suffix_length=1)
    expected = zeroed(model, some_kept(2)).user_vectors(some_ids())
    small = cut(model, some_kept(2))
    assert (small.user_vectors(some_ids()) - expected).abs().max() <= MASKED


def test_a_norm_over_all_heads_is_refused_by_name() -> None:
    model = build("olmo2")
    with pytest.raises(UsageError) as caught:
        cut(model, some_kept(2))
    assert caught.value.what == ("prune: heads cannot prune the attention of olmo2.")
    assert caught.value.remedy == (
        "Leave heads out, or prune a Llama, Qwen, Gemma, Mistral or Phi-3."
    )


@pytest.mark.parametrize("kind", ["helium", "gemma4_unified_text"])
def test_what_a_config_cannot_say_is_refused_by_name(kind: str) -> None:
    """Helium's o_proj is square whatever its heads; Gemma 4 has head sizes of each layer's own."""
    shape = "layers=2&hidden=64&heads=4&kv_heads=2&intermediate=128&head_dim=16"
    with pytest.raises(UsageError) as caught:
        check_cuttable(backbone.load(f"random://{kind}?{shape}").model, "heads")
    assert caught.value.what == (f"prune: heads cannot prune the attention of {kind}.")


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_config_can_say_is_not_refused(kind: str) -> None:
    for field in ("heads", "ffn"):
        check_cuttable(build(kind).backbone, field)


def test_another_mlp_is_refused_by_name() -> None:
    model = build("llama")
    model.layers[1].mlp = nn.Sequential(nn.Linear(32, 48), nn.Linear(48, 32))
    with pytest.raises(UsageError) as caught:
        cut(model, some_kept(2))
    assert caught.value.what == "prune: ffn cannot prune the MLP of llama."


def test_a_smaller_model_that_is_another_is_no_result() -> None:
    expected = torch.tensor([[1.0, -4.0]])
    check_same(expected * (1 + 2e-5), expected, "llama")
    for wrong in (expected * 1.1, expected * float("nan")):
        with pytest.raises(BrokenRunError) as caught:
            check_same(wrong, expected, "llama")
        assert "differs from the masked one" in caught.value.what
