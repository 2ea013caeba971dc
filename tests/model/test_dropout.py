"""Dropout of a recommender: where it is applied, and only in training."""

import pytest
import torch
from torch import Tensor

from slmc.model import packing, random_models
from slmc.model.recommender import RecommenderConfig, SequentialRecommender

KINDS = ("llama", "qwen3", "gemma2", "phi3")
TOKENS = torch.tensor([1, 2, 3, 4, 5, 6])


def recommender(kind: str = "llama") -> SequentialRecommender:
    torch.manual_seed(0)
    decoder = {"hidden": 32, "intermediate": 64, "head_dim": 8}
    return random_models.recommender(kind, decoder, num_items=9, item_dim=8)


def states(model: SequentialRecommender, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    segments, positions = torch.ones(1, 6, dtype=torch.long), torch.arange(6)[None]
    with torch.no_grad():
        return model.hidden_states(TOKENS, packing.rows(segments, positions))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["residual", "attention"])
def test_dropout_is_applied_only_in_training(kind: str, where: str) -> None:
    model = recommender(kind)
    plain = states(model.eval())
    model.set_dropout(0.0, 0.5 * (where == "residual"), 0.5 * (where == "attention"))
    assert torch.equal(states(model), plain)
    model.train()
    first, second = states(model, 1), states(model, 2)
    assert not torch.equal(first, plain) and not torch.equal(first, second)
    assert torch.equal(states(model, 1), first)
    assert torch.equal(states(model.eval()), plain)


def test_without_dropout_training_gives_the_same_states() -> None:
    model = recommender()
    plain = states(model.eval())
    assert torch.equal(states(model.train()), plain)


def test_residual_dropout_drops_outputs_of_attention_and_mlp() -> None:
    model = recommender().train()
    model.set_dropout(0.0, 0.999999, 0.0)  # almost surely everything
    inputs = model.embed(TOKENS)
    assert torch.allclose(states(model), model.backbone.norm(inputs), atol=1e-6)


def test_dropout_is_stored_in_the_config() -> None:
    model = recommender()
    model.set_dropout(0.25, 0.125, 0.5)
    again = RecommenderConfig.from_dict(model.config.to_dict())
    assert (again.dropout, again.residual_dropout, again.attention_dropout) == (0.25, 0.125, 0.5)
    assert model.dropout.p == 0.25
