"""The loss terms of SLMRec: against plain loops in float64, worked by hand, invariances."""

import math

import pytest
import torch
from torch import Tensor

from slmc.distill.losses import block_ends, direction_loss, norm_loss, supervision_loss

TOLERANCE = 1e-6
"""Float32 sums over a few dozen numbers of order 1."""


def states(n: int = 4, b: int = 3, h: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(n, b, h, generator=generator), torch.randn(n, b, h, generator=generator)


def test_direction_equals_a_plain_loop() -> None:
    student, teacher = states()
    cosines = []
    for s, t in zip(student.double().flatten(0, 1), teacher.double().flatten(0, 1), strict=True):
        dot = sum(float(a) * float(b) for a, b in zip(s, t, strict=True))
        lengths = [math.sqrt(sum(float(a) ** 2 for a in x)) for x in (s, t)]
        cosines.append(dot / (lengths[0] * lengths[1]))
    expected = 1 - sum(cosines) / len(cosines)
    assert abs(direction_loss(student, teacher).item() - expected) < TOLERANCE


def test_paper_norm_equals_a_plain_loop() -> None:
    student, teacher = states()
    squares = [
        sum((float(a) - float(b)) ** 2 for a, b in zip(s, t, strict=True))
        for s, t in zip(student.double().flatten(0, 1), teacher.double().flatten(0, 1), strict=True)
    ]
    expected = sum(squares) / len(squares)
    assert abs(norm_loss(student, teacher).item() - expected) < 10 * TOLERANCE


def test_scaled_norm_equals_a_plain_loop() -> None:
    student, teacher = states()
    mean_square = teacher.square().mean(dim=0)
    total, count = 0.0, 0
    for n in range(4):
        for b in range(3):
            for h in range(6):
                gap = float(student[n, b, h]) - float(teacher[n, b, h])
                total += gap**2 / float(mean_square[b, h])
                count += 1
    assert abs(norm_loss(student, teacher, mean_square).item() - total / count) < 10 * TOLERANCE


def test_scaled_norm_ignores_the_units_of_a_dimension() -> None:
    student, teacher = states()
    units = torch.tensor([1.0, 10.0, 0.1, 300.0, 1.0, 7.0])
    plain = norm_loss(student, teacher, teacher.square().mean(dim=0))
    scaled = norm_loss(student * units, teacher * units, (teacher * units).square().mean(dim=0))
    assert torch.allclose(plain, scaled, rtol=1e-5)


def test_direction_ignores_length_and_norm_does_not() -> None:
    teacher = torch.tensor([[[3.0, 4.0]]])
    assert direction_loss(2 * teacher, teacher).item() < TOLERANCE
    assert norm_loss(2 * teacher, teacher).item() == 25.0


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = (t.requires_grad_() for t in states())
    (direction_loss(student, teacher) + norm_loss(student, teacher)).backward()
    assert student.grad is not None and teacher.grad is None


def test_supervision_is_the_mean_cross_entropy_of_the_blocks() -> None:
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(5, 2, 3, generator=generator)
    items = torch.randn(8, 3, generator=generator)
    targets = torch.tensor([1, 7, 3, 2, 5])
    expected = sum(
        torch.nn.functional.cross_entropy(
            queries[:, k].double() @ items[1:].double().T, targets - 1
        ).item()
        for k in range(2)
    )
    assert abs(supervision_loss(queries, items, targets).item() - expected / 2) < TOLERANCE


@pytest.mark.parametrize(
    ("layers", "blocks", "ends"),
    [
        (8, 4, (1, 3, 5, 7)),
        (4, 4, (0, 1, 2, 3)),
        (6, 4, (0, 2, 3, 5)),
        (7, 3, (1, 3, 6)),
        (5, 1, (4,)),
    ],
)
def test_blocks_are_even_and_end_at_the_last_layer(
    layers: int, blocks: int, ends: tuple[int, ...]
) -> None:
    assert block_ends(layers, blocks) == ends


def test_more_blocks_than_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="2 layers cannot be divided into 3 blocks"):
        block_ends(2, 3)
