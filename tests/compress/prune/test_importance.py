"""Importance against the definitions, in plain loops and float64."""

from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from prunable import CHANNELS, HEADS, HISTORY, KINDS, WIDTH, build, channels_of, groups_of
from prunable import some_histories as histories
from torch import Tensor, nn

from slmc.compress.prune import importance
from slmc.compress.prune.importance import Calibration, activation, magnitude, scores, taylor
from slmc.compress.prune.units import Units
from slmc.data.batches import pad_left
from slmc.errors import BrokenRunError, UndecidedError
from slmc.model.recommender import SequentialRecommender

FLOAT32 = 1e-4
"""Relative tolerance: float32 sums in another order."""
SPLIT = ("llama", "qwen2", "gemma2")


def whole_sequences() -> list[np.ndarray]:
    """Histories of one length, so that each fills a packed row."""
    return [h for h in histories(120, longest=HISTORY + 1) if h.size == HISTORY + 1][:4]


def plain(
    layer: nn.Module, of: dict[str, Tensor], kv_heads: int
) -> tuple[list[float], list[float]]:
    """Sums over the weights of each KV group and channel, by loops over heads and rows."""
    groups, served = [0.0] * kv_heads, HEADS // kv_heads
    for group in range(kv_heads):
        for head in range(HEADS):
            if head // served == group:
                for row in range(head * WIDTH, (head + 1) * WIDTH):
                    groups[group] += of["self_attn.q_proj.weight"][row].sum().item()
                    groups[group] += of["self_attn.o_proj.weight"][:, row].sum().item()
                    if "self_attn.q_proj.bias" in of:
                        groups[group] += of["self_attn.q_proj.bias"][row].item()
        for row in range(group * WIDTH, (group + 1) * WIDTH):
            for name in ("k_proj", "v_proj"):
                groups[group] += of[f"self_attn.{name}.weight"][row].sum().item()
                if f"self_attn.{name}.bias" in of:
                    groups[group] += of[f"self_attn.{name}.bias"][row].item()
    channels = [
        of["mlp.gate_proj.weight"][c].sum().item()
        + of["mlp.up_proj.weight"][c].sum().item()
        + of["mlp.down_proj.weight"][:, c].sum().item()
        for c in range(CHANNELS)
    ]
    return groups, channels


@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize("kind", SPLIT)
def test_magnitude(kind: str, kv_heads: int) -> None:
    model = build(kind, kv_heads=kv_heads)
    for layer, groups, channels in zip(
        model.layers, groups_of(model), channels_of(model), strict=True
    ):
        squares = {n: p.detach().double().square() for n, p in layer.named_parameters()}
        by_group, by_channel = plain(layer, squares, kv_heads)
        assert magnitude(groups).tolist() == pytest.approx(by_group, rel=FLOAT32)
        assert magnitude(channels).tolist() == pytest.approx(by_channel, rel=FLOAT32)


@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize("kind", SPLIT)
def test_taylor(kind: str, kv_heads: int) -> None:
    model = build(kind, kv_heads=kv_heads)
    sequences = whole_sequences()
    units = [*groups_of(model), *channels_of(model)]
    scores = taylor(model, units, Calibration(sequences, seed=0))
    assert all(p.grad is None for p in model.parameters())
    # One position at a time is predicted, from the items before it.
    model.requires_grad_(True)
    losses = []
    for sequence in sequences:
        for end in range(1, len(sequence)):
            wanted = int(sequence[end]) - 1
            logits = model(torch.from_numpy(pad_left([sequence[:end]])))[:, 1:]
            losses.append(F.cross_entropy(logits, torch.tensor([wanted])))
    torch.stack(losses).mean().backward()
    for number, layer in enumerate(model.layers):
        moved = {
            n: (p.detach().double() * p.grad.double()).abs()
            for n, p in layer.named_parameters()
            if p.grad is not None
        }
        by_group, by_channel = plain(layer, moved, kv_heads)
        assert scores[number].tolist() == pytest.approx(by_group, rel=FLOAT32)
        assert scores[2 + number].tolist() == pytest.approx(by_channel, rel=FLOAT32)


