"""Influence, angular distance and CKA: the formulas in float64, invariants, bounded memory."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prunable import KINDS, build, some_histories

from slmc.data.batches import pad_left
from slmc.model import redundancy as module
from slmc.model.recommender import SequentialRecommender
from slmc.model.redundancy import angular_distances, block_influence, linear_cka, redundancy

FLOAT32 = 1e-5
DOUBLE = 1e-12
Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def states_of(model: SequentialRecommender, last: bool) -> list[list[Array]]:
    """Every state of every history, in float64; of its last token only, or of all tokens."""
    by_state: list[list[Array]] = [[] for _ in range(len(model.layers) + 1)]
    for history in some_histories():
        inputs: list[torch.Tensor] = []
        handle = model.layers[0].register_forward_pre_hook(
            lambda _, args, kept=inputs: kept.append(args[0][0])
        )
        with torch.no_grad(), model.block_states(tuple(range(len(model.layers)))) as outputs:
            model.user_vectors(torch.from_numpy(pad_left([history])))
        handle.remove()
        for kept, state in zip(by_state, [inputs[0], *outputs], strict=True):
            kept += list(state.double().numpy()[-1:] if last else state.double().numpy())
    return by_state


def cosine(x: Array, y: Array) -> float:
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def idle(model: SequentialRecommender, *numbers: int) -> SequentialRecommender:
    """Make layers return their input."""
    with torch.no_grad():
        for number in numbers:
            model.layers[number].get_parameter("self_attn.o_proj.weight").zero_()
            model.layers[number].get_parameter("mlp.down_proj.weight").zero_()
    return model


def cka_of(x: Array, y: Array) -> float:
    """Kornblith et al. 2019, from the covariances of features."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    norms = [np.linalg.norm(a.T @ b) for a, b in ((y, x), (x, x), (y, y))]
    return float(norms[0] ** 2 / (norms[1] * norms[2])) if norms[1] * norms[2] else 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_influence_is_one_minus_the_mean_cosine(kind: str) -> None:
    model = build(kind, layers=3)
    states = states_of(model, last=False)
    expected = [
        1 - float(np.mean([cosine(x, y) for x, y in zip(before, after, strict=True)]))
        for before, after in pairwise(states)
    ]
    influence = block_influence(model, some_histories())
    assert influence == pytest.approx(expected, rel=FLOAT32)
    assert redundancy(model, some_histories()).influence == influence
    assert len({round(value, 6) for value in influence}) == 3


@pytest.mark.parametrize("options", [{}, {"prefix_length": 3, "suffix_length": 2}])
def test_distances_and_cka_are_those_of_last_tokens(options: dict[str, int]) -> None:
    model = build("llama", layers=3, **options)
    states = states_of(model, last=True)
    measured = redundancy(model, some_histories())
    for i, x in enumerate(states):
        for j, y in enumerate(states):
            angles = [math.acos(min(1.0, cosine(a, b))) for a, b in zip(x, y, strict=True)]
            expected = 0.0 if i == j else float(np.mean(angles)) / math.pi
            assert measured.angular[i][j] == pytest.approx(expected, abs=FLOAT32)
            assert measured.cka[i][j] == pytest.approx(cka_of(np.stack(x), np.stack(y)), rel=1e-4)
    assert measured.histories == measured.last_tokens == len(some_histories())
    prompt = options.get("prefix_length", 0) + options.get("suffix_length", 0)
    assert measured.tokens == sum(h.size + prompt for h in some_histories())


def test_a_layer_that_does_nothing_has_no_influence() -> None:
    measured = redundancy(idle(build("llama", layers=3), 1), some_histories())
    assert abs(measured.influence[1]) < DOUBLE
    assert measured.influence[0] > 0.01 and measured.influence[2] > 0.01
    assert measured.angular[1][2] < 1e-7 and measured.cka[1][2] == pytest.approx(1, abs=DOUBLE)


@given(st.integers(0, 2**31), st.floats(1e-6, 1e6))
def test_cka_does_not_depend_on_rotation_scale_and_shift(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 6, generator=generator)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    other = torch.randn(40, 6, generator=generator)
    cka = linear_cka(torch.stack([x, scale * (x @ rotation), x + 5, other]))
    assert cka[0, :3] == pytest.approx([1, 1, 1], abs=1e-4)
    assert 0 <= cka[0, 3] < 0.9
    assert torch.equal(cka, cka.T)


def test_cka_of_more_tokens_than_a_block_of_rows() -> None:
    x, y = torch.randn(2, 3 * module.ROWS + 5, 4, generator=torch.Generator().manual_seed(1))
    expected = cka_of(x.double().numpy(), y.double().numpy())
    assert float(linear_cka(torch.stack([x, y]))[0, 1]) == pytest.approx(expected, rel=FLOAT32)


def test_a_constant_state_is_like_no_other() -> None:
    constant = torch.full((5, 3), 0.1)  # whose mean is not exactly 0.1
    cka = linear_cka(torch.stack([constant, torch.randn(5, 3)]))
    assert cka[0].tolist() == [0.0, 0.0] and float(cka[1, 1]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("turned", "distance"),
    [
        (lambda x: 3 * x, 0.0),
        (lambda x: -x, 1.0),
        (lambda x: torch.stack([-x[:, 1], x[:, 0]], dim=1), 0.5),
    ],
)
def test_angular_distance_by_hand(
    turned: Callable[[torch.Tensor], torch.Tensor], distance: float
) -> None:
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    assert float(angular_distances(torch.stack([x, turned(x)]))[0, 1]) == pytest.approx(
        distance, abs=1e-7
    )


def test_the_states_that_are_kept_have_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = build("llama", layers=2), []
    whole = redundancy(model, some_histories(50))
    monkeypatch.setattr(module, "SAMPLE_BYTES", 20 * 3 * 32 * 4)
    monkeypatch.setattr(module, "linear_cka", lambda x: sizes.append(x.shape) or linear_cka(x))
    some = redundancy(model, some_histories(50))
    assert sizes == [(3, 20, 32)]
    assert (some.last_tokens, whole.last_tokens) == (20, 50)
    assert (some.influence, some.tokens) == (whole.influence, whole.tokens)


def test_nothing_is_left_of_the_hooks() -> None:
    model, seen = build("llama", layers=2), []
    redundancy(model, some_histories(40), watch=seen.append)
    assert seen == [32, 40]
    assert not any(layer._forward_hooks for layer in model.layers)
