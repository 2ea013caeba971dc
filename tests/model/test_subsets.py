"""User vectors of many choices of layers are those of models that have only these layers."""

import pytest
import torch
from prunable import KINDS, build, some_ids

from slmc.model.layers import first, skipping
from slmc.model.subsets import layers_computed, user_vectors

FLOAT32 = 1e-5
CHOICES = [(0, 1, 2, 3), (0,), (1, 3), (0, 1), (3,), (0, 1, 3), (0, 3)]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_each_choice_gives_what_skipping_gives(kind: str) -> None:
    model = build(kind, layers=4)
    vectors = user_vectors(model, some_ids(), CHOICES)
    assert vectors.shape == (len(CHOICES), 5, 16)
    for kept, ours in zip(CHOICES, vectors, strict=True):
        with skipping(model.layers, [i for i in range(4) if i not in kept]):
            assert torch.allclose(ours, model.user_vectors(some_ids()), atol=FLOAT32), kept
    assert not torch.allclose(vectors[0], vectors[1], atol=0.01)
    assert not any("forward" in vars(layer) for layer in model.layers)


@torch.no_grad()
def test_a_prompt_is_part_of_every_choice() -> None:
    model = build("llama", layers=3, prefix_length=2, suffix_length=1)
    with skipping(model.layers, [1]):
        expected = model.user_vectors(some_ids())
    (ours,) = user_vectors(model, some_ids(), [(0, 2)])
    assert torch.allclose(ours, expected, atol=FLOAT32)


def test_equal_choices_have_equal_vectors_and_no_layer_is_computed_twice() -> None:
    model = build("llama", layers=4)
    calls: list[int] = []
    for number, layer in enumerate(model.layers):
        layer.get_submodule("mlp").register_forward_hook(
            lambda *_, number=number: calls.append(number)
        )
    choices = [first(keep) for keep in (1, 2, 3, 4)] + [(0, 1, 3), (0, 1)]
    vectors = user_vectors(model, some_ids(), choices)
    assert torch.equal(vectors[1], vectors[5])
    assert sorted(calls) == [0, 1, 2, 3, 3]
    assert layers_computed(choices) == 5


def test_an_error_inside_leaves_the_model_as_it_was() -> None:
    model = build("llama", layers=2)
    with pytest.raises(IndexError):
        user_vectors(model, some_ids(), [(0, 5)])
    assert not any("forward" in vars(layer) for layer in model.layers)