@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_activation(kind: str, kv_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "BATCH", 5)
    model = build(kind, kv_heads=kv_heads)
    units = [*groups_of(model), *channels_of(model)]
    scores = activation(model, units, histories())
    for number, layer in enumerate(model.layers):
        for part, got, size in (
            ("self_attn.o_proj", scores[number], HEADS // kv_heads * WIDTH),
            ("mlp.down_proj", scores[2 + number], 1),
        ):
            linear = layer.get_submodule(part)
            assert isinstance(linear, nn.Linear)
            seen: list[Tensor] = []
            handle = linear.register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0][0]))
            for history in histories():
                model.user_vectors(torch.from_numpy(pad_left([history])))
            handle.remove()
            inputs, weight = torch.cat(seen).double(), linear.weight.double()
            assert len(inputs) == sum(h.size for h in histories())
            expected = [
                (inputs[:, u * size : (u + 1) * size] @ weight[:, u * size : (u + 1) * size].T)
                .square()
                .sum(dim=1)
                .mean()
                .item()
                for u in range(linear.in_features // size)
            ]
            assert got.tolist() == pytest.approx(expected, rel=FLOAT32)


@pytest.mark.parametrize("method", ["activation", "taylor"])
def test_a_prompt_takes_part(method: Literal["activation", "taylor"]) -> None:
    model = build("llama", prefix_length=2, suffix_length=1)
    units = [*groups_of(model), *channels_of(model)]
    first = scores(method, model, units, Calibration(histories(), seed=0))
    model.prompt.copy_(model.prompt.roll(1, dims=1))
    other = scores(method, model, units, Calibration(histories(), seed=0))
    assert all(one.min() > 0 for one in first)
    assert not torch.allclose(first[0], other[0], rtol=FLOAT32)


def test_a_unit_without_contribution_has_no_importance() -> None:
    model = build("llama")
    with torch.no_grad():
        down = model.layers[0].get_parameter("mlp.down_proj.weight")
        down[:, 7] = 0
    on = Calibration(histories(), seed=0)
    assert scores("activation", model, channels_of(model), on)[0][7] == 0
    # The rows of an unused channel have no gradient; its output column is zero.
    assert scores("taylor", model, channels_of(model), on)[0][7] == 0
    assert scores("magnitude", model, channels_of(model), on)[0][7] > 0


def test_requires_grad_is_restored() -> None:
    model = build("llama")
    model.item_embeddings.requires_grad_(False)
    before = {n: p.requires_grad for n, p in model.named_parameters()}
    taylor(model, groups_of(model), Calibration(histories(), seed=0))
    assert before == {n: p.requires_grad for n, p in model.named_parameters()}
    assert set(before.values()) == {True, False}


def overflowing(model: SequentialRecommender) -> list[Units]:
    with torch.no_grad():
        model.layers[0].get_parameter("mlp.up_proj.weight").fill_(1e38)
    return channels_of(model)


@pytest.mark.parametrize("method", ["magnitude", "activation", "taylor"])
def test_importance_that_is_not_finite(
    method: Literal["magnitude", "activation", "taylor"],
) -> None:
    model = build("llama")
    with pytest.raises(BrokenRunError) as caught:
        scores(method, model, overflowing(model), Calibration(histories(), seed=0))
    assert caught.value.what == (f"prune: an importance by {method} is not a finite number.")


def test_nothing_to_predict() -> None:
    model, alone = build("llama"), [np.array([3], dtype=np.int32)] * 4
    with pytest.raises(UndecidedError) as caught:
        taylor(model, groups_of(model), Calibration(alone, seed=0))
    assert caught.value.what == (
        "prune: no calibration history has two items, so there is no next item to predict."
    )
