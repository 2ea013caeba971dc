"""Which layers go: ShortGPT's formula by hand, a search that finds the idle layer."""

import logging
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from prunable import ITEMS, KINDS, build, some_histories, some_ids

from slmc.compress import depth
from slmc.compress.depth import block_influence, by_influence, by_search, skipping
from slmc.compress.sizes import Kept
from slmc.compress.width import cut
from slmc.data.batches import pad_left
from slmc.data.dataset import Targets
from slmc.model.device import Placement
from slmc.model.recommender import SequentialRecommender
from slmc.next_item import validation

FLOAT32 = 1e-5
CPU = Placement(torch.device("cpu"), torch.float32)


def some_targets(count: int = 40) -> Targets:
    histories = some_histories(count)
    return Targets(
        users=[str(i) for i in range(count)],
        histories=histories,
        targets=np.arange(count) % ITEMS + 1,
        seen=[np.unique(h) for h in histories],
    )


def idle(model: SequentialRecommender, *numbers: int) -> SequentialRecommender:
    """Make layers hand on what they get."""
    with torch.no_grad():
        for number in numbers:
            model.layers[number].get_parameter("self_attn.o_proj.weight").zero_()
            model.layers[number].get_parameter("mlp.down_proj.weight").zero_()
    return model


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_block_influence_is_one_minus_the_mean_cosine(kind: str) -> None:
    model = build(kind, layers=3)
    cosines: list[list[float]] = [[], [], []]
    for history in some_histories():
        ids = torch.from_numpy(pad_left([history]))
        inputs: list[torch.Tensor] = []
        handle = model.layers[0].register_forward_pre_hook(
            lambda _, args, kept=inputs: kept.append(args[0][0])
        )
        with model.block_states((0, 1, 2)) as outputs:
            model.user_vectors(ids)
        handle.remove()
        states = [x.double().numpy() for x in [inputs[0], *outputs]]
        for number in range(3):
            for x, y in zip(states[number], states[number + 1], strict=True):
                cosines[number].append(float(x @ y / np.sqrt((x @ x) * (y @ y))))
    expected = [1 - float(np.mean(values)) for values in cosines]
    found = block_influence(model, some_histories())
    assert found == pytest.approx(expected, rel=FLOAT32)
    assert len({round(value, 6) for value in found}) == 3


def test_a_layer_that_does_nothing_has_no_influence() -> None:
    found = block_influence(idle(build("llama", layers=3), 1), some_histories())
    assert abs(found[1]) < 1e-12 and found[0] > 0.01 and found[2] > 0.01


def test_the_most_influential_layers_stay_in_their_order() -> None:
    assert by_influence([0.3, 0.1, 0.2, 0.4], 3) == (0, 2, 3)
    assert by_influence([0.3, 0.1, 0.2, 0.4], 1) == (3,)
    assert by_influence([0.1, 0.1, 0.1], 2) == (0, 1)


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
def test_search_drops_the_layer_that_does_nothing(kind: str) -> None:
    model = idle(build(kind, layers=4), 2)
    targets = some_targets()
    # What the whole model ranks first is true, so that any layer that does something is missed.
    best = model(torch.from_numpy(pad_left(targets.histories))).argmax(dim=1).numpy()
    measure = validation(model, replace(targets, targets=best), CPU)
    whole = measure()
    kept, gone = by_search(model, measure, 3)
    assert kept == (0, 1, 3)
    assert gone == [{"removed": 2, "valid_ce": pytest.approx(whole, abs=1e-6)}]


def test_search_takes_at_each_step_the_layer_that_hurts_least(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = build("llama", layers=4)

    def loss_of(layers: tuple[int, ...]) -> float:
        return validation(cut(deepcopy(model), Kept(layers, {})), some_targets(), CPU)()

    expected, left = [], (0, 1, 2, 3)
    while len(left) > 1:
        by_layer = {i: loss_of(tuple(j for j in left if j != i)) for i in left}
        worst = min(by_layer, key=lambda i: by_layer[i])
        left = tuple(j for j in left if j != worst)
        expected.append({"removed": worst, "valid_ce": pytest.approx(by_layer[worst], abs=1e-5)})
    with caplog.at_level(logging.DEBUG, logger="slmc.prune"):
        kept, gone = by_search(model, validation(model, some_targets(), CPU), 1)
    assert (kept, gone) == (left, expected)
    steps = [r.__dict__["progress"] for r in caplog.records if "progress" in r.__dict__]
    assert [s["done"] for s in steps] == list(range(1, 10)) and steps[0]["total"] == 9


def test_a_loss_that_is_no_number_never_wins() -> None:
    losses = iter([float("nan"), 3.0, float("inf")])
    kept, gone = by_search(build("llama", layers=3), lambda: next(losses), 2)
    assert kept == (0, 2) and gone == [{"removed": 1, "valid_ce": 3.0}]


def test_a_search_measures_a_sample_of_many_users(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = some_targets()
    assert depth.sample(targets, 1) is targets
    monkeypatch.setattr(depth, "SEARCH_USERS", 10)
    some, again, other = (depth.sample(targets, seed) for seed in (1, 1, 2))
    assert some.users == again.users != other.users
    assert len(set(some.users)) == len(some.targets) == 10
    for user, history, target in zip(some.users, some.histories, some.targets, strict=True):
        assert history is targets.histories[int(user)] and target == targets.targets[int(user)]
