"""Which layers are removed: a search that finds the idle layer."""

import logging
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from prunable import ITEMS, build, some_histories, some_ids

from slmc.compress.prune.depth import by_search
from slmc.compress.prune.sizes import Kept
from slmc.compress.prune.width import cut
from slmc.data.batches import pad_left
from slmc.data.dataset import Targets
from slmc.evaluation.config import EvaluateConfig
from slmc.evaluation.evaluate import rank
from slmc.evaluation.results import protocol, values
from slmc.evaluation.scorers import VectorScorer
from slmc.model.layers import skipping
from slmc.model.recommender import SequentialRecommender

FLOAT32 = 1e-5


def some_targets(count: int = 40) -> Targets:
    histories = some_histories(count)
    return Targets(
        users=[str(i) for i in range(count)],
        histories=histories,
        targets=np.arange(count) % ITEMS + 1,
        seen=[np.unique(h) for h in histories],
    )


def ndcg(model: SequentialRecommender, targets: Targets) -> float:
    config, counts = EvaluateConfig(split="valid", exclude_seen=False), np.ones(ITEMS + 1, int)
    table = rank(VectorScorer.of(model), targets, counts, config)
    return float(values(table, "ndcg", protocol(config)).mean())


def idle(model: SequentialRecommender, *numbers: int) -> SequentialRecommender:
    """Make layers return their input."""
    with torch.no_grad():
        for number in numbers:
            model.layers[number].get_parameter("self_attn.o_proj.weight").zero_()
            model.layers[number].get_parameter("mlp.down_proj.weight").zero_()
    return model


@torch.no_grad()
def test_skipped_layers_are_not_computed() -> None:
    model = build("gemma2", layers=3)
    expected = cut(deepcopy(model), Kept((0, 2), {})).user_vectors(some_ids())
    whole, layer = model.user_vectors(some_ids()), model.layers[1]
    calls: list[int] = []
    handle = layer.get_submodule("mlp").register_forward_hook(lambda *_: calls.append(1))
    with skipping(model.layers, [1]):
        skipped = model.user_vectors(some_ids())
    handle.remove()
    assert not calls
    assert not torch.allclose(skipped, whole, atol=0.01)
    assert torch.equal(model.user_vectors(some_ids()), whole)
    # Gemma 2 alternates kinds of attention by layer: the third keeps its own.
    assert torch.allclose(skipped, expected, atol=FLOAT32)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text"])
def test_search_removes_the_layer_that_does_nothing(kind: str) -> None:
    model = idle(build(kind, layers=4), 2)
    targets = some_targets()
    # The targets are the model's own top items, so removing any other layer lowers the NDCG.
    best = model(torch.from_numpy(pad_left(targets.histories))).argmax(dim=1).numpy()
    kept, removed = by_search(model, lambda: ndcg(model, replace(targets, targets=best)), 3)
    assert kept == (0, 1, 3)
    assert removed == [{"removed": 2, "valid_ndcg": 1.0}]


def test_search_removes_at_each_step_the_layer_with_the_smallest_loss(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = build("llama", layers=4)

    def ndcg_of(layers: tuple[int, ...]) -> float:
        return ndcg(cut(deepcopy(model), Kept(layers, {})), some_targets())

    expected, left = [], (0, 1, 2, 3)
    while len(left) > 1:
        by_layer = {i: ndcg_of(tuple(j for j in left if j != i)) for i in left}
        idlest = max(by_layer, key=lambda i: by_layer[i])
        left = tuple(j for j in left if j != idlest)
        expected.append({"removed": idlest, "valid_ndcg": pytest.approx(by_layer[idlest])})
    with caplog.at_level(logging.DEBUG, logger="slmc.prune"):
        kept, removed = by_search(model, lambda: ndcg(model, some_targets()), 1)
    assert (kept, removed) == (left, expected)
    steps = [r.__dict__["progress"] for r in caplog.records if "progress" in r.__dict__]
    assert [s["done"] for s in steps] == list(range(1, 10)) and steps[0]["total"] == 9


def test_ties_remove_the_later_layer() -> None:
    kept, removed = by_search(build("llama", layers=3), lambda: 0.5, 2)
    assert kept == (0, 1) and removed == [{"removed": 2, "valid_ndcg": 0.5}]


def test_a_sample_of_many_users() -> None:
    targets = some_targets()
    assert targets.sample(40, 1) is targets
    some, again, other = (targets.sample(10, seed) for seed in (1, 1, 2))
    assert some.users == again.users != other.users
    assert len(set(some.users)) == len(some.targets) == 10
    for user, history, target in zip(some.users, some.histories, some.targets, strict=True):
        assert history is targets.histories[int(user)] and target == targets.targets[int(user)]
