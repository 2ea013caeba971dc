"""Losses over the catalogue against loops in float64."""

import math

import pytest
import torch
from torch import Tensor

from slmc.training import catalogue

TOLERANCE = 1e-6
"""Float32 scores of order 1, summed over a few dozen items."""


def tensors(n: int = 7, v: int = 11, d: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    queries = torch.randn(n, d, generator=generator)
    items = torch.randn(v + 1, d, generator=generator)
    targets = torch.randint(1, v + 1, (n,), generator=generator)
    return queries, items, targets


def plain_log_softmax(query: list[float], items: list[list[float]]) -> list[float]:
    scores = [sum(a * b for a, b in zip(query, item, strict=True)) for item in items]
    total = math.log(sum(math.exp(s) for s in scores))
    return [s - total for s in scores]


def plain_cross_entropy(queries: Tensor, items: Tensor, targets: Tensor) -> float:
    table = items[1:].double().tolist()
    rows = [plain_log_softmax(q, table) for q in queries.double().tolist()]
    return -sum(row[t - 1] for row, t in zip(rows, targets.tolist(), strict=True)) / len(rows)


def plain_divergence(student: Tensor, teacher: Tensor, items: Tensor, temperature: float) -> float:
    table = items[1:].double().tolist()
    total = 0.0
    for s, t in zip(student.double().tolist(), teacher.double().tolist(), strict=True):
        log_q = plain_log_softmax([x / temperature for x in s], table)
        log_p = plain_log_softmax([x / temperature for x in t], table)
        total += sum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True))
    return temperature**2 * total / len(student)


@pytest.fixture(params=[catalogue.CHUNK_SCORES, 1, 30], ids=["whole", "one by one", "chunks"])
def chunked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "CHUNK_SCORES", request.param)


@pytest.mark.usefixtures("chunked")
def test_cross_entropy_is_that_of_the_plain_loop() -> None:
    queries, items, targets = tensors()
    found = catalogue.cross_entropy(queries, items, targets).item()
    assert abs(found - plain_cross_entropy(queries, items, targets)) < TOLERANCE


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergence_is_that_of_the_plain_loop(temperature: float) -> None:
    student, items, _ = tensors()
    teacher = student.flip(0)
    found = catalogue.divergence(student, items, [(teacher, items)], temperature=temperature).item()
    assert abs(found - plain_divergence(student, teacher, items, temperature)) < TOLERANCE


@pytest.mark.usefixtures("chunked")
def test_several_teachers_are_the_mean_of_their_distributions() -> None:
    student, items, _ = tensors()
    others = [(student.flip(0), items), (2 * student[:, :3], items[:, :3])]
    loss = catalogue.divergence(student, items, others, temperature=2.0).item()
    total = 0.0
    for row in range(len(student)):
        log_q = plain_log_softmax((student[row] / 2).double().tolist(), items[1:].double().tolist())
        each = [
            plain_log_softmax((queries[row] / 2).double().tolist(), table[1:].double().tolist())
            for queries, table in others
        ]
        p = [(math.exp(one) + math.exp(other)) / 2 for one, other in zip(*each, strict=True)]
        total += sum(a * (math.log(a) - b) for a, b in zip(p, log_q, strict=True))
    assert abs(loss - 2**2 * total / len(student)) < TOLERANCE


def test_divergence_of_a_teacher_from_itself_is_nothing() -> None:
    student, items, _ = tensors()
    assert (
        abs(catalogue.divergence(student, items, [(student, items)], temperature=1.0)) < TOLERANCE
    )


@pytest.mark.usefixtures("chunked")
def test_gradients_are_those_of_autograd() -> None:
    queries, items, targets = tensors()
    ours = [queries.clone().requires_grad_(), items.clone().requires_grad_()]
    plain = [queries.clone().requires_grad_(), items.clone().requires_grad_()]
    (3 * catalogue.cross_entropy(*ours, targets)).backward()
    scores = plain[0] @ plain[1][1:].T
    (3 * torch.nn.functional.cross_entropy(scores, targets - 1)).backward()
    for a, b in zip(ours, plain, strict=True):
        assert a.grad is not None and b.grad is not None
        assert (a.grad - b.grad).abs().max() < TOLERANCE


@pytest.mark.usefixtures("chunked")
def test_divergence_gradient_is_that_of_autograd_and_none_reaches_the_teacher() -> None:
    student, items, _ = tensors()
    ours, plain = student.clone().requires_grad_(), student.clone().requires_grad_()
    teacher = student.flip(0).requires_grad_()
    catalogue.divergence(ours, items, [(teacher, items)], temperature=2.0).backward()
    log_q = (plain @ items[1:].T / 2).log_softmax(1)
    log_p = (teacher.detach() @ items[1:].T / 2).log_softmax(1)
    (4 * (log_p.exp() * (log_p - log_q)).sum(1).mean()).backward()
    assert ours.grad is not None and plain.grad is not None
    assert (ours.grad - plain.grad).abs().max() < TOLERANCE
    assert teacher.grad is None


def test_padding_is_no_item() -> None:
    queries, items, targets = tensors()
    other = items.clone()
    other[0] = 100.0
    same = [catalogue.cross_entropy(queries, table, targets) for table in (items, other)]
    assert same[0] == same[1]
