"""AdamW with sparse gradients: the rows of a step against AdamW, and clipping."""

import pytest
import torch
from torch import Tensor, nn

from slmc.config import TrainConfig
from slmc.training.optimizer import adamw, clip_gradients

CONFIG = TrainConfig(weight_decay=0.1, beta2=0.98)
LR = 0.05


def gradient(step: int, rows: list[int], like: Tensor) -> Tensor:
    """A gradient of the rows; a row that is named twice has the sum."""
    generator = torch.Generator().manual_seed(step)
    values = torch.randn(len(rows), like.shape[1], generator=generator, dtype=like.dtype)
    return torch.sparse_coo_tensor(torch.tensor([rows]), values, like.shape, check_invariants=True)


def trained(steps: list[list[int]], *, sparse: bool) -> Tensor:
    """A table of 6 x 3 in float64 after a step for each list of rows, and a dense vector."""
    torch.manual_seed(0)
    table = nn.Parameter(torch.randn(6, 3, dtype=torch.float64))
    optimizer = adamw([{"params": [table], "lr": LR}], CONFIG, torch.device("cpu"))
    for step, rows in enumerate(steps):
        grad = gradient(step, rows, table.detach())
        table.grad = grad if sparse else grad.to_dense()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return table.detach()


def test_rows_with_a_gradient_in_each_step_are_those_of_adamw() -> None:
    steps = [[0, 1, 2, 3, 4, 5, 1]] * 4
    assert torch.allclose(trained(steps, sparse=True), trained(steps, sparse=False), rtol=1e-12)


def test_a_row_is_updated_in_its_own_steps_only() -> None:
    """Row 2 has gradients in steps 1 and 4: it ends as after these two alone."""
    torch.manual_seed(0)
    start = torch.randn(6, 3, dtype=torch.float64)
    found = trained([[0], [2], [0, 1], [1], [2, 0]], sparse=True)
    assert found[3:].equal(start[3:])
    row = nn.Parameter(start[2:3].clone())
    plain = torch.optim.AdamW([row], lr=LR, betas=(0.9, 0.98), weight_decay=0.1)
    for step, rows in ((1, [2]), (4, [2, 0])):
        row.grad = gradient(step, rows, start).to_dense()[2:3]
        plain.step()
    assert torch.allclose(found[2], row.detach()[0], rtol=1e-12)


@pytest.mark.parametrize("first", [True, False], ids=["sparse first", "dense first"])
def test_the_kind_of_the_gradient_can_change(first: bool) -> None:
    """As where a loss term with a dense gradient starts or ends: all rows, so AdamW each time."""
    torch.manual_seed(0)
    start = torch.randn(6, 3, dtype=torch.float64)
    table, plain = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ours = adamw([{"params": [table], "lr": LR}], CONFIG, torch.device("cpu"))
    theirs = torch.optim.AdamW([plain], lr=LR, betas=(0.9, 0.98), weight_decay=0.1)
    for step, sparse in enumerate((first, not first, first)):
        grad = gradient(step, [0, 1, 2, 3, 4, 5], start)
        table.grad, plain.grad = (grad if sparse else grad.to_dense()), grad.to_dense()
        ours.step()
        theirs.step()
    assert torch.allclose(table, plain, rtol=1e-12)


def test_dense_parameters_beside_a_sparse_one_are_those_of_adamw() -> None:
    table, vector = nn.Parameter(torch.ones(6, 3)), nn.Parameter(torch.ones(4))
    plain = nn.Parameter(torch.ones(4))
    optimizers = [
        adamw([{"params": params, "lr": LR}], CONFIG, torch.device("cpu"))
        for params in ([table, vector], [plain])
    ]
    for _ in range(3):
        table.grad = gradient(0, [1], table.detach())
        vector.grad, plain.grad = torch.arange(4.0), torch.arange(4.0)
        for optimizer in optimizers:
            optimizer.step()
    assert vector.equal(plain) and not vector.equal(torch.ones(4))


@pytest.mark.parametrize("most", [0.5, 1e9])
def test_clipping_is_that_of_dense_gradients(most: float) -> None:
    table, vector = nn.Parameter(torch.ones(6, 3)), nn.Parameter(torch.ones(4))
    found, expected = [], []
    for sparse, grads in ((True, found), (False, expected)):
        grad = gradient(3, [1, 4, 1], table.detach())
        table.grad = grad if sparse else grad.to_dense()
        vector.grad = torch.arange(4.0)
        clip = clip_gradients if sparse else nn.utils.clip_grad_norm_
        grads.append(clip([table, vector], most))
        grads += [table.grad.to_dense(), vector.grad]
    assert all(torch.allclose(a, b) for a, b in zip(found, expected, strict=True))
