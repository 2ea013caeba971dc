"""The sampled softmax: unbiased sum, convergence to the full loss, gradients, memory and time."""

import itertools
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from slmc.artefact import Artefact
from slmc.config import TrainConfig
from slmc.model.text_items import TextItems
from slmc.training import catalogue, loop, softmax
from slmc.training.config import SasrecConfig
from slmc.training.pretrain import sasrec as stage
from slmc.training.softmax import Candidates, Softmax

TOLERANCE = 1e-6
"""Float32 scores of order 1, summed over a few dozen items."""


def problem(v: int = 9, n: int = 4, d: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    queries, items = (torch.randn(size, d, generator=generator) for size in (n, v + 1))
    return queries, items, torch.randint(1, v + 1, (n,), generator=generator)


def sampled_loss(queries: Tensor, items: Tensor, drawn: Candidates) -> Tensor:
    return catalogue.cross_entropy(queries, drawn.select(items), drawn.targets, drawn.log_weights)


def plain_loss(queries: Tensor, items: Tensor, drawn: Candidates, targets: Tensor) -> float:
    """The loss of the drawn rows as a loop in float64."""
    assert drawn.rows is not None and drawn.log_weights is not None
    rows, weights = drawn.rows[1:].tolist(), drawn.log_weights.double().exp().tolist()
    table, total = items.double(), 0.0
    for query, target in zip(queries.double(), targets.tolist(), strict=True):
        scores = {row: float(query @ table[row]) for row in rows}
        summed = sum(w * math.exp(scores[row]) for row, w in zip(rows, weights, strict=True))
        total += math.log(summed) - scores[target]
    return total / len(targets)


def test_the_loss_is_that_of_the_plain_loop_and_its_gradient_that_of_autograd() -> None:
    queries, items, targets = problem(v=30)
    torch.manual_seed(0)
    drawn = Softmax(30, 7).draw(targets)
    assert abs(sampled_loss(queries, items, drawn) - plain_loss(queries, items, drawn, targets)) < (
        TOLERANCE
    )
    ours = [queries.clone().requires_grad_(), items.clone().requires_grad_()]
    plain = [queries.clone().requires_grad_(), items.clone().requires_grad_()]
    sampled_loss(*ours, drawn).backward()
    scores = plain[0] @ plain[1][drawn.rows][1:].T + drawn.log_weights
    nn.functional.cross_entropy(scores, drawn.targets - 1).backward()
    for a, b in zip(ours, plain, strict=True):
        assert a.grad is not None and b.grad is not None
        assert (a.grad - b.grad).abs().max() < TOLERANCE


def test_the_divergence_is_that_of_the_weighted_distributions() -> None:
    student, items, targets = problem(v=30)
    teacher = student.flip(0)
    drawn = Softmax(30, 7).draw(targets)
    chosen = drawn.select(items)
    ours, plain = student.clone().requires_grad_(), student.clone().requires_grad_()
    weighted = {"temperature": 2.0, "log_weights": drawn.log_weights}
    found = catalogue.divergence(ours, chosen, [(teacher, chosen)], **weighted)
    found.backward()
    log_q = (plain @ chosen[1:].T / 2 + drawn.log_weights).log_softmax(1)
    log_p = (teacher @ chosen[1:].T / 2 + drawn.log_weights).log_softmax(1)
    expected = 4 * (log_p.exp() * (log_p - log_q)).sum(1).mean()
    expected.backward()
    assert ours.grad is not None and plain.grad is not None
    assert abs(found - expected) < TOLERANCE
    assert (ours.grad - plain.grad).abs().max() < TOLERANCE


def test_the_sum_of_the_softmax_is_unbiased(monkeypatch: pytest.MonkeyPatch) -> None:
    """Averaged over every possible draw, the weighted sum is the sum over the catalogue."""
    v, negatives = 9, 3
    queries, items, targets = problem(v)
    others = v - len(targets.unique())
    draws = iter(itertools.combinations(range(others), negatives))

    class Drawn:
        def choice(self, total: int, size: int, **_: object) -> np.ndarray:
            assert (total, size) == (others, negatives)
            return np.array(next(draws))

    monkeypatch.setattr(softmax.np.random, "default_rng", lambda _: Drawn())
    sums = []
    for _ in range(math.comb(others, negatives)):
        drawn = Softmax(v, negatives).draw(targets)
        assert drawn.log_weights is not None
        weights = drawn.log_weights.double().exp()
        sums.append((queries @ drawn.select(items)[1:].T).double().exp() @ weights)
    assert next(draws, None) is None
    full = (queries @ items[1:].T).double().exp().sum(1)
    assert torch.allclose(torch.stack(sums).mean(0), full, rtol=1e-6)


def test_the_loss_converges_to_the_full_one() -> None:
    """The bias is negative (Jensen) and shrinks at least like 1 / negatives; all items: exact."""
    v = 2_000
    queries, items, targets = problem(v, n=50, d=8)
    queries *= 0.3  # scores of a standard deviation below 1: the expansion of the bias holds
    full = catalogue.cross_entropy(queries, items, targets).item()
    torch.manual_seed(1)
    bias = {}
    for negatives in (20, 200, 1_900):
        rule = Softmax(v, negatives)
        losses = [sampled_loss(queries, items, rule.draw(targets)).item() for _ in range(200)]
        bias[negatives] = np.mean(losses) - full
    assert bias[20] < 0
    assert abs(bias[200]) < abs(bias[20]) / 5
    assert abs(bias[1_900]) < abs(bias[200]) / 5
    every = sampled_loss(queries, items, Softmax(v, v - 1).draw(targets)).item()
    assert abs(every - full) < 1e-5


@given(st.integers(1, 40), st.integers(1, 60), st.data())
def test_candidates_are_the_targets_and_distinct_others(
    v: int, negatives: int, data: st.DataObject
) -> None:
    targets = torch.tensor(data.draw(st.lists(st.integers(1, v), min_size=1, max_size=20)))
    drawn = Softmax(v, negatives).draw(targets)
    assert drawn.rows is not None and drawn.log_weights is not None
    rows = drawn.rows.tolist()
    assert rows == sorted(set(rows)) and rows[0] == 0 and rows[-1] <= v
    assert drawn.rows[drawn.targets].equal(targets)
    known = set(targets.tolist())
    assert known <= set(rows)
    assert len(rows) - 1 - len(known) == min(negatives, v - len(known))
    assert abs(drawn.log_weights.exp().sum() - v) < 1e-3
    exact = drawn.log_weights[[i for i, row in enumerate(rows[1:]) if row in known]]
    assert exact.abs().max() == 0


COUNTS = np.array([0, 3, 0, 2, 1, 0, 4, 2, 2, 2, 1])
"""Training interactions; rows 2 and 5 are new items."""


def test_new_items_with_texts_are_not_summed_over() -> None:
    queries, items, _ = problem(v=10)
    targets, old = torch.tensor([1, 6, 6, 10]), [row for row in range(1, 11) if COUNTS[row]]
    drawn = Softmax.of(SasrecConfig(softmax="full"), COUNTS, "sasrec", from_texts=True).draw(
        targets
    )
    assert drawn.rows is not None and drawn.rows.tolist() == [0, *old]
    plain = (queries @ items[old].T).log_softmax(1)
    expected = -sum(plain[i, old.index(t)] for i, t in enumerate(targets.tolist())) / 4
    assert abs(sampled_loss(queries, items, drawn) - expected) < TOLERANCE
    every = Softmax.of(SasrecConfig(softmax="full"), COUNTS, "sasrec", from_texts=False)
    assert every.draw(targets).rows is None


def test_new_items_with_texts_are_never_drawn() -> None:
    config = SasrecConfig(softmax="sampled", negatives=3)
    rule = Softmax.of(config, COUNTS, "sasrec", from_texts=True)
    targets, seen = torch.tensor([10, 1, 1]), set[int]()
    for _ in range(40):
        drawn = rule.draw(targets)
        assert drawn.rows is not None and drawn.log_weights is not None
        assert drawn.rows[drawn.targets].equal(targets) and len(drawn.rows) == 1 + 2 + 3
        assert abs(drawn.log_weights.exp().sum() - 8) < 1e-4
        seen |= set(drawn.rows.tolist())
    assert seen == {0, *(row for row in range(1, 11) if COUNTS[row])}


def test_a_draw_follows_the_random_state() -> None:
    targets, rule = torch.tensor([3, 9]), Softmax(1_000, 5)
    torch.manual_seed(4)
    state = torch.get_rng_state()
    first, second = rule.draw(targets).rows, rule.draw(targets).rows
    torch.set_rng_state(state)
    again = rule.draw(targets).rows
    assert first is not None and second is not None and again is not None
    assert first.equal(again) and not first.equal(second)


@pytest.mark.parametrize(
    ("settings", "items", "negatives", "logged"),
    [
        ({}, 100_000, None, None),
        (
            {},
            100_001,
            8192,
            "sasrec: sampled softmax over the targets of a batch and 8,192 of 100,001 items "
            "(softmax: auto)",
        ),
        ({"softmax": "full"}, 10**6, None, None),
        (
            {"softmax": "sampled", "negatives": 10},
            50,
            10,
            "sasrec: sampled softmax over the targets of a batch and 10 of 50 items "
            "(softmax: sampled)",
        ),
        (
            {"softmax": "sampled"},
            50,
            None,
            "sasrec: full softmax: 50 of 50 items (softmax: sampled)",
        ),
    ],
)
def test_which_softmax_a_catalogue_gets(
    settings: dict[str, object],
    items: int,
    negatives: int | None,
    logged: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="slmc.train"):
        config, counts = TrainConfig.model_validate(settings), np.ones(items + 1, dtype=np.int64)
        chosen = Softmax.of(config, counts, "sasrec", from_texts=True)
    assert chosen.negatives == negatives
    assert caplog.messages == ([logged] if logged else [])


def test_text_items_by_rows_are_those_of_the_whole_table() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(8, 4)
    vectors[[0, 5]] = 0
    trained = torch.tensor([False] + [True] * 6 + [False])
    table = TextItems(vectors, "hybrid", trained)
    assert table.ids is not None
    nn.init.normal_(table.ids)
    nn.init.normal_(table.adapter[2].weight)
    rows = torch.tensor([[0, 7, 3], [3, 5, 1]])
    grads = []
    for table.sparse in (False, True):
        table.zero_grad()
        found = table(rows)
        assert torch.allclose(found, table.weight[rows])
        found.square().sum().backward()
        assert table.ids.grad is not None and table.ids.grad.is_sparse == table.sparse
        grads.append([p.grad.to_dense() for p in table.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))


def test_sasrec_learns_as_much_from_samples(
    dataset: Artefact, sasrec: Artefact, tmp_path: Path, measured: Callable[[Artefact], float]
) -> None:
    """30 items, of which 6 are drawn: the ranking is that of the full softmax within noise."""
    sampled = train_sampled(dataset, tmp_path / "sampled", negatives=6)
    assert measured(sampled) > 0.9 * measured(sasrec) > 0.3


def test_a_killed_run_ends_in_the_same_bits(
    dataset: Artefact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_sampled(dataset, tmp_path / "whole", negatives=6, epochs=2)
    save = loop._Run._save

    def save_and_die(run: loop._Run) -> None:
        save(run)
        if run.progress.step == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            train_sampled(dataset, tmp_path / "resumed", negatives=6, epochs=2)
    torch.manual_seed(99)
    resumed = train_sampled(dataset, tmp_path / "resumed", negatives=6, epochs=2)
    files = [one.file("model.safetensors").read_bytes() for one in (whole, resumed)]
    assert files[0] == files[1]


@pytest.fixture
def measured() -> Callable[[Artefact], float]:
    def best(artefact: Artefact) -> float:
        epochs = json.loads(artefact.file("metrics.json").read_text())["epochs"]
        return float(epochs[-1]["valid_ndcg"])

    return best


SMALL = {"dim": 16, "rows": 16, "warmup": 5, "dtype": "fp32", "checkpoint_s": 0}


def train_sampled(dataset: Artefact, out: Path, *, negatives: int, epochs: int = 8) -> Artefact:
    config = SasrecConfig.model_validate(
        SMALL | {"softmax": "sampled", "negatives": negatives, "epochs": epochs}
    )
    return stage(config, {"data": dataset}, out)
