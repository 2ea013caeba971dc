"""Choices of layers by hand, and models that have only these layers."""

from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from prunable import KINDS, build, some_ids

from slmc.model.layers import (
    by_influence,
    decoder_with_layers,
    first,
    renumbered,
    skipping,
    spaced,
    with_layers,
    without_run,
)
from slmc.model.recommender import SequentialRecommender

FLOAT32 = 1e-5


def test_the_first() -> None:
    assert first(3) == (0, 1, 2)


@pytest.mark.parametrize(
    ("depth", "keep", "layers"),
    [
        (8, 1, (0,)),
        (8, 2, (0, 7)),
        (8, 3, (0, 4, 7)),
        (8, 4, (0, 2, 5, 7)),
        (30, 4, (0, 10, 19, 29)),
        (4, 4, (0, 1, 2, 3)),
        (1, 1, (0,)),
    ],
)
def test_evenly_spaced(depth: int, keep: int, layers: tuple[int, ...]) -> None:
    assert spaced(depth, keep) == layers


def test_evenly_spaced_layers_differ_at_every_depth() -> None:
    for depth in range(1, 40):
        for keep in range(2, depth + 1):
            layers = spaced(depth, keep)
            gaps = [b - a for a, b in pairwise(layers)]
            assert layers[0] == 0 and layers[-1] == depth - 1
            assert max(gaps) - min(gaps) <= 1 and min(gaps) >= 1


def test_the_most_influential_stay_in_their_order() -> None:
    assert by_influence([0.3, 0.1, 0.2, 0.4], 3) == (0, 2, 3)
    assert by_influence([0.3, 0.1, 0.2, 0.4], 1) == (3,)
    assert by_influence([0.1, 0.1, 0.1], 2) == (0, 1)


def test_the_run_that_turns_the_state_least_is_removed() -> None:
    angular = [
        [0.0, 0.4, 0.5, 0.1],
        [0.4, 0.0, 0.2, 0.3],
        [0.5, 0.2, 0.0, 0.2],
        [0.1, 0.3, 0.2, 0.0],
    ]
    assert without_run(angular, 3) == (0, 1, 2)
    assert without_run(angular, 2) == (0, 1)  # 1 to 2 and 2 to 3 tie: the later layer goes
    assert without_run(angular, 1) == (0,)  # 1 to 3 with 0.3, 0 to 2 with 0.5


def test_names_of_tensors_get_new_numbers() -> None:
    names = ["layers.0.a", "x.layers.1.mlp.w", "layers.10.b", "item_embeddings.weight", "norm.w"]
    assert renumbered(dict.fromkeys(names, 1), (1, 10)) == {
        "x.layers.0.mlp.w": 1,
        "layers.1.b": 1,
        "item_embeddings.weight": 1,
        "norm.w": 1,
    }


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_model_of_some_layers_computes_what_skipping_the_others_does(kind: str) -> None:
    model = build(kind, layers=4)
    with skipping(model.layers, [0, 2]):
        expected = model.user_vectors(some_ids())
    small = with_layers(model, (1, 3)).eval()
    assert len(small.layers) == 2
    assert torch.allclose(small.user_vectors(some_ids()), expected, atol=FLOAT32)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "smollm3"])
@torch.no_grad()
def test_a_decoder_of_some_layers_does_too(kind: str) -> None:
    model = build(kind, layers=4)
    expected = with_layers(model, (0, 3)).eval().user_vectors(some_ids())
    before = deepcopy(model.backbone.state_dict())
    decoder = decoder_with_layers(model.backbone, (0, 3))
    config = deepcopy(model.config)
    config.backbone_config = decoder.config
    small = SequentialRecommender(config, decoder).eval()
    own = {n: t for n, t in model.state_dict().items() if not n.startswith("backbone.")}
    assert not small.load_state_dict(own, strict=False).unexpected_keys
    assert torch.allclose(small.user_vectors(some_ids()), expected, atol=FLOAT32)
    assert all(torch.equal(before[n], t) for n, t in model.backbone.state_dict().items())
